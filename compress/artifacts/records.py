"""The one door for what is read: TOML and JSON become frozen, typed objects, or one line says what is wrong and what to do.

Two kinds go through it. *Settings* come from a person (a recipe, a search space, the command line, Python): the message names the
setting, its value, the rule and the next step. *Records* come from this toolkit (``artifact.json``, ``benchmark.json``, metadata of an
ONNX file): the message names the file and the place in it. Types and rules are annotations of a frozen dataclass, written once::

    epochs: Annotated[int, Meta(ge=1)] = 10                                       epochs (=0) in [train] must be at least 1
    scope: Literal["global", "group"] = "global"                                  scope (="all") in [prune] must be global or group
    sparsity: Annotated[float, Meta(gt=0, lt=1, description="0.5 is half")]       sparsity (=2) in [prune] must lie in (0, 1); 0.5 is half

Refused besides: names that are not known, files that are large or no files, text that is no UTF-8, numbers that are not finite or beyond 64
bits, dates, deep nesting, half of a surrogate pair.

Source: msgspec converts and checks. It loads in 21 ms and takes 0.7 MB on a board, without dependencies; pydantic 2.14 took 140 ms and
10 MB. Its messages name the place; the words around them, and those of settings, are ours.
"""

import csv
import dataclasses
import hashlib
import io
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..errors import CompressError, nearest, need_file, shown
from ..files import write_whole

T = TypeVar("T")
Look = Callable[[Any], Any]
MOST_TOML, MOST_JSON = 2**20, 2**25  # bytes; what is read of these takes some 30 times as much memory at the worst
MOST_DEPTH, MOST_NAME = 32, 200
WORDS = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false", tuple: "a list", dict: "a table"}


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file, nothing but plain values in them; ``what`` is what messages call it, such as ``recipe``."""
    raw = _bounded(path, MOST_TOML, what)
    try:
        found = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise CompressError(f"{what} (={path}) is not readable as TOML: {shown(error)}") from error
    refuse_odd(found, f"{what} (={path})")
    return found


def refuse_odd(value: Any, told: str) -> None:
    """Raise CompressError where a value from outside is not made of texts, finite numbers, booleans, and lists and tables of these."""
    if wrong := _not_plain(value, ""):
        raise CompressError(f"{told}: {wrong}")


def read_record(
    path: Path, cls: type[T], *, again: str, error: type[ValueError] = CompressError, where: str = "", look: Look | None = None
) -> T:
    """The JSON file ``path`` as ``cls``, see :func:`parse_record`; messages call it by its path where they are told nothing else."""
    try:
        raw = _bounded(path, MOST_JSON, "file")
    except CompressError as found:
        raise error(str(found)) from found
    return parse_record(raw, cls, where=where or str(path), again=again, error=error, look=look)


def parse_record(
    raw: bytes | str, cls: type[T], *, where: str, again: str, error: type[ValueError] = CompressError, look: Look | None = None
) -> T:
    """JSON text as ``cls``, with exactly the parts that ``cls`` has; only those that may be UNSET may be missing.

    Args:
        where: what messages call it. again: the next step where it is damaged. error: what is raised then.
        look: is shown the plain values before, may refuse them in words of its own, and returns those that the record is made of.
    """
    try:
        found = msgspec.json.decode(raw if isinstance(raw, str) else raw.decode())
    except (ValueError, RecursionError) as damage:
        raise error(f"{where} is damaged: {_place(damage)}; {again}") from damage
    if wrong := _not_plain(found, ""):
        raise error(f"{where} is damaged: {wrong}; {again}")
    found = look(found) if look is not None else found
    try:
        record = msgspec.convert(found, cls, str_keys=True)
    except ValueError as damage:  # msgspec's errors are ValueErrors, as are those of the classes themselves
        raise error(f"{where} is damaged: {_place(damage)}; {again}") from damage
    if odd := _odd(found, record, ""):
        raise error(f"{where} is damaged: {odd}; {again}")
    return record


def plain(record: Any) -> Any:
    """A record as JSON has it, without what is UNSET."""
    return msgspec.to_builtins(record, str_keys=True)


def write_record(path: Path, record: Any) -> None:
    """Write a record as a file of JSON, one value per line; whole or not at all."""
    write_whole(path, (json.dumps(plain(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_kept(path: Path, record: Any) -> None:
    """Write what a command that goes on later is to believe: JSON, after a line with its SHA-256."""
    text = json.dumps(plain(record), allow_nan=False).encode()
    write_whole(path, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


def read_kept(path: Path, cls: type[T], say: Callable[[str], None]) -> T | None:
    """What ``write_kept`` wrote; None where there is nothing, or it is damaged, which is then said."""
    if not path.is_file():
        return None
    try:
        digest, _, text = _bounded(path, MOST_JSON, "file").partition(b"\n")
        if digest != hashlib.sha256(text).hexdigest().encode():
            raise CompressError(f"{path} is damaged: its SHA-256 does not fit; it is made anew")
        return parse_record(text, cls, where=str(path), again="it is made anew")
    except CompressError as error:
        say(str(error))
        return None


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> None:
    """Write rows as a table with a header, whole or not at all: their entries ``names``, or all of the first's."""
    from ..benchmarks.tables import no_formula

    text = io.StringIO()
    writer = csv.DictWriter(text, names or list(rows[0]), extrasaction="ignore" if names else "raise")
    writer.writeheader()
    writer.writerows({name: no_formula(value) for name, value in row.items()} for row in rows)
    write_whole(path, text.getvalue().encode())


