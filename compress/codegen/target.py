"""Processors that C can be written for: how wide they compute, how they multiply int8, and how a compiler is told; and which 8-bit types
ONNX Runtime computes there fast and without overflow.

A target is where the C will run, ``native`` the machine that compiles it. ``lanes`` is the multiple to which channels are padded in memory
and weights in panels: 16 wherever there are vectors, so that the same weights serve AVX-512, AVX2 and NEON; 4 on microcontrollers.

Source: the processor sections of the GCC manual (x86 and ARM options), whose names these are.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import CompressError, nearest, shown


@dataclass(frozen=True, kw_only=True)
class Target:
    """One processor.

    ``vector``: float32 in a vector, 1 without vectors. ``dot``: the instruction for products of int8, "" where there is none and int8 may
    lose to float32. ``flags``: what gcc and clang are given, next to ``-std=c11 -O3``. ``lanes``: see the module.

    ``family``: whose compilers make programs for it; "" for any machine. ``activations``: their 8-bit type in ONNX Runtime there, "" where
    that does not run or nobody knows the processor; ``reduce_range``: whether weights have 7 bits there, see ``ort_quantizer.types_for``.
    """

    name: str
    family: Literal["x86-64", "aarch64", "cortex-m", ""]
    vector: int
    dot: str
    flags: tuple[str, ...]
    lanes: int = 16
    activations: Literal["uint8", "int8", ""] = ""
    reduce_range: bool = False


_EXACT = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")  # the kernels say themselves where they fuse
_WIDE = "-mprefer-vector-width=512"
_M = ("-mthumb", "-fno-math-errno", "-ffp-contract=off")
# What the levels of x86-64 ask for has no VNNI, also where the processors that have AVX-512 mostly do.
_X86: dict[str, Any] = {"family": "x86-64", "activations": "uint8", "reduce_range": True}
_ARM: dict[str, Any] = {"family": "aarch64", "vector": 4, "activations": "int8"}
_MICRO: dict[str, Any] = {"family": "cortex-m", "vector": 1, "dot": "", "lanes": 4}
TARGETS = {
    target.name: target
    for target in (
        Target(name="native", family="", vector=16, dot="as compiled", flags=("-march=native", _WIDE, *_EXACT)),
        Target(name="x86-64-v2", vector=1, dot="", flags=("-march=x86-64-v2", *_EXACT), lanes=4, **_X86),
        Target(name="x86-64-v3", vector=8, dot="pmaddwd", flags=("-march=x86-64-v3", *_EXACT), **_X86),
        Target(name="x86-64-v4", vector=16, dot="vpmaddwd", flags=("-march=x86-64-v4", _WIDE, *_EXACT), **_X86),
        Target(name="aarch64", dot="", flags=_EXACT, **_ARM),
        Target(name="aarch64+dotprod", dot="sdot", flags=("-march=armv8.2-a+dotprod", *_EXACT), **_ARM),
        Target(name="cortex-a53", dot="", flags=("-mcpu=cortex-a53", *_EXACT), **_ARM),
        Target(name="cortex-a72", dot="", flags=("-mcpu=cortex-a72", *_EXACT), **_ARM),
        Target(name="cortex-a76", dot="sdot", flags=("-mcpu=cortex-a76", *_EXACT), **_ARM),
        Target(name="cortex-m4", flags=("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", *_M), **_MICRO),
        Target(name="cortex-m7", flags=("-mcpu=cortex-m7", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard", *_M), **_MICRO),
        Target(name="cortex-m55", flags=("-mcpu=cortex-m55", "-mfloat-abi=hard", *_M), **_MICRO),
        Target(name="portable", family="", vector=1, dot="", flags=_EXACT, lanes=4),
    )
}


def target_of(name: str) -> Target:
    """The target of this name. Raises CompressError for another."""
    if name not in TARGETS:
        raise CompressError(f'target (="{shown(name)}") must be a processor that C can be written for; {nearest(name, TARGETS)}')
    return TARGETS[name]


def unmeasured(name: str) -> Target:
    """The target of this name, as one whose 8-bit types are known without a machine of its kind.

    Raises CompressError for a name that is unknown, or of no processor that ONNX Runtime is known to run on.
    """
    known = [one.name for one in TARGETS.values() if one.activations]
    target = TARGETS.get(name)
    if target is not None and target.activations:
        return target
    if name == "native":
        raise CompressError("target (=native) is this machine, where candidates are timed; leave it out")
    if target is not None:
        raise CompressError(
            f"target (={name}) is not known to run ONNX Runtime; leave it out, and name it when `compress export-c` writes C"
        )
    raise CompressError(f'target (="{shown(name)}") must be a processor whose 8-bit types are known; {nearest(name, known)}')
