"""The command line: ``compress COMMAND`` or ``python -m compress COMMAND``.

Commands are loaded when one is called, and torch, onnxruntime and the like inside it, so that ``compress --help`` is instant.

A user's mistake ends here: one line on stderr, exit code 2. Ctrl-C says how to go on, exit code 130. With ``--json`` the result is one JSON
object on stdout and nothing else; progress and remarks go to stderr.
"""

import click

from .. import __version__
from ..benchmarks.errors import BenchmarkError
from ..errors import CompressError, refuse_torchrun, shown
from ..models.errors import ModelError
from ..train.errors import TrainError

USER_ERRORS = (CompressError, TrainError, ModelError, BenchmarkError)
# What a board does without: numpy, onnxruntime and click are enough to predict, benchmark, compare and verify.
OPTIONAL = {name: name for name in ("torch", "torchvision", "onnx", "onnxscript", "safetensors", "matplotlib", "jinja2", "optuna")}
OPTIONAL |= {"sklearn": "scikit-learn", "PIL": "pillow"}
MOST_TOLD = 300  # characters of an error
# The commands, of the module of that name, and what each does in a few words.
COMMANDS = {
    "run": "everything, from a network to a report",
    "train": "train a network; the best epoch is kept",
    "tune": "search for better settings of training",
    "sensitivity": "what each layer, group or module is worth",
    "prune": "zero the weights that matter least",
    "remove-channels": "make it smaller and faster",
    "export-onnx": "one file, proved equal to torch",
    "quantize": "the fastest file that still reads as well",
    "benchmark": "measure variants side by side",
    "report": "which variant to ship, and why",
    "compare": "two benchmarks, for CI",
    "throughput": "how fast training is here",
    "predict": "read images: labels and a picture",
    "explain": "draw what a network looks at",
    "verify": "is this still the file that was made",
    "recipe": "recipes there are; --schema for editors",
}


class Commands(click.Group):
    """Loads the commands when one is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        from . import commands

        return getattr(commands, cmd_name.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands (each has --help with an example)"):
            formatter.write_dl([*COMMANDS.items()])


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="compress")
@click.pass_context
def cli(context: click.Context) -> None:
    """Take a trained vision network to the smallest, fastest file that still reads as well, and prove it.

    Start with:  compress run --model k49 --data digits
    """
    if context.invoked_subcommand is None:
        formatter = context.make_formatter()
        cli.format_usage(context, formatter)
        cli.format_help_text(context, formatter)
        cli.format_commands(context, formatter)
        click.echo(formatter.getvalue(), nl=False)
    elif context.invoked_subcommand != "train":
        refuse_torchrun(f"{context.invoked_subcommand} runs in one process; torchrun is for `compress train` only, start it without")


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
        click.echo("\ncompress: stopped; what is finished is kept, and the same command goes on", err=True)
        return 130


def _refuse(message: str) -> int:
    text = f"compress: {shown(' '.join(message.split()), 10**6)}"
    # What is too long is a name or value from outside; the rule and the next step stand at the end.
    click.echo(text if len(text) <= MOST_TOLD else f"{text[:150]} ... {text[-140:]}", err=True)
    return 2
