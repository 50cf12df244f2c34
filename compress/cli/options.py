"""The options that commands share, and the terminal they talk to. Loads click only."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import CompressError

Command = Callable[..., Any]


def _options(*options: Command) -> Callable[[Command], Command]:
    """One decorator out of several; the options are shown in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


PATH = click.Path(path_type=Path)
network_options = _options(
    click.option("--model", metavar="NAME", help="k49, emnist, or path/net.py:factory for a network of your own.  [default: k49]"),
    click.option(
        "--option", "option", multiple=True, metavar="NAME=VALUE", help="Option for the factory, as TOML: --option 'widths=[8,16]'."
    ),
    click.option("--image-shape", metavar="CxHxW", help="Image that your network takes.  [default: 1x28x28]"),
    click.option("--mean", metavar="M[,M,M]", help="Mean per channel that your network expects to be subtracted, in [0, 1].  [default: 0]"),
    click.option("--std", metavar="S[,S,S]", help="Standard deviation per channel to divide by, in [0, 1].  [default: 1]"),
)
data_options = _options(
    click.option("--data", metavar="NAME|FOLDER", help="digits, k49, emnist, kmnist, or a folder (npz, IDX or image files)."),
    *(
        click.option(f"--{part}-{what}", type=PATH, metavar="FILE", help=f"The {part} {what} by hand (.npz or IDX), all four.")
        for part in ("train", "test")
        for what in ("images", "labels")
    ),
    click.option("--cache", type=PATH, default=Path("data"), show_default=True, help="Folder for downloaded data sets."),
)
run_options = _options(
    click.option("--recipe", type=PATH, metavar="FILE|NAME", help="TOML recipe, or the name of one; options given here win over it."),
    click.option("--seed", type=int, help="Seed of everything random.  [default: 0]"),
    click.option("--runs", type=PATH, default=Path("runs"), show_default=True, help="Folder of all artifacts."),
    click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where training runs."),
    click.option("--force", is_flag=True, help="Run again even if the inputs are unchanged; replace --out."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."),
)
pretrained_option = click.option(
    "--pretrained", is_flag=True, help="Start from the trained weights of k49 or emnist that come with this package."
)
parent_options = _options(
    click.option(
        "--from",
        "from_",
        type=PATH,
        metavar="FOLDER",
        help="Start from this artifact.  [default: the newest fitting one; train: a new network]",
    ),
    click.option(
        "--weights", type=PATH, metavar="FILE", help="Start from a network trained elsewhere: a .safetensors or .pt/.pth state dict."
    ),
    pretrained_option,
)
tuning_options = _options(
    click.option("--steps", type=int, help="Do it gradually; every step is an artifact.  [default: the recipe's]"),
    click.option("--between", type=int, help="Epochs of fine-tuning after each step but the last.  [default: 1]"),
    click.option("--epochs", type=int, help="Epochs of fine-tuning after the last step; 0 for none.  [default: the recipe's]"),
    click.option("--lr", type=float, help="Learning rate at the start of fine-tuning.  [default: the recipe's]"),
    click.option("--teacher", type=PATH, metavar="FOLDER", help="Unpruned network to learn from.  [default: the parent]"),
    click.option("--distil", type=float, help="Share of the loss that the teacher makes; 0 for labels only.  [default: 0.7]"),
    click.option("--temperature", type=float, help="Of the teacher's probabilities.  [default: 2]"),
    click.option("--features", type=float, help="Weight of the error of the last hidden features; 0 for logits only.  [default: 0]"),
    click.option("--resume", is_flag=True, help="Go on with a fine-tuning that was interrupted."),
)
out_option = click.option("--out", type=PATH, metavar="FOLDER", help="Where the artifact goes.  [default: runs/MODEL/STAGE/KEY]")
benchmark_options = _options(
    click.option("--threads", type=int, help="Threads of each runtime.  [default: 1]"),
    click.option("--rounds", type=int, help="Rounds in which all candidates take a turn, in random order."),
    click.option("--samples", type=int, help="Timed images per candidate and round."),
    click.option("--quick", is_flag=True, help="Leave out other batch sizes and numbers of threads."),
)
report_options = _options(
    click.option("--max-drop", type=float, help="Balanced accuracy that may be lost, in points.  [default: 0.5]"),
    click.option("--max-latency", type=float, metavar="MS", help="Largest p50 allowed, in milliseconds."),
    click.option("--max-size", type=int, metavar="BYTES", help="Largest file allowed."),
)


def refuse_torchrun(told: str) -> None:
    """Raise CompressError where torchrun started several processes of something that one alone may do."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CompressError(told)


class Terminal:
    """Remarks and a progress bar on stderr; the bar is drawn only where somebody watches."""

    def __init__(self) -> None:
        # Of the processes that torchrun started, one speaks.
        self._silent = os.environ.get("RANK", "0") != "0"
        self._watched = sys.stderr.isatty() and not self._silent
        self._width = 0

    def say(self, text: str) -> None:
        self._clear()
        if not self._silent:
            click.echo(text, err=True)

    def progress(self, label: str, done: int, total: int) -> None:
        if self._watched:
            filled = round(24 * done / max(1, total))
            text = f"  [{'#' * filled}{'.' * (24 - filled)}] {100 * done / max(1, total):3.0f}%  {label}"
            click.echo("\r" + text.ljust(self._width), err=True, nl=False)
            self._width = len(text)
            if done >= total:
                self._clear()

    def _clear(self) -> None:
        if self._width:
            click.echo("\r" + " " * self._width + "\r", err=True, nl=False)
            self._width = 0
