"""Files and folders that are whole or not there, whatever happens meanwhile: a kill, a full disk, another process that makes the same.

What is new is written beside its place, synced, and renamed. A folder in the making is its own lock::

    runs/k49/train/.3f9a0c51be27.partial/    its maker holds the lock of it; who wants to make the same waits, and then finds it made
    runs/k49/train/3f9a0c51be27/             whole

The lock dies with its holder, so a folder that nobody holds was left by a process that was killed, and goes.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it, so that neither a kill nor another process that does the same leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def claimed(target: Path, waits: Callable[[], object]) -> Iterator[Path]:
    """An empty folder beside ``target`` for the one process that makes it; another one waits, once it has called ``waits``.

    The folder is its own lock, which dies with its holder. What is not published is removed, and so is what killed processes left.
    """
    new_folders = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        for left in filter(Path.is_dir, target.parent.glob(".*.partial")):
            with locked(left, wait=None) as free:
                if free:
                    shutil.rmtree(left, ignore_errors=True)
        with locked(target.with_name(f".{target.name}.partial"), wait=waits, make=True) as folder:
            assert folder is not None, "it waited"
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        for folder in new_folders:
            with suppress(OSError):  # something lies in it
                folder.rmdir()


def publish(folder: Path, target: Path) -> None:
    """Make ``folder`` ``target``, at once where the system can swap two folders; what was there is removed."""
    for path in (*folder.iterdir(), folder):
        sync(path)
    old = target.with_name(f".{target.name}.old.partial")
    if target.exists():
        with locked(target, wait=None):  # under the name of ``folder`` nobody is to take it for a new one
            if not exchanged(folder, target):
                target.rename(old)
                try:
                    folder.rename(target)
                except OSError:
                    old.rename(target)
                    raise
            else:
                folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(target)
    sync(target.parent)


@contextmanager
def locked(folder: Path, wait: Callable[[], object] | None, make: bool = False) -> Iterator[Path | None]:
    """Hold the lock of ``folder``, which a process gives back when it ends, however it ends.

    Args:
        wait: called before waiting for another process that holds it; None not to wait, but to yield None.
        make: make the folder where it is not there, and take away what lies in it. On a system or disk without such locks, and on Windows,
            that is a folder of this process's own, so that two processes that make the same thing both do.
    """
    descriptor, own = None, folder.with_name(f"{folder.name.removesuffix('.partial')}.{os.getpid()}.partial")
    try:
        descriptor = _lock(folder, wait, make)
    except (ImportError, OSError):  # no such locks here
        if make:
            with suppress(OSError):
                folder.rmdir()  # unless there is something in it, and so another process at it
            shutil.rmtree(own, ignore_errors=True)  # of an earlier process of this number
            own.mkdir()
    try:
        if descriptor is not None and make:
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield folder if descriptor is not None else own if make else None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path, wait: Callable[[], object] | None, make: bool) -> int | None:
    """A descriptor that holds the lock, or None where there is none to have without waiting."""
    while True:
        if make:
            folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            if make:
                continue
            return None
        with ExitStack() as stack:
            stack.callback(os.close, descriptor)
            if not _taken(descriptor, wait):
                return None
            here = identity(folder)
            if here is not None and here[:2] == _told(os.fstat(descriptor))[:2]:  # else its holder has given it another name
                stack.pop_all()
                return descriptor


def _taken(descriptor: int, wait: Callable[[], object] | None) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if wait is None:
            return False
        wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return True


def exchanged(one: Path, other: Path) -> bool:
    """Whether the two have changed places, so that nobody ever sees neither: Linux's renameat2(2), macOS's renamex_np(2)."""
    if os.name == "nt":
        return False
    import ctypes

    system, names = ctypes.CDLL(None), (os.fsencode(one), os.fsencode(other))
    here, swap = -100, 2  # AT_FDCWD; RENAME_EXCHANGE is 2, and so is RENAME_SWAP
    if hasattr(system, "renameat2"):
        return bool(system.renameat2(here, names[0], here, names[1], swap) == 0)
    return hasattr(system, "renamex_np") and bool(system.renamex_np(*names, swap) == 0)


def identity(path: Path) -> tuple[int, int, int] | None:
    """What tells a folder from another that takes its name, and its number too, once that is free; None where there is none."""
    try:
        return _told(path.stat())
    except OSError:
        return None


def _told(about: os.stat_result) -> tuple[int, int, int]:
    return about.st_dev, about.st_ino, about.st_ctime_ns


def sync(path: Path) -> None:
    """Have the disk keep a file, or a folder where the system can."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
