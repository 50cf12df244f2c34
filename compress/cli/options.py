"""Commands out of functions: ``network.prune`` with its options becomes ``compress prune``, each option with its name, type and help.

What the command line writes otherwise than Python does stands here, and nothing else: ``--image-shape 1x28x28``, ``--mean 0.5,0.5``,
``--option width=8``, ``--max-macs 0.35x``, options that are repeated. Loads click only.
"""

import inspect
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import click

from ..api import options as of
from ..api.calls import SHARED
from ..api.network import open
from ..errors import CompressError
from .completion import completes
from .terminal import Terminal

Show = Callable[[Any, bool], None]  # prints a result, as JSON if the second argument says so
PATH = click.Path(path_type=Path)
# Options that are called otherwise in Python, where one argument holds several.
NAMES = {"options": "option", "sparsities": "sparsity", "groups": "group", "runtimes": "runtime", "variants": "variant", "start": "from"}
START = Annotated[of.File, "Start from this artifact.  [default: the newest fitting one; train: a new network]"]
METAVARS = {
    "data": "NAME|FOLDER|FILE.py:FUNCTION",
    "score": "FILE.py:FUNCTION",
    "model": "NAME",
    "recipe": "FILE|NAME",
    "start": "FOLDER",
    "out": "FOLDER",
    "ship": "FOLDER",
    "storage": "URL|FILE",
    "time_limit": "TIME",
    "max_ram": "SIZE",
    "max_flash": "SIZE",
    "html": "FILE",
    "markdown": "FILE",
}
DEFAULTS = {"grid": Path("predictions.png")}  # what is taken where nothing was said, and Python does not
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


def _shape(text: str) -> tuple[int, int, int]:
    channels, height, width = map(int, text.split("x"))
    return channels, height, width


def _pair(text: str) -> tuple[float, float]:
    low, high = map(float, text.split(","))
    return low, high


SHAPE = Text("CxHxW", _shape, "must be CxHxW, such as 1x28x28")
NUMBERS = Text(
    "N[,N,N]", lambda text: tuple(map(float, text.split(","))), "must be one number or one per channel, such as 0.5 or 0.4,0.5,0.5"
)
RANGE = Text("LOW,HIGH", _pair, "must be two numbers, such as -80,0")
SHARE = Text("0.35x", lambda text: float(text.removesuffix("x")), "must be a share of what the unpruned network costs, such as 0.35x")
PERCENT = Text("PERCENT", lambda text: float(text.strip().removesuffix("%")), "must be a percentage, such as 5%")
SETTING = Text("NAME=VALUE", tomllib.loads, "must be NAME=VALUE with a TOML value, such as widths=[8,16] or dropout=0.2")
EITHER = {"per_channel": "--per-channel/--per-tensor", "per_cost": "--per-cost/--as-it-is"}
# Where click's own type is another one than Python's, or the mark beside Python's.
TYPES = {
    of.File: PATH,
    of.Time: str,
    of.Bytes: str,
    "share": SHARE,
    "percent": PERCENT,
    tuple[int, int, int]: SHAPE,
    tuple[float, ...]: NUMBERS,
    tuple[float, float]: RANGE,
}


def option(name: str, hint: Any) -> click.Option:
    """The click option for an argument ``name`` of the type ``hint``, an ``Annotated`` with its help."""
    *marks, text = hint.__metadata__
    kind = marks[0] if marks else hint.__origin__
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    names = [f"--{NAMES.get(name, name).replace('_', '-')}", name]
    choices = inner if origin is typing.Literal else ()
    how: dict[str, Any] = {"help": text, "metavar": METAVARS.get(name), "default": DEFAULTS.get(name)}
    how["shell_complete"] = completes(name, choices)
    if kind is bool:
        return click.Option([EITHER[name], name] if name in EITHER else names, is_flag=True, **how)
    if origin is typing.Literal:
        return click.Option(names, **how | {"type": str, "metavar": "|".join(inner)})
    if origin in (Sequence, Mapping):
        return click.Option(names, type=SETTING if origin is Mapping else inner[0], multiple=True, **how)
    return click.Option(names, type=TYPES.get(kind, kind), **how)


@dataclass(frozen=True)
class Switch:
    """A flag with which a command calls another method and shows what that returns."""

    flag: str
    help: str
    method: Callable[..., Any]
    show: Show


def command(method: Callable[..., Any], *examples: str, switch: Switch | None = None) -> Callable[[Show], click.Command]:
    """The command that calls ``method``, of a network or a function that needs none, and has ``show`` print what comes back.

    ``examples``: lines for the help, which else is the method's docstring. Arguments of the method besides ``start`` are paths.
    """
    parameters = inspect.signature(method).parameters
    positional = {name: one for name, one in parameters.items() if one.kind <= one.VAR_POSITIONAL and name not in ("self", "start")}
    paths = {name: one.kind is one.VAR_POSITIONAL for name, one in positional.items()}  # and whether there may be several
    own = typing.get_type_hints(getattr(method, "options", object), include_extras=True)
    own |= {"start": START} if "start" in parameters else {}
    own = {name: own[name] for name in sorted(own, key=lambda name: name in ("start", *SHARED, "resume"))}  # its own ones first

    def decorate(show: Show) -> click.Command:
        def run(as_json: bool, switched: bool = False, **given: Any) -> None:
            said = {name: value for name, value in given.items() if value is not None and value != ()}
            opened = {name: said.pop(name) for name in OPENS if name in said and "self" in parameters}  # else they are its own
            if "options" in opened:
                opened["options"] = {key: value for table in opened["options"] for key, value in table.items()}
            files = [path for name, many in paths.items() if many for path in said.pop(name, ())]
            called, shown = (switch.method, switch.show) if switch is not None and switched else (method, show)
            known = inspect.signature(called).parameters  # a switch needs only some of the options
            with closing(Terminal()) as terminal:
                network = [open(**opened, console=terminal)] if "self" in parameters else []
                told = {"console": terminal} if "console" in known else {}
                result = called(*network, *files, **told, **{name: value for name, value in said.items() if name in known})
            shown(result, as_json)

        about = (inspect.getdoc(method) or "").replace("``start``", "--from").replace("``", "")
        params = [
            *(click.Argument([name], nargs=-1 if many else 1, required=not many, type=PATH) for name, many in paths.items()),
            *([click.Option([switch.flag, "switched"], is_flag=True, help=switch.help)] if switch else []),
            *(option(name, hint) for name, hint in {**own, **(OPENS if "self" in parameters else {})}.items()),
            click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object instead of a table."),
        ]
        told = "\n          ".join(examples)
        return click.Command(method.__name__.replace("_", "-"), callback=run, params=params, help=f"{about}\n\n\b\nExample:  {told}")

    return decorate
