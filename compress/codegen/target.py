"""Processors that C can be written for: how wide they compute, how they multiply int8, and how a compiler is told.

A target is where the C will run, ``native`` the machine that compiles it. ``lanes`` is the multiple to which channels are padded in memory
and weights in panels: 16 wherever there are vectors, so that the same weights serve AVX-512, AVX2 and NEON; 4 on microcontrollers.

Source: the processor sections of the GCC manual (x86 and ARM options), whose names these are.
"""

from dataclasses import dataclass

from ..errors import CompressError, nearest, shown


@dataclass(frozen=True, kw_only=True)
class Target:
    """One processor.

    ``vector``: float32 in a vector, 1 without vectors. ``dot``: the instruction for products of int8, "" where there is none and int8 may
    lose to float32. ``flags``: what gcc and clang are given, next to ``-std=c11 -O3``. ``lanes``: see the module.
    """

    name: str
    vector: int
    dot: str
    flags: tuple[str, ...]
    lanes: int = 16


_EXACT = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")  # the kernels say themselves where they fuse
_M = ("-mthumb", "-fno-math-errno", "-ffp-contract=off")
TARGETS = {
    target.name: target
    for target in (
        Target(name="native", vector=16, dot="as compiled", flags=("-march=native", "-mprefer-vector-width=512", *_EXACT)),
        Target(name="x86-64-v3", vector=8, dot="pmaddwd", flags=("-march=x86-64-v3", *_EXACT)),
        Target(name="x86-64-v4", vector=16, dot="vpmaddwd", flags=("-march=x86-64-v4", "-mprefer-vector-width=512", *_EXACT)),
        Target(name="aarch64", vector=4, dot="", flags=_EXACT),
        Target(name="aarch64+dotprod", vector=4, dot="sdot", flags=("-march=armv8.2-a+dotprod", *_EXACT)),
        Target(name="cortex-m4", vector=1, dot="", flags=("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", *_M), lanes=4),
        Target(name="cortex-m7", vector=1, dot="", flags=("-mcpu=cortex-m7", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard", *_M), lanes=4),
        Target(name="cortex-m55", vector=1, dot="", flags=("-mcpu=cortex-m55", "-mfloat-abi=hard", *_M), lanes=4),
        Target(name="portable", vector=1, dot="", flags=_EXACT, lanes=4),
    )
}


def target_of(name: str) -> Target:
    """The target of this name. Raises CompressError for another."""
    if name not in TARGETS:
        raise CompressError(f'target (="{shown(name)}") must be a processor that C can be written for; {nearest(name, TARGETS)}')
    return TARGETS[name]
