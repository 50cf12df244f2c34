"""Freed memory kept in the process, so that the next training step need not ask the kernel for it again.

glibc serves every large tensor by mmap and gives it back when it is freed. A training step allocates the same tensors again and again, and
each time the kernel fills their pages with zeros: on a small network a third of the time. Other C libraries are left as they are.

What is freed otherwise may stay too, in holes between what is in use, and in a heap of each thread. After 300 photographs went through
a network in five threads in turns, half a gigabyte was given back, in 40 ms.

Source: mallopt(3), malloc_trim(3).
"""

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """For the rest of this process, allocate tensors from memory that it freed before; returns whether that was possible.

    The process keeps its largest size until it ends, which it would reach again in the next step anyway.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    return all([mallopt(_M_MMAP_THRESHOLD, 1 << 30), mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1), mallopt(_M_TOP_PAD, 64 << 20)])


def give_back_freed_memory() -> bool:
    """Give the kernel what is free in the process by now; returns whether something was."""
    trim = _of_glibc("malloc_trim")
    return trim is not None and bool(trim(0))


def _of_glibc(name: str) -> Any:  # a function, or None
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