def seconds_of(value: str | float, name: str) -> float:
    """A time as people write it, in seconds: ``90s``, ``5m``, ``1h``, or a plain number; ``name`` is what messages call it."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([smh]?)", str(value).strip())
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        raise CompressError(f"{name} (={shown(str(value))}) must be a time above 0, such as 90s, 5m or 1h; a plain number is seconds")
    return seconds


def component(name: str, what: str) -> None:
    """Raise CompressError unless ``name``, which becomes a part of a path, is one plain component of it."""
    if name in ("", ".", "..") or not name.isprintable() or {"/", "\\"} & set(name) or len(name.encode()) > MOST_NAME:
        raise CompressError(f'{what} (="{shown(name)}") must be one plain name, without separators')


def checked(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """The settings ``cls(**values)``, each checked by its annotation; ``where`` they come from, such as ``[train]``."""
    hints = typing.get_type_hints(cls, include_extras=True)
    refuse_unknown(values, hints, where)
    return cls(**{name: setting(value, hints[name], name, where) for name, value in values.items()})


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise CompressError for the first name that is not known, with the nearest that is."""
    names = list(known)
    for name in given:
        if name not in names:
            raise CompressError(f"{shown(name)} in {where} is unknown; {nearest(name, names)}")


def rule_of(hint: Any) -> str:
    """What a value of this type must be, in words: ``must lie in (0, 1); 0.5 is half``."""
    kind, metas = _unwrapped(hint)
    names = ("gt", "ge", "lt", "le", "min_length", "description")
    limits: dict[str, Any] = {name: value for meta in metas for name in names if (value := getattr(meta, name)) is not None}
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if typing.get_origin(kind) is typing.Literal:
        *most, last = (str(one) for one in typing.get_args(kind))
        rule = f"must be {', '.join(most)} or {last}"
    elif low is not None and high is not None:
        rule = f"must lie in {'[' if 'ge' in limits else '('}{low}, {high}{']' if 'le' in limits else ')'}"
    elif low is not None:
        rule = f"must be at least {low:g}" if "ge" in limits else "must be a positive number" if low == 0 else f"must be above {low:g}"
    elif typing.get_origin(kind) is tuple and Ellipsis not in typing.get_args(kind):
        rule = f"must be a list of {len(typing.get_args(kind))}"
    elif "min_length" in limits:
        rule = f"must have at least {limits['min_length']} of them"
    else:
        origin = typing.get_origin(kind) or kind
        rule = f"must be {WORDS.get(dict if origin is Mapping else origin, 'something else')}"
    return "; ".join([rule, limits["description"]] if "description" in limits else [rule])


def _unwrapped(hint: Any) -> tuple[Any, list[msgspec.Meta]]:
    """The type below ``X | None`` and ``Annotated``, and its rules."""
    metas: list[msgspec.Meta] = []
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            metas += [one for one in hint.__metadata__ if isinstance(one, msgspec.Meta)]
            hint = hint.__origin__
        elif typing.get_origin(hint) in (types.UnionType, typing.Union):
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        else:
            return hint, metas


