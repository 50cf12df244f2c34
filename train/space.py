"""A search space: which settings are tuned, and between what.

::

    [space]
    train.lr = {low = 1e-4, high = 1e-2, log = true}        # a range; `log` spreads the draws evenly over the orders of magnitude
    model-options.hidden = {low = 96, high = 320, step = 4} # whole numbers where the setting is one
    train.batch = {choices = [64, 128, 256]}                # a choice; lists are choices too: [[16, 64], [32, 128]]

Refused with one line: unknown names (with the nearest known one), ranges that are empty, reversed or no numbers, and choices that are empty
or repeat. Loads no Optuna.
"""

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import TrainError


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; ``whole``: integers only. ``step``: low, low + step, ..., high."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    @property
    def extremes(self) -> tuple[Any, ...]:
        return (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """One of ``values``: numbers, texts, booleans or lists of these."""

    values: tuple[Any, ...]

    @property
    def extremes(self) -> tuple[Any, ...]:
        return self.values

    @property
    def keys(self) -> tuple[Any, ...]:
        """What storages know them by, as these keep no lists: a list as JSON text, anything else as it is."""
        return tuple(json.dumps(value) if isinstance(value, list) else value for value in self.values)


Dimension = Range | Choices
Space = Mapping[str, Dimension]


def parse_space(raw: Mapping[str, Any], known: Mapping[str, Any], where: str, open_tables: Iterable[str] = ()) -> dict[str, Dimension]:
    """The table [space] as parsed from TOML, checked.

    Args:
        raw: dotted names, or tables of names, to ``{low, high, log, step}`` or ``{choices}``. known: the dotted names there are, each with
            its type, or None where any goes. where: the file, for messages. open_tables: tables in which any name goes.
    """
    space = {name: _dimension(told, name, known, where, tuple(open_tables)) for name, told in _flat(raw)}
    if not space:
        raise TrainError(f"{where} tunes nothing; write for instance [space] and train.lr = {{low = 1e-4, high = 1e-2, log = true}}")
    return space


def as_plain(space: Space) -> dict[str, Any]:
    """The space as JSON can hold it, to be compared with another."""
    return {name: {key: value for key, value in vars(one).items() if value not in (None, False)} for name, one in sorted(space.items())}


def _flat(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """``{"train": {"lr": {"low": ...}}}`` and ``{"train.lr": {"low": ...}}`` are the same."""
    for key, value in raw.items():
        if isinstance(value, dict) and not set(value) & {"low", "high", "log", "step", "choices"}:
            yield from ((f"{key}.{name}", told) for name, told in value.items())
        else:
            yield key, value


def _dimension(told: Any, name: str, known: Mapping[str, Any], where: str, open_tables: tuple[str, ...]) -> Dimension:
    if name not in known and not name.startswith(tuple(f"{table}." for table in open_tables)):
        raise TrainError(f"{name} in {where} is unknown; {_hint(name, known)}")
    shapes = ({"low", "high", "log", "step"}, {"choices"})
    if not isinstance(told, dict) or not any(shape >= set(told) >= shape & {"low", "high", "choices"} for shape in shapes):
        raise TrainError(f"{name} (={told}) in {where} must be {{low = ..., high = ...}}, perhaps with log or step, or {{choices = [...]}}")
    return _choices(told["choices"], name, where) if "choices" in told else _range(told, name, known.get(name), where)


def _choices(values: Any, name: str, where: str) -> Choices:
    if not isinstance(values, list) or not values:
        raise TrainError(f"{name} in {where} has no choices (={values}); name at least one, as choices = [64, 128]")
    for index, value in enumerate(values):
        if not all(isinstance(part, bool | int | float | str) for part in (value if isinstance(value, list) else [value])):
            raise TrainError(f"{name} (={value}) in {where}: a choice is a number, a text, true, false, or a list of these")
        if value in values[:index]:
            raise TrainError(f"{name} (={value}) in {where} is there twice; name each choice once")
    return Choices(values=tuple(values))


def _range(told: Mapping[str, Any], name: str, kind: Any, where: str) -> Range:
    low, high, log, step = told["low"], told["high"], told.get("log", False), told.get("step")
    numbers = [number for number in (low, high, step) if number is not None]
    if kind not in (int, float, None):
        raise TrainError(f"{name} in {where} is no number; give it {{choices = [...]}}")
    if any(isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number) for number in numbers):
        raise TrainError(f"{name} (={dict(told)}) in {where}: low, high and step must be numbers")
    whole = kind is int or (kind is None and all(isinstance(number, int) for number in numbers))
    rules = [
        (isinstance(log, bool), f"log (={log}) must be true or false"),
        (
            not whole or all(isinstance(number, int) for number in numbers),
            "low, high and step must be whole numbers, as this setting is",
        ),
        (low <= high, f"low (={low}) must not be above high (={high})"),
        (not log or low > 0, f"log needs a low (={low}) above 0; 1e-5 is a usual one"),
        (step is None or step > 0, f"step (={step}) must be positive"),
        (not (log and step), "log and step exclude each other; leave one of them out"),
    ]
    for holds, rule in rules:
        if not holds:
            raise TrainError(f"{name} in {where}: {rule}")
    if step and abs((high - low) / step - round((high - low) / step)) > 1e-6:
        raise TrainError(f"{name} in {where}: high (={high}) must be low (={low}) plus a multiple of step (={step})")
    number = int if whole else float
    return Range(low=number(low), high=number(high), log=log, step=number(step) if step else None, whole=whole)


def _hint(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    # Somebody who writes `lr` means `train.lr`.
    near = near or [full for full in known if full.partition(".")[2] == name.rpartition(".")[2]]
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
