"""``compress verify`` of a folder of ``compress export-c``: its files are those that were made, they compile, and its test passes.

To compile and run what lies in a folder is to run it: that happens only to files that are as ``c.json`` says, which tells accidents, not
forgers, with the flags of the target that are known here, and in a folder of its own that is gone afterwards.

``run`` that begins with ``ssh`` (``ssh -p 2222 board``) sends the program through the connection into a new folder there, starts it, and
removes the folder; another command is given the path of the program here.

Refused: no compiler, and a target that this machine is not, where nobody says what runs its programs.
"""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from ...codegen.target import Target
from ...errors import CompressError, shown
from ..verify import Check, Proof
from .compilers import STANDARD, failed, found, runs_here, usual
from .record import RECORD, changed, read_made

TEST = "test"
# What a shell on a board is told; the program comes as its input.
THERE = 'place=$(mktemp -d) && cat > "$place/test" && chmod +x "$place/test" && "$place/test"; code=$?; rm -rf "$place"; exit $code'


def prove(folder: Path, cc: str | None, run: str | None) -> Proof:
    """Compile the self-test of ``folder`` with ``cc`` and start it with ``run``, each a command, by default what is usual for the target.

    Raises:
        CompressError: as the module says, or ``c.json`` is damaged.
    """
    made = read_made(folder)
    if odd := changed(folder, made):
        detail = f"{', '.join(odd)}: changed, cut or missing, so nothing was compiled"
        return Proof(folder=folder, checks=(Check(name="hash", passed=False, detail=detail),))
    compiler, runner = _compiler(made.processor, cc), _command("run", run) if run is not None else []
    if run is None and not runs_here(made.processor):
        such = " such as --run 'qemu-aarch64 -L /usr/aarch64-linux-gnu'" if made.processor.family == "aarch64" else ""
        raise CompressError(f"target (={made.target}) is not this machine; say with --run what runs its programs{such}")
    checks = [Check(name="hash", passed=True, detail=f"SHA-256 of {len(made.files)} files as {RECORD} says")]
    with tempfile.TemporaryDirectory() as scratch:
        program, sources = Path(scratch, TEST), [folder.absolute() / name for name in (f"{TEST}.c", f"{made.name}.c")]
        told = failed([*compiler, *STANDARD, *made.processor.flags, "-o", program, *sources, "-lm"], Path(scratch))
        checks.append(Check(name="compiles", passed=not told, detail=told or f"{shlex.join(compiler)} for {made.target}"))
        if not told:
            checks.append(_self_test(runner, program))
    return Proof(folder=folder, checks=tuple(checks))


def _command(name: str, text: str) -> list[str]:
    """The words of a command whose program is there."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CompressError(f"{name} (={shown(text)}) must be a command: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise CompressError(
            f"{name} (={shown(text)}) must be a program that is installed here, with its options; install it or name another"
        )
    return words


def _compiler(target: Target, cc: str | None) -> list[str]:
    if cc is not None:
        return _command("cc", cc)
    names = usual(target)
    if (name := found(names)) is None:
        looked = f" (looked for {', '.join(names)})" if names else ""
        raise CompressError(f"there is no C compiler for {target.name} here{looked}; install one, or name it with --cc")
    return [name]


def _self_test(runner: list[str], program: Path) -> Check:
    there = bool(runner) and Path(runner[0]).name == "ssh"
    command = [*runner, THERE] if there else [*runner, str(program)]
    with program.open("rb") if there else Path(os.devnull).open("rb") as given:
        done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, errors="replace", stdin=given)
    said = shown((done.stdout.strip() or done.stderr.strip() or "it says nothing").splitlines()[0], 160)
    code = done.returncode
    ended = f"; ended by {signal.Signals(-code).name}" if code < 0 else f"; exit code {code}" if code else ""
    return Check(name="self-test", passed=code == 0, detail=f"{said}{ended}")
