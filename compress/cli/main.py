"""The command line: ``compress COMMAND`` or ``python -m compress COMMAND``.

Commands are loaded when one is called, and torch, onnxruntime and the like inside it, so that ``compress --help`` is instant.

Whatever goes wrong ends here as one line on stderr::

    0    done
    1    proved: slower or less accurate than allowed, or not the file that was made    (compare, verify, report)
    2    the user's to mend: a setting, a file, a full disk, too little memory
    70   a fault of ours; the line says where the traceback lies
    130  stopped by Ctrl-C, 143 and 129 by SIGTERM and SIGHUP; the same command goes on

With ``--json`` the result is one JSON
object on stdout and nothing else; progress and remarks go to stderr.
"""

import errno
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from .. import __version__
from ..benchmarks.errors import BenchmarkError
from ..errors import CompressError, first_line, onnxruntime_errors, refuse_torchrun, shown
from ..models.errors import ModelError
from ..train.errors import TrainError
from .terminal import tell

USER_ERRORS = (CompressError, TrainError, ModelError, BenchmarkError)
# What a board does without, by the extra that has it: without any there is enough to predict, benchmark, report, compare and verify.
EXTRAS = {
    "onnx": ("onnx", "onnx_ir"),
    "pictures": ("PIL",),
    "serve": ("fastapi", "uvicorn", "httptools"),
    "train": ("torch", "torchvision", "onnxscript", "safetensors", "sklearn", "optuna", "matplotlib"),
}
CALLED = {"sklearn": "scikit-learn", "PIL": "pillow", "onnx_ir": "onnx"}
MOST_TOLD = 300  # characters of an error
STOPS = ("SIGTERM", "SIGHUP")
# The words of torch, ONNX Runtime, C++ and the loader of libraries; Python itself raises MemoryError.
NO_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "bad allocation", "failed to map segment")
# What to do about it where the system refuses something.
NEXT = {
    errno.ENOSPC: "make room, and the same command goes on",
    errno.EDQUOT: "make room, and the same command goes on",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), and the same command goes on",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EROFS: "name another --runs, --out or --cache",
}
# The commands, of the module of that name, and what each does in a few words.
COMMANDS = {
    "run": "everything, from a network to a report",
    "train": "train a network; the best epoch is kept",
    "tune": "search for better settings of training",
    "sensitivity": "what each layer, group or module is worth",
    "prune": "zero the weights that matter least",
    "remove-channels": "make it smaller and faster",
    "export-onnx": "one file, proved equal to torch",
    "export-litert": "a .tflite file for LiteRT and phones",
    "export-c": "C for boards that needs nothing",
    "quantize": "the fastest file that still reads as well",
    "benchmark": "measure variants side by side",
    "report": "which variant to ship, and why",
    "compare": "two benchmarks, for CI",
    "throughput": "how fast training is here",
    "predict": "read images: labels and a picture",
    "explain": "draw what a network looks at",
    "verify": "is this still the file that was made",
    "serve": "models behind a port, and a page to draw on",
    "page": "the same page in a folder, run by the browser itself",
    "board": "other machines that time and ask files",
    "data": "decoded pictures on disk; --prune removes them",
    "recipe": "recipes there are; --schema for editors",
    "completion": "of commands and values, for bash, zsh or fish",
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
        tell(formatter.getvalue().rstrip())
    elif context.invoked_subcommand != "train":
        refuse_torchrun(f"{context.invoked_subcommand} runs in one process; torchrun is for `compress train` only, start it without")


def main() -> int:
    """Run the command line; returns the exit code."""
    if sys.stdout is None:  # the next file to be opened would take its number, and get what others print
        return _refuse("stdout is closed; send it to /dev/null where nobody is to read it")
    with _stopped_by(*STOPS) as signals:
        code = _run()
    if code == 130 and signals:
        code = 128 + signals[0]
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # who read it, such as head, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return _refuse(f"stdout: {error.strerror}; what was made is kept") if code in (0, 1) else code
    return code


def _run() -> int:
    try:
        return cli.main(standalone_mode=False, prog_name="compress") or 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "compress"
        return _refuse(f"{error.format_message().rstrip('.')}; {_option_for(error)}see {command} --help")
    except (click.Abort, KeyboardInterrupt):
        with suppress(OSError):
            click.echo("\ncompress: stopped; what is finished is kept, and the same command goes on", err=True)
        return 130
    except Exception as error:  # noqa: BLE001 - here it ends
        told = _told(error)
        return _refuse(told) if told is not None else _fault(error)


def _option_for(error: click.ClickException) -> str:
    """Which option a file was meant for that was named without one."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    named = re.search(r"unexpected extra argument \((\S+\.onnx)\)", error.format_message())
    if context is None or named is None or not any("--onnx" in one.opts for one in context.command.params):
        return ""
    return f"name the file with --onnx {named[1]}, or "


@contextmanager
def _stopped_by(*names: str) -> Iterator[list[int]]:
    """Have these signals stop the command as Ctrl-C does, so that nothing half-written stays; yields those that came.

    One that is ignored, as nohup has it, stays so.
    """
    came: list[int] = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    signals = [getattr(signal, name) for name in names if main and hasattr(signal, name)]
    taken = [one for one in signals if signal.getsignal(one) == signal.SIG_DFL]
    for one in taken:
        signal.signal(one, stop)
    try:
        yield came
    finally:
        for one in taken:
            signal.signal(one, signal.SIG_DFL)


def _told(error: Exception) -> str | None:
    """What went wrong, where that is the user's to know or to mend; None where it is a fault of ours."""
    if isinstance(error, USER_ERRORS):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (extra := next((one for one, has in EXTRAS.items() if error.name in has), None)):
        needed = f"this needs {CALLED.get(error.name or '', error.name)}, which is not installed here"
        return f"{needed}; pip install 'compress-edge[{extra}]', or do this on another machine"
    if "onnxruntime" in sys.modules and isinstance(error, onnxruntime_errors()):
        return f"ONNX Runtime does not compute this file ({first_line(error)}); `compress verify FILE` says what of it holds"
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY):
        return "there is not enough memory for this; take a smaller --batch or fewer images, or close other programs"
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}; {NEXT.get(error.errno, 'nothing was changed there')}"
    return None


def _fault(error: Exception) -> int:
    """Say that it is ours, and where the traceback lies; exit code 70, EX_SOFTWARE of sysexits.h."""
    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="compress-fault-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(trace)
        where = f"the traceback lies in {file.name}"
    except OSError:
        where = f"the traceback: {trace}"
    _refuse(f"this is a fault of ours ({first_line(error)}); please report it, {where}")
    return 70


def _refuse(message: str) -> int:
    text = f"compress: {shown(' '.join(message.split()), 10**6)}"
    # What is too long is a name or value from outside; the rule and the next step stand at the end.
    with suppress(OSError):  # nobody is there to be told
        click.echo(text if len(text) <= MOST_TOLD else f"{text[:150]} ... {text[-140:]}", err=True)
    return 2
