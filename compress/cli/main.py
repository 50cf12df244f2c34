"""The command line: ``compress COMMAND`` or ``python -m compress COMMAND``.

The commands themselves are in ``cli_making``, ``cli_pruning``, ``cli_quantize`` and ``cli_looking``. Torch, onnxruntime and the other
packages of this project are imported inside them, so that ``compress --help`` is instant.

A user's mistake ends here: one line on stderr, exit code 2. Ctrl-C says how to go on, exit code 130. With ``--json`` the result is one JSON
object on stdout and nothing else; progress and remarks go to stderr.
"""

from __future__ import annotations

import click

from .. import __version__
from ..benchmarks.errors import BenchmarkError
from ..errors import CompressError
from ..models.errors import ModelError
from ..train.errors import TrainError
from .benchmark import benchmark, compare, report, throughput
from .inspect import explain, predict, verify
from .options import refuse_torchrun
from .prune import prune, remove_channels, sensitivity
from .quantize import export_onnx, quantize
from .run import run
from .train import train, tune

USER_ERRORS = (CompressError, TrainError, ModelError, BenchmarkError)
# What a board does without: numpy, onnxruntime and click are enough to predict, benchmark, compare and verify.
OPTIONAL = {name: name for name in ("torch", "torchvision", "onnx", "onnxscript", "safetensors", "matplotlib", "jinja2", "optuna")}
OPTIONAL |= {"sklearn": "scikit-learn", "PIL": "pillow"}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="compress")
@click.pass_context
def cli(context: click.Context) -> None:
    """Take a trained vision network to the smallest, fastest file that still reads as well, and prove it.

    \b
    Everything at once:   compress run --model k49 --data digits
    Step by step:         compress train --model k49 --data digits
                          compress prune --model k49 --sparsity 0.8
                          compress remove-channels --model k49 --max-macs 0.35x
                          compress export-onnx --model k49
                          compress quantize --model k49
                          compress benchmark --model k49
                          compress report --model k49
    """
    if context.invoked_subcommand != "train":
        refuse_torchrun(f"{context.invoked_subcommand} runs in one process; torchrun is for `compress train` only, start it without")


MAKING = (train, tune, sensitivity, prune, remove_channels, export_onnx, quantize, run)
LOOKING = (benchmark, report, compare, verify, predict, explain, throughput)
for command in (*MAKING, *LOOKING):
    cli.add_command(command)


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        return cli.main(standalone_mode=False, prog_name="compress") or 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "compress"
        return _refuse(f"{error.format_message().rstrip('.')}; see {command} --help")
    except USER_ERRORS as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        return _refuse(f"this needs {OPTIONAL[error.name]}, which is not installed here; pip install it, or do this on another machine")
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}; nothing was changed there")
    except (click.Abort, KeyboardInterrupt):
        told = "what is finished is kept, and the same command goes on (train, prune and remove-channels: with --resume)"
        click.echo(f"\ncompress: stopped; {told}", err=True)
        return 130


def _refuse(message: str) -> int:
    click.echo(f"compress: {' '.join(message.split())}", err=True)
    return 2
