"""How small and how fast a network is to become: the settings of ``compress remove-channels``, and those of each of its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from ...artifacts.project import GOALS
from ...artifacts.records import plain, seconds_of
from ...benchmarks.formats import bytes_of
from ...codegen.target import target_of
from ...errors import CompressError
from ..boards.compilers import compiler_here

MEMORY = ("max_ram", "max_flash")  # goals in bytes
Bytes = int | float | str
Share = Annotated[float, Meta(gt=0, lt=1, description="times what the teacher costs, 0.35x leaves about a third")]


@dataclass(frozen=True, kw_only=True)
class RemoveConfig:
    """Channel removal in ``steps`` (3 if none is given, or 1 where nothing is learnt between them), each followed by fine-tuning:
    ``epochs`` after the last, ``between`` after every other.

    Goals: ``sparsity`` (fraction of the removable channels to remove), or any of ``max_macs``, ``max_size`` (of the weights) and
    ``max_latency`` (measured here in ``runtime``, one image on one thread), each as a fraction of the teacher's, and of ``max_ram`` and
    ``max_flash``, bytes (45kB) of arena and of weights as C for ``target`` in ``precision``; all that are given must be met.
    ``bypass``: modules to leave out: names, patterns such as ``blocks.*.spatial``, or "auto". ``importance``: see
    :mod:`compress.channels.scores`; "auto" tries each, as it is and ``per_cost`` (of the goal that its removal saves), and takes the one
    that costs least. ``scope`` and ``floor``: see
    :mod:`compress.channels.choose`; scope "sensitivity" gives each group the sparsity that its own curve bears. ``round_to``: widths are
    multiples of this many channels; 0 measures which multiple is fast. ``images``: how many training images importance looks at, and
    the cut network is reconstructed on, at most 1,024.
    ``time_limit``: "90s", "5m", "1h" or seconds in which all steps together search for what goes, training apart; they then take the best
    so far, and say so.
    """

    sparsity: Annotated[float, Meta(gt=0, lt=1, description="0.5 removes half of the channels")] | None = None
    max_macs: Share | None = None
    max_size: Share | None = None
    max_latency: Share | None = None
    max_ram: Bytes | None = None
    max_flash: Bytes | None = None
    target: str = "native"
    precision: Literal["int8", "float32"] = "int8"
    runtime: Annotated[Literal["onnxruntime", "c"], Meta(description="where latency is measured")] = "onnxruntime"
    bypass: tuple[str, ...] = ()
    importance: Literal["auto", "l2", "bn", "taylor", "fluctuation", "bn-fluctuation"] = "auto"
    per_cost: bool = True
    scope: Literal["global", "group", "sensitivity"] = "global"
    round_to: Annotated[int, Meta(ge=0, description="0 measures which widths are fast, 8 makes them multiples of 8")] = 0
    floor: Annotated[float, Meta(ge=0, lt=1, description="0.1 keeps a tenth of every group")] = 0.1
    images: Annotated[int, Meta(ge=1, description="2048 is the default")] = 2048
    steps: Annotated[int, Meta(ge=1, le=100, description="3 is the default, and 1 without fine-tuning")] | None = None
    between: Annotated[int, Meta(ge=0, description="epochs")] = 1
    epochs: Annotated[int, Meta(ge=0, description="0 for no fine-tuning")] = 6
    lr: Annotated[float, Meta(gt=0, description="a third of the training's is usual")] = 0.001
    time_limit: str | float | None = None

    def __post_init__(self) -> None:
        memory = self.memory
        if self.sparsity is not None and (others := [*self.limits, *memory]):
            raise CompressError(f"sparsity (={self.sparsity}) and {', '.join(others)} exclude each other; name the one that counts")
        target_of(self.target)
        if self.runtime == "c":
            compiler_here("runtime (=c)")
        if self.time_limit is not None:
            seconds_of(self.time_limit, "time_limit")

    @property
    def limits(self) -> dict[str, float]:
        """The goals that are fractions, those that are given."""
        return {name: value for name in GOALS if (value := getattr(self, name)) is not None}

    @property
    def memory(self) -> dict[str, int]:
        """The goals in bytes, likewise."""
        return {name: bytes_of(value, name) for name in MEMORY if (value := getattr(self, name)) is not None}

    @property
    def decides(self) -> dict[str, Any]:
        """Its settings, for a key: those that older versions had not only where they are used."""
        without = {name for name in MEMORY if getattr(self, name) is None} | (set() if self.memory else {"target", "precision"})
        without |= {"runtime"} if self.runtime == "onnxruntime" else set()
        return {name: value for name, value in plain(self).items() if name not in without} | self.memory

    def in_steps(self, whole: Mapping[str, int] | None = None) -> list[RemoveConfig]:
        """One config per step: what is left shrinks by the same factor in each, of ``whole`` bytes too, and modules are bypassed in the
        first.

        0.125x in three steps: 0.5x, 0.25x, 0.125x. With scope "sensitivity" a step that only bypasses comes before, as what the
        groups bear is measured without those modules.
        """
        if self.sparsity is None and not self.limits and not self.memory and not self.bypass:
            many = "--sparsity 0.5, --max-macs 0.35x, --max-size 0.25x, --max-latency 0.5x, --max-ram 45kB or --max-flash 0.1MB"
            raise CompressError(f"a goal is needed: {many}, or --bypass")
        none: dict[str, Any] = dict.fromkeys(("sparsity", *GOALS, *MEMORY))
        first = self.scope == "sensitivity" and bool(self.bypass)
        made = [dataclasses.replace(self, **none, epochs=self.between, steps=1, between=0)] if first else []
        steps = self.steps or (3 if self.epochs else 1)
        for step in range(1, steps + 1):
            share = step / steps
            goals: dict[str, Any] = {name: value**share if step < steps else value for name, value in self.limits.items()}
            goals |= {name: round(most**share * max(most, (whole or {}).get(name, 0)) ** (1 - share)) for name, most in self.memory.items()}
            if self.sparsity is not None:
                goals["sparsity"] = 1 - (1 - self.sparsity) ** share if step < steps else self.sparsity
            epochs = self.epochs if step == steps else self.between
            bypass = self.bypass if step == 1 and not first else ()
            limit = None if self.time_limit is None else seconds_of(self.time_limit, "time_limit") / steps
            made.append(dataclasses.replace(self, **goals, epochs=epochs, bypass=bypass, steps=1, between=0, time_limit=limit))
        return made
