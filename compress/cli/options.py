"""Commands out of functions: ``network.prune`` with its options becomes ``compress prune``, each option with its name, type and help.

What the command line writes otherwise than Python does stands here, and nothing else: ``--image-shape 1x28x28``, ``--mean 0.5,0.5``,
``--option width=8``, ``--max-macs 0.35x``, options that are repeated. Loads click only.
"""

import inspect
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import click

from ..api import options as of
from ..api.network import open
from ..errors import CompressError
from .terminal import Terminal

PATH = click.Path(path_type=Path)
# Options that are called otherwise in Python, where one argument holds several.
NAMES = {"options": "option", "sparsities": "sparsity", "groups": "group", "runtimes": "runtime", "variants": "variant", "start": "from"}
START = Annotated[of.File, "Start from this artifact.  [default: the newest fitting one; train: a new network]"]
METAVARS = {
    "data": "NAME|FOLDER",
    "model": "NAME",
    "recipe": "FILE|NAME",
    "start": "FOLDER",
    "out": "FOLDER",
    "ship": "FOLDER",
    "storage": "URL|FILE",
}
COMMON = ("start", "weights", "pretrained", "out", "force", "resume")
OPENS: Mapping[str, Any] = {"model": of.Model, **typing.get_type_hints(of.OpenOptions, include_extras=True)}


class Text(click.ParamType):
    """A value that is written as text and read by ``read``; what that raises names the option, the value and ``rule``."""

    def __init__(self, name: str, read: Callable[[str], Any], rule: str) -> None:
        self.name, self._read, self._rule = name, read, rule

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(value) if isinstance(value, str) else value
        except ValueError as error:
            name = param.opts[0].removeprefix("--") if param is not None else "value"
            raise CompressError(f"{name} (={value}) {self._rule}") from error


def _shape(text: str) -> tuple[int, ...]:
    parts = tuple(map(int, text.split("x")))
    if len(parts) != 3:
        raise ValueError
    return parts


SHAPE = Text("CxHxW", _shape, "must be CxHxW, such as 1x28x28")
NUMBERS = Text(
    "N[,N,N]", lambda text: tuple(map(float, text.split(","))), "must be one number or one per channel, such as 0.5 or 0.4,0.5,0.5"
)
SHARE = Text("0.35x", lambda text: float(text.removesuffix("x")), "must be a share of what the unpruned network costs, such as 0.35x")
PERCENT = Text("PERCENT", lambda text: float(text.strip().removesuffix("%")), "must be a percentage, such as 5%")
SETTING = Text("NAME=VALUE", tomllib.loads, "must be NAME=VALUE with a TOML value, such as widths=[8,16] or dropout=0.2")
TYPES: Mapping[Any, Any] = {int: int, float: float, str: str, Path: PATH, of.File: PATH}


def option(name: str, hint: Any) -> Callable[[Any], Any]:
    """The click option for an argument ``name`` of the type ``hint``, an ``Annotated`` with its help."""
    kind, text = hint.__origin__, hint.__metadata__[-1]
    if "share" in hint.__metadata__ or "percent" in hint.__metadata__:
        kind = SHARE if "share" in hint.__metadata__ else PERCENT
    flag = f"--{NAMES.get(name, name).replace('_', '-')}"
    how: dict[str, Any] = {"help": text, "default": None}
    if kind is bool:
        both = "--per-channel/--per-tensor" if name == "per_channel" else flag
        return click.option(both, name, is_flag=True, **how)
    origin = typing.get_origin(kind)
    if name == "options":
        return click.option(flag, name, multiple=True, type=SETTING, metavar="NAME=VALUE", **how | {"default": ()})
    if origin is tuple:
        return click.option(flag, name, type=SHAPE if name == "image_shape" else NUMBERS, **how)
    if origin is typing.Literal:
        return click.option(flag, name, type=str, metavar="|".join(typing.get_args(kind)), **how)
    if origin is Sequence or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return click.option(flag, name, type=typing.get_args(kind)[0], multiple=True, **how | {"default": ()})
    return click.option(flag, name, type=TYPES.get(kind, kind), metavar=METAVARS.get(name), **how)


@dataclass(frozen=True, kw_only=True)
class Switch:
    """A flag with which a command calls another method and shows what that returns."""

    flag: str
    help: str
    method: Callable[..., Any]
    show: Callable[[Any, bool], None]


def command(
    method: Callable[..., Any],
    example: str,
    *,
    arguments: Sequence[str] = (),
    closed: bool = False,
    switch: Switch | None = None,
    defaults: Mapping[str, Any] = {},
) -> Callable[[Callable[[Any, bool], None]], click.Command]:
    """The command that calls ``method`` of a network, and has the decorated function show what comes back: ``show(result, as_json)``.

    Args:
        example: lines for the help, which else is the method's docstring.
        arguments: positional ones, all paths, by name; ``files...`` takes any number.
        closed: the method is a function that needs no network.
        defaults: what the command takes where nothing was said, and Python does not.
    """
    own: dict[str, Any] = typing.get_type_hints(getattr(method, "options", object), include_extras=True)
    if "start" in inspect.signature(method).parameters:
        own["start"] = START
    own = {name: own[name] for name in sorted(own, key=lambda name: name in COMMON)}  # its own ones first

    def decorate(show: Callable[[Any, bool], None]) -> click.Command:
        def run(as_json: bool, switched: bool = False, **given: Any) -> None:
            positional = [given.pop(one.removesuffix("...")) for one in arguments]
            said = {**defaults, **{name: value for name, value in given.items() if value is not None and value != ()}}
            opened = {name: said.pop(name) for name in OPENS if name in said}
            if "options" in opened:
                opened["options"] = {key: value for table in opened["options"] for key, value in table.items()}
            terminal = Terminal()
            first = [] if closed else [open(**opened, console=terminal)]
            paths = [path for one in positional for path in (one if isinstance(one, tuple) else (one,))]
            called, shown = (switch.method, switch.show) if switch is not None and switched else (method, show)
            if called is not method:
                said = {name: value for name, value in said.items() if name in {"start", *typing.get_type_hints(called.options)}}  # type: ignore[attr-defined]
            try:
                result = called(*first, *paths, **said)
            finally:
                terminal.close()
            shown(result, as_json)

        about = (inspect.getdoc(method) or "").replace("``start``", "--from").replace("``", "")
        run.__doc__ = f"{about}\n\n\b\nExample:  {example.strip()}"
        made: Any = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")(run)
        for name, hint in reversed([*own.items(), *(() if closed else OPENS.items())]):
            made = option(name, hint)(made)
        if switch is not None:
            made = click.option(switch.flag, "switched", is_flag=True, help=switch.help)(made)
        for one in reversed(arguments):
            many = one.endswith("...")
            made = click.argument(one.removesuffix("..."), nargs=-1 if many else 1, required=not many, type=PATH)(made)
        return click.command(method.__name__.replace("_", "-"))(made)

    return decorate