def setting(value: Any, hint: Any, name: str, where: str, *, finite: bool = True) -> Any:
    """One setting in the type that ``hint`` says; raises CompressError where it does not fit, or a number is not ``finite``."""
    kind, _ = _unwrapped(hint)
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
        return value  # settings within settings, made before
    told, rule = f"{name} (={shown(value)})", rule_of(hint)
    try:
        made = msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        if typing.get_origin(kind) is tuple and (place := re.search(r" - at `\$\[(\d+)\]", str(error))):
            inner = typing.get_args(kind)[0]
            told, kind, rule = f"each of {told}", _unwrapped(inner)[0], rule_of(inner)
            value = value[int(place[1])]
        if ", got `" in str(error) and kind is not Any:
            told = told.replace(f"(={value})", f"(={value!r})")  # 'fast' is a text, and looks like one
            wanted = getattr(typing.get_origin(kind) or kind, "__name__", "str")
            wanted = {"Literal": "str", "tuple": "list", "Sequence": "list", "Mapping": "dict"}.get(wanted, wanted)
            raise CompressError(f"{told} in {where} must be of type {wanted}, not {type(value).__name__}") from None
        raise CompressError(f"{told} {rule}") from None
    if finite and any(isinstance(one, float) and not math.isfinite(one) for one in (made if isinstance(made, tuple) else (made,))):
        raise CompressError(f"{told} {rule}")
    return made


def _bounded(path: Path, most: int, what: str) -> bytes:
    """The content of a file that is one, and not beyond ``most`` bytes."""
    try:
        need_file(path, f"{what} (={path})")
        if (size := path.stat().st_size) > most:
            raise CompressError(f"{what} (={path}) has {size:,} bytes, at most {most:,} are read; name another file")
        return path.read_bytes()
    except OSError as error:
        raise CompressError(f"{what} (={path}) cannot be read: {error.strerror}") from error


def _not_plain(value: Any, name: str, depth: int = 0) -> str:
    """What of parsed TOML or JSON is no plain value, in words; TOML has dates, both have numbers without end."""
    if depth > MOST_DEPTH:
        return f"{re.split(r'[.[]', name)[0] or 'it'} is nested more than {MOST_DEPTH} deep"
    if isinstance(value, dict | list | tuple):
        keyed = isinstance(value, dict)
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        places = ((f"{name}.{key}".removeprefix(".") if keyed else f"{name}[{key}]", one) for key, one in inner)
        found = (_not_plain(one, place, depth + 1) for place, one in places)
        return next((wrong for wrong in found if wrong), "")
    if not isinstance(value, bool | int | float | str | None):
        return f"{name} (={value}) is a {type(value).__name__}; write it as a text in quotes"
    if isinstance(value, int | float) and not (math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**63):
        return f"{shown(name)} (={shown(value, 40)}) must be a finite number of at most 64 bits"
    return ""


def _place(error: BaseException) -> str:
    """``metrics.parity.images must be int, not str`` for msgspec's ``Expected `int`, got `str` - at `$.metrics.parity.images```."""
    told, *places = shown(error, 400).replace("`", "").split(" - at ")  # the innermost first
    place = "".join(part.removeprefix("$") for part in reversed(places)).lstrip(".")
    told = told.replace("Expected ", "must be ").replace(", got ", ", not ")
    return shown(f"{place} {told}".strip(), 160)


def _odd(raw: Any, known: Any, name: str) -> str:
    """The first entry of ``raw`` that did not go into ``known``, which was made of it, or that it lacks."""
    if isinstance(raw, dict):
        if dataclasses.is_dataclass(known):  # not as plain values: msgspec leaves out of those what it took from a default
            values = {field.name: getattr(known, field.name) for field in dataclasses.fields(known)}
            known = {key: value for key, value in values.items() if value is not msgspec.UNSET}
        if all(isinstance(key, str) for key in known) and (odd := raw.keys() ^ known.keys()):
            first = min(odd)
            return f"{shown(f'{name}.{first}'.lstrip('.'))} is {'unknown' if first in raw else 'missing'}"
        inner = [(f".{key}", raw[str(key)], value) for key, value in known.items() if str(key) in raw]
    elif isinstance(raw, list):
        inner = [(f"[{index}]", one, other) for index, (one, other) in enumerate(zip(raw, known, strict=True))]
    else:
        return ""
    return next((wrong for key, one, other in inner if (wrong := _odd(one, other, f"{name}{key}"))), "")
