"""Commands in processes of their own, to be killed or limited: forked from a server that has the large libraries loaded already.

``import torch`` alone takes seconds in each process that a test starts. Otherwise the process does what ``python -m compress`` does, and
processes that it starts itself are started as they always are.
"""

import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

LIBRARIES = ["torch", "torch._dynamo", "onnx", "onnxruntime", "onnxscript", "optuna", "sklearn.datasets", "matplotlib.pyplot"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(LIBRARIES)


class Running:
    """``compress ARGUMENTS`` in ``folder``, which leads a group of processes; what it says goes to files that lie in ``said``.

    ``limit``: one of the system, such as ``RLIMIT_FSIZE``, and how much of it there is.
    """

    def __init__(self, said: Path, arguments: tuple[str, ...], folder: Path, limit: tuple[str, int] | None) -> None:
        self._said, told = said, (list(arguments), str(folder), str(said), dict(os.environ), limit)
        self._process = SERVER.Process(target=_compress, args=told)
        self._process.start()

    @property
    def out(self) -> str:
        return _read(self._said / "out")

    @property
    def err(self) -> str:
        return _read(self._said / "err")

    def runs(self) -> bool:
        return self._process.is_alive()

    def ends_within(self, seconds: float) -> bool:
        self._process.join(seconds)
        return not self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """To itself, and SIGKILL to all that it started too."""
        assert self._process.pid is not None
        if not self._process.is_alive():
            return
        (os.killpg if number == signal.SIGKILL else os.kill)(self._process.pid, number)

    def wait(self, seconds: float = 300) -> int:
        """The exit code, or minus the signal that ended it."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"it runs on after {seconds} s: {self.err}"
        return self._process.exitcode


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _compress(arguments: list[str], folder: str, said: str, environment: dict[str, str], limit: tuple[str, int] | None) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number in (signal.SIGTERM, signal.SIGHUP):  # which tests under nohup ignore
        signal.signal(number, signal.SIG_DFL)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(said, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)  # noqa: PTH118
    from compress import __main__ as program

    sys.modules["__main__"], sys.argv = program, ["compress", *arguments]  # which processes that it starts import
    if limit is not None:
        resource.setrlimit(getattr(resource, limit[0]), (limit[1], limit[1]))
    sys.exit(program.main())
