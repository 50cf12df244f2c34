"""The same variants on several machines, side by side: what ships on each, in a sentence, and a table of what each of them measured.

By hand: a board on which int8 takes 0.8 of fp32's latency, and a workstation on which it takes 1.2, make "pi4: ship int8; Intel Xeon: ship
fp32". Of several results of one machine (`machine.which`) the newest counts. A row is what has the same name, artifact, runtime and device.
Nothing is compared from one machine to another: each speedup is that beside the baseline of its own result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..formats import factor, milliseconds, printable
from ..machine import Machine, which
from ..results import Measurement, Result
from ..verdict import Verdict

HASH = 8  # characters of an artifact's


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one machine measured of one variant: its latency, its speedup with the interval, and whether it ships there."""

    latency: str
    speedup: str = ""
    ships: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant; ``cells``: one per machine, None where that did not measure it. ``file``: the hash of its artifact, cut."""

    name: str
    file: str
    where: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, kw_only=True)
class Across:
    """``sentence``: what ships on each of the ``machines``; ``rows``: in the order in which variants come up."""

    sentence: str
    machines: tuple[str, ...]
    rows: tuple[Row, ...]


def across(results: Sequence[Result], verdicts: Sequence[Verdict]) -> Across | None:
    """The machines of ``results`` side by side, each with its verdict; None where all are of one."""
    newest: dict[tuple[str, ...], tuple[Result, Verdict]] = {}
    for result, verdict in zip(results, verdicts, strict=True):
        key = which(result.machine)
        if key not in newest or result.created > newest[key][0].created:
            newest[key] = result, verdict
    if len(newest) < 2:
        return None
    machines = _named([result.machine for result, _ in newest.values()])
    rows: dict[tuple[str, ...], dict[str, Cell]] = {}
    for name, (result, verdict) in zip(machines, newest.values(), strict=True):
        for one in result.measurements:
            rows.setdefault((one.name, one.artifact, one.runtime, one.device), {})[name] = _cell(one, result, verdict)
    told = (f"{name}: {_said(verdict)}" for name, (_, verdict) in zip(machines, newest.values(), strict=True))
    return Across(
        sentence=f"{'; '.join(told)}.",
        machines=machines,
        rows=tuple(
            Row(name=name, file=file[:HASH], where=f"{runtime}, {device}", cells=tuple(map(found.get, machines)))
            for (name, file, runtime, device), found in rows.items()
        ),
    )


def _said(verdict: Verdict) -> str:
    return f"ship {printable(verdict.called)}" if verdict.called is not None else "nothing to ship"


def _cell(one: Measurement, result: Result, verdict: Verdict) -> Cell:
    if one.latency is None:
        return Cell(latency=f"not measured: {one.reason}")
    baseline = result.measurements[result.baseline]
    speedup = ", ".join(factor(one.speedup)) if one.speedup else ""
    told = milliseconds(one.latency.p50) + (" (?)" if one.doubts else "")
    return Cell(latency=told, speedup="baseline" if one is baseline else speedup, ships=verdict.ships(one))


def _named(machines: Sequence[Machine]) -> tuple[str, ...]:
    """A name for each: that of the board, else its CPU; with its architecture where two would have the same, and else a number."""
    names = [called(one) for one in machines]
    names = [f"{name}, {one.get('architecture')}" if names.count(name) > 1 else name for name, one in zip(names, machines, strict=True)]
    return tuple(f"{name} ({names[:at].count(name) + 1})" if names.count(name) > 1 else name for at, name in enumerate(names))


def called(machine: Mapping[str, object]) -> str:
    """A machine's name in a sentence."""
    return printable(str(machine.get("board") or machine.get("cpu") or "an unnamed CPU"))
