"""``compress completion bash``: what completes commands, options and their values in a shell; ``--install`` puts it where shells look.

Commands and options are click's own; values are those of `VALUES`, the choices of an option, and what lies in ``--runs``. The words are
looked up by the command itself, so they are of the version that is installed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from ..errors import CompressError
from .terminal import tell

VARIABLE = "_COMPRESS_COMPLETE"
# Where each shell looks, and what has to be there besides.
PLACES = {
    "bash": (Path(".local/share/bash-completion/completions/compress"), "open a new shell; this needs the package bash-completion"),
    "zsh": (
        Path(".zfunc/_compress"),
        "have `fpath+=~/.zfunc` before `compinit` in ~/.zshrc, and open a new shell",
    ),
    "fish": (Path(".config/fish/completions/compress.fish"), "open a new shell"),
}
VALUES = {
    "model": ("k49", "emnist", "torchvision:mobilenet_v3_small", "timm:mobilenetv4_conv_small"),
    "data": ("digits", "k49", "emnist", "kmnist"),
    "device": ("auto", "cpu", "cuda"),
    "mode": ("auto", "static", "dynamic", "int8-weights", "fp16-weights", "float32"),
    "method": ("minmax", "percentile", "entropy", "mse"),
    "granularity": ("weight", "channel", "module"),
    "importance": ("auto", "l2", "bn", "taylor", "fluctuation", "bn-fluctuation"),
    "target": (
        *("native", "portable", "x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64", "aarch64+dotprod"),
        *("cortex-a53", "cortex-a72", "cortex-a76", "cortex-m4", "cortex-m7", "cortex-m55"),
    ),
    "runtimes": ("onnxruntime", "openvino", "c", "litert", "torch", "torch.compile", "all"),
    "pattern": ("2:4",),
    "input": ("uint8", "float32"),
}
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completes(name: str, choices: tuple[str, ...] = ()) -> Complete | None:
    """What completes the values of the option ``name``; None where that is left to the shell."""
    if name == "recipe":
        return _recipes
    if name in ("start", "teacher"):
        return _artifacts
    words = choices or VALUES.get(name, ())

    def complete(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
        found = [CompletionItem(word) for word in words if word.startswith(typed)]
        return found if found or name not in ("data", "model") else [CompletionItem(typed, type="file")]

    return complete if words else None


def _recipes(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    names = sorted(path.stem for path in (Path(__file__).parents[1] / "recipes").glob("*.toml"))
    return [CompletionItem(name) for name in names if name.startswith(typed)] or [CompletionItem(typed, type="file")]


def _artifacts(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
    """Artifacts in ``--runs``, the newest first, of ``--model`` where one is named."""
    runs, model = Path(context.params.get("runs") or "runs"), context.params.get("model") or "*"
    name = model if model == "*" or model.isidentifier() else "*"
    found = sorted(runs.glob(f"{name}/*/*/artifact.json"), key=lambda path: -path.stat().st_mtime)
    fitting = [str(path.parent) for path in found if str(path.parent).startswith(typed)]
    return [CompletionItem(path) for path in fitting] or [CompletionItem(typed, type="dir")]


def script(shell: str) -> str:
    """What the shell is to source."""
    from .main import cli

    kind: Any = get_completion_class(shell)
    return kind(cli, {}, "compress", VARIABLE).source_template % kind(cli, {}, "compress", VARIABLE).source_vars()


@click.command()
@click.argument(
    "shell",
    metavar="bash|zsh|fish",
    shell_complete=lambda _, __, typed: [CompletionItem(name) for name in PLACES if name.startswith(typed)],
)
@click.option("--install", is_flag=True, help="Write it where this shell looks for completions, instead of printing it.")
def completion(shell: str, install: bool) -> None:
    """Print what completes commands, options and their values in bash, zsh or fish.

    \b
    Example:  compress completion bash --install
              source <(compress completion bash)
    """
    if shell not in PLACES:
        raise CompressError(f"shell (={shell}) must be {', '.join(PLACES)}; on another, complete by hand")
    if not install:
        tell(script(shell))
        return
    place, then = PLACES[shell]
    target = Path.home() / place
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(script(shell) + "\n", encoding="utf-8")
    tell(f"{target}\n{then}")
