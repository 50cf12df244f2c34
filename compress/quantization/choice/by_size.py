"""Which nodes to compute in int8 for a processor that is not here: nothing is timed, so the smallest file within a loss of accuracy wins.

1. *Settings.* They are found as ``search`` finds them, for everything in int8.
2. *Sets.* Each group is taken to int8 alone, and how far the answers move says which ones hurt. Everything stands for election, and
   everything but the quarter and but the half of the groups that move them most.
3. *Proof.* From the most wanted on, each is asked whether it keeps the limit, with the bounds of ``search``. Wanted is the smallest file;
   of those as small, within :data:`AS_SMALL`, the one with most groups in int8, as a tensor takes a quarter of the memory where it is
   computed in int8. A static file also stores the weights of other nodes as int8, so what sets differ by is the nodes that quantize: little
   beside the weights of most networks, and half as much as these in one of 50 small layers, which then is stored small instead.

By hand: of 400 kB in float32, weights stored as int8 take 102 kB, int8 everywhere 108 and loses too much, and without its worst quarter 107
and is proved; that is taken.

Whether int8 is faster there stays unknown, and the verdict says so.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..records import POINTS, Choice, Lost, Setting, Tried, verdict_untimed
from .search import Maker, Readers, decide, settings

AS_SMALL = 1.1  # of the smallest file: what the nodes of a static one take, and weights do not
LEFT_OUT = (0.25, 0.5)  # of the groups, the worst first


def choose_by_size(
    maker: Maker, readers: Readers, *, target: str, max_drop: float, accept_unproved: bool = False, units: Lost = POINTS
) -> Choice:
    """Search as the module says, for the processor called ``target``; the rest is as `search.choose` takes it."""
    cut = False

    def late() -> bool:
        nonlocal cut
        cut = cut or readers.late()
        return cut

    everything = Tried(mode="static", groups=tuple(maker.groups), setting=Setting())
    best, *others = settings(maker, readers, everything, late)
    setting = best.setting or Setting()
    alone: list[Tried] = []
    for name in maker.groups if len(maker.groups) > 1 else ():
        if late():
            break
        readers.progress(f"answers with {name} alone in int8")
        path = maker.static(frozenset([name]), setting)
        alone.append(replace(best, groups=(name,), moved=readers.moved(path), size=path.stat().st_size))
    hurts = [one.groups[0] for one in sorted(alone, key=lambda one: -(one.moved or 0.0))]
    gone = {round(share * len(hurts)) or 1 for share in LEFT_OUT} if len(alone) == len(maker.groups) else set()
    sets = [tuple(name for name in maker.groups if name not in hurts[:count]) for count in (0, *sorted(gone))]

    candidates: dict[Path, dict[str, Any]] = {maker.float32: {"mode": "float32", "moved": 0.0, "drop": 0.0, "bound": 0.0, "proved": True}}
    candidates |= {path: {"mode": mode} for mode, path in maker.others().items()}
    for one in filter(None, sets):
        candidates[maker.static(frozenset(one), setting)] = {"mode": "static", "groups": one, "setting": setting}
    files = list(candidates)
    finalists = [Tried(size=file.stat().st_size, **about) for file, about in candidates.items()]
    pool = range(len(finalists))
    finalists, winner, waiting = decide(finalists, files, pool, _preferred, readers, max_drop, accept_unproved)
    verdict = verdict_untimed(winner, waiting, finalists, max_drop, units, target)
    if cut:
        verdict += " The search was cut short; with more time it may find a better file."
    decided: Any = "bound" if winner.proved else "point estimate"
    tried = (best, *others, *alone)
    return Choice(best=winner, finalists=tuple(finalists), tried=tried, verdict=verdict, decided=decided, complete=not cut)


def _preferred(finalists: Sequence[Tried], pool: Sequence[int]) -> int:
    """The smallest; of what is as small the one with most groups in int8, and of these the smallest."""
    smallest = min(finalists[index].size or 0 for index in pool)
    as_small = [index for index in pool if (finalists[index].size or 0) <= AS_SMALL * smallest]
    return min(as_small, key=lambda index: (-len(finalists[index].groups), finalists[index].size or 0))
