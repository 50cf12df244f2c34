"""The report's plots as SVG that lies in the page: every point tells its figures, follows the page's colours, and carries its names.

The page's script only hides and marks what is drawn here; so with scripts off nothing is missing. Of a runtime that would squeeze the rest
there are two pictures, with it and without. Names cover neither another name, a point nor the front: the nearest free place wins, and
where a name has none, a number stands for it, which the key under the plot explains. Letters are taken to be as wide as those of a wide
font, as nobody knows the reader's. Refuses nothing.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..formats import Units, milliseconds, size, title, units
from ..limits import Limits
from ..plot import AXES, MARKERS, pareto_front, ships_as, x_of, y_of
from ..plot import names as names_of
from ..plot import shown as shown_of
from ..results import Measurement, Result

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Spots = Sequence[tuple[float, float]]

SIZES = {"wide": (840, 440), "narrow": (360, 380)}  # pixels
LEFT, RIGHT, TOP, BOTTOM = 72, 12, 12, 46  # around the frame
LETTER, LINE = 12, 14  # pixels: the size of letters, and the height of a line
SQUEEZED = 2  # what reaches so many times as far as the rest squeezes it
LOGARITHMIC, ERRORS = 8, 4  # from so many times the least on, an axis is logarithmic; that of accuracy by what is misread
STEPS = (1, 1.5, 2, 3, 5, 7)
# Where a name may stand: beside its point, above, below, and between these, to the right and downwards.
SIDES: tuple[tuple[float, float], ...] = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
SIDES += ((1, -0.5), (1, 0.5), (-1, -0.5), (-1, 0.5), (0.5, -1), (0.5, 1), (-0.5, -1), (-0.5, 1))


@dataclass(frozen=True, kw_only=True)
class Point:
    """A variant as it is marked: where, with which reach of the interval, what it says of itself, and as what it may ship."""

    name: str
    label: str
    kind: str
    sign: str
    x: float
    low: float
    high: float
    y: float
    told: str
    ships: list[str]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From figures to pixels: linear, logarithmic, or ``error``, logarithmic in what is lacking to 100."""

    low: float
    high: float
    start: float
    end: float
    kind: str = "linear"

    def __call__(self, value: float) -> float:
        low, high, at = map(self._bent, (self.low, self.high, value))
        return round(self.start + (self.end - self.start) * (at - low) / (high - low), 1)

    def _bent(self, value: float) -> float:
        if self.kind == "linear":
            return value
        return math.log(value) if self.kind == "log" else -math.log(max(100 - value, 1e-9))

    @property
    def ticks(self) -> list[float]:
        """Round numbers within, some five of them."""
        if self.kind == "linear":
            raw = (self.high - self.low) / 7
            unit = 10.0 ** math.floor(math.log10(raw))
            step = next(unit * one for one in (1, 2, 2.5, 5, 10) if unit * one >= raw)
            return [round(step * n, 10) for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        low, high = (self.low, self.high) if self.kind == "log" else (100 - self.high, 100 - self.low)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [
            [one * 10.0**power for power in powers for one in steps if low <= one * 10.0**power <= high] for steps in (STEPS, (1, 2, 5))
        ]
        chosen = found[1] if len(found[1]) > 2 else found[0]
        return [round(one if self.kind == "log" else 100 - one, 10) for one in chosen]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One plot: its legend as ``(kind, sign as SVG, hidden at first)``, and per layout and shape the picture and its key."""

    axis: str
    legend: tuple[tuple[str, str, bool], ...]
    pictures: tuple[tuple[str, str, str, str], ...]  # layout (all, rest), shape, SVG, key


def chart(result: Result, limits: Limits, ship: str | None, axis: str, told: Mapping[str, str]) -> Chart:
    """Accuracy against ``latency`` or ``size``, of a result in which something was measured.

    ``told``: by the titles of the measurements, what a point says of its drop.
    """
    points = _points(result, axis, told)
    squeezing = _squeezing(points)
    layouts = {"all": points} | ({"rest": [one for one in points if one.kind not in squeezing]} if squeezing else {})
    lines = _limit_lines(result, limits, axis)
    pictures = [
        (layout, shape, *_picture(some, shape, axis, units(result), ship, lines)) for layout, some in layouts.items() for shape in SIZES
    ]
    kinds = {one.kind: one.sign for one in points}
    legend = [
        (kind, f'<svg viewBox="0 0 14 14" aria-hidden="true">{_sign(sign, 7, 7)}</svg>', kind in squeezing) for kind, sign in kinds.items()
    ]
    return Chart(axis=axis, legend=tuple(legend), pictures=tuple(pictures))


def _points(result: Result, axis: str, told: Mapping[str, str]) -> list[Point]:
    measured = sorted(shown_of(result, axis), key=lambda one: (x_of(one, axis), -y_of(one)))
    return [
        Point(name=one.name, label=label, kind=f"{one.runtime}, {one.device}", sign=MARKERS[one.runtime, one.device],
              x=x_of(one, axis), y=y_of(one), told=_told(one, units(result), told.get(title(one), "")),
              ships=ships_as(one, result, axis), **_reach(one, axis))
        for one, label in zip(measured, names_of(measured), strict=True)
    ]  # fmt: skip


def _reach(one: Measurement, axis: str) -> dict[str, float]:
    x = x_of(one, axis)
    ends = (1e3 * one.latency.low, 1e3 * one.latency.high) if one.latency and axis == "latency" else (x, x)
    return dict(zip(("low", "high"), ends, strict=True))


def _told(one: Measurement, told: Units, drop: str) -> str:
    assert one.latency is not None
    interval = " to ".join(milliseconds(end, unit=False) for end in (one.latency.low, one.latency.high))
    parts = [f"{milliseconds(one.latency.p50)} ({interval})", f"{told.name} {told.value(told.of_one(one))}", drop, size(one.size_bytes)]
    doubt = "; doubtful" if one.doubts else ""
    return f"{title(one)}: {', '.join(filter(None, parts))}{doubt}"


def _squeezing(points: Sequence[Point]) -> set[str]:
    """Kinds of torch that reach more than twice as far as all that runs elsewhere."""
    rest = max((one.x for one in points if not one.kind.startswith("torch")), default=math.inf)
    return {one.kind for one in points if one.kind.startswith("torch") and one.x > SQUEEZED * rest}


def _limit_lines(result: Result, limits: Limits, axis: str) -> dict[str, float]:
    """Where the limits lie: ``y`` what may be left of the score, ``x`` the most latency or size."""
    most = limits.max_latency if axis == "latency" else limits.max_size and limits.max_size / 1e3
    baseline = result.measurements[result.baseline]
    least = {"y": y_of(baseline) - limits.drop_of(result)} if baseline.reason is None else {}
    return least | ({"x": most} if most else {})


def _picture(points: Sequence[Point], shape: str, axis: str, told: Units, ship: str | None, lines: Mapping[str, float]) -> tuple[str, str]:
    """The SVG, and the key to the numbers in it."""
    width, height = SIZES[shape]
    across, up = _scales(points, width, height, bool(told.score))
    places = [(across(one.x), up(one.y)) for one in points]
    front = [places[index] for index in pareto_front([(one.x, one.y) for one in points])]
    corners = [corner for (x, y), (after, below) in itertools.pairwise(front) for corner in ((x, y), (after, y))] + front[-1:]
    frame = (LEFT, TOP, width - RIGHT, height - BOTTOM)
    bars = [(across(one.low), y, across(one.high), y) for one, (_, y) in zip(points, places, strict=True)]
    steps = [(min(a, c), min(b, d), max(a, c), max(b, d)) for (a, b), (c, d) in itertools.pairwise(corners)]
    marks = [(x, y, x, y) for x, y in places]
    filled = [_padded(box, 12 if ship in one.ships else 5) for one, box in zip(points, marks, strict=True)]
    filled += [_padded(box, 1) for box in steps]
    words, key = _words(points, places, filled, [_padded(box, 4) for box in bars], frame, shape == "narrow", ship)
    unit = "log scale" if across.kind == "log" else ""
    named = told.name + ("" if told.score else " in %") + (", log scale of what is misread" if up.kind == "error" else "")
    about = f"{named} against {AXES[axis]}"
    scales = f'data-x="{_data(across)}" data-y="{_data(up)}" data-axis="{axis}"'
    parts = [
        f'<svg viewBox="0 0 {width} {height}" class="chart" role="group" aria-label="{html.escape(about)}" {scales}>',
        *_grid(across, up, frame, ", ".join(filter(None, (AXES[axis], unit))), named),
        *_limits(across, up, frame, lines),
        f'<polyline class="front" points="{" ".join(f"{x:g},{y:g}" for x, y in corners)}"/>' if len(corners) > 1 else "",
        *(_mark(one, place, across, ship) for one, place in zip(points, places, strict=True)),
        *words,
        "</svg>",
    ]
    return "".join(parts), key


def _data(scale: Scale) -> str:
    return f"{scale.low!r} {scale.high!r} {scale.start:g} {scale.end:g} {scale.kind}"


def _scales(points: Sequence[Point], width: float, height: float, own_score: bool) -> tuple[Scale, Scale]:
    xs, ys = [end for one in points for end in (one.low, one.high)], [one.y for one in points]
    low, high = min(xs), max(xs)
    if high > LOGARITHMIC * low > 0:
        pad = (high / low) ** 0.1
        across = Scale(low=low / pad, high=high * pad, start=LEFT, end=width - RIGHT, kind="log")
    else:
        pad = 0.12 * (high - low) or 0.1 * high or 1.0
        across = Scale(low=low - pad, high=high + pad, start=LEFT, end=width - RIGHT)
    low, high = min(ys), max(ys)
    if not own_score and high < 100 and 100 - low > ERRORS * (100 - high):
        pad = ((100 - low) / (100 - high)) ** 0.12
        return across, Scale(low=100 - (100 - low) * pad, high=100 - (100 - high) / pad, start=height - BOTTOM, end=TOP, kind="error")
    pad = 0.16 * (high - low) or 0.01 * abs(high) or 1.0
    return across, Scale(low=low - pad, high=high + pad, start=height - BOTTOM, end=TOP)


def _grid(across: Scale, up: Scale, frame: Box, below: str, beside: str) -> Iterator[str]:
    left, top, right, bottom = frame
    for tick in across.ticks:
        x = across(tick)
        yield f'<path class="grid" d="M{x:g},{top:g}V{bottom:g}"/><text x="{x:g}" y="{bottom + 17:g}" class="tick mid">{tick:,.10g}</text>'
    for tick in up.ticks:
        y = up(tick)
        yield f'<path class="grid" d="M{left:g},{y:g}H{right:g}"/><text x="{left - 6:g}" y="{y + 4:g}" class="tick end">{tick:,.10g}</text>'
    yield f'<rect class="frame" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}"/>'
    yield f'<text x="{(left + right) / 2:g}" y="{bottom + 38:g}" class="tick mid">{html.escape(below)}</text>'
    yield f'<text transform="translate(12 {(top + bottom) / 2:g}) rotate(-90)" class="tick mid">{html.escape(beside)}</text>'


def _limits(across: Scale, up: Scale, frame: Box, lines: Mapping[str, float]) -> Iterator[str]:
    """The lines that the script moves; a limit outside the frame, or none, lies hidden."""
    left, top, right, bottom = frame
    for name, scale, path in (("x", across, f"M0,{top:g}V{bottom:g}"), ("y", up, f"M{left:g},0H{right:g}")):
        at = lines.get(name)
        inside = at is not None and scale.low < at < scale.high
        place = scale(at) if inside and at is not None else 0
        moved = f"translate({place:g} 0)" if name == "x" else f"translate(0 {place:g})"
        hidden = "" if inside else ' display="none"'
        yield f'<path class="limit" data-limit="{name}" d="{path}" transform="{moved}"{hidden}/>'


def _group(what: str, one: Point, ship: str | None) -> str:
    """The start of what is drawn for a variant: marked where it ships, and with what the page's script needs to mark it."""
    ships = " ship" if ship in one.ships else ""
    about = {"name": one.name, "kind": one.kind} | ({"ships": json.dumps(one.ships)} if one.ships else {})
    return f'<g class="{what}{ships}" ' + " ".join(f'data-{name}="{html.escape(text)}"' for name, text in about.items()) + ">"


def _mark(one: Point, place: tuple[float, float], across: Scale, ship: str | None) -> str:
    x, y = place
    low, high = across(one.low), across(one.high)
    bar = f'<path class="bar" d="M{low:g},{y - 3:g}v6m0,-3H{high:g}m0,-3v6"/>' if high > low else ""
    ring = f'<circle class="ring" cx="{x:g}" cy="{y:g}" r="10"/>'
    return (
        f"{_group('point', one, ship)}<title>{html.escape(one.told)}</title>{ring}{bar}"
        f'{_sign(one.sign, x, y)}<circle class="reach" cx="{x:g}" cy="{y:g}" r="14"/></g>'
    )


def _words(
    points: Sequence[Point],
    places: Spots,
    filled: Sequence[Box],
    bars: Sequence[Box],
    frame: Box,
    numbered: bool,
    ship: str | None,
) -> tuple[list[str], str]:
    """The names as SVG, and the key to those that are numbers.

    ``filled``: where no letters may stand; ``bars``: where only a number may that has no other place.
    """
    words, found, key = list[Box](), [], []
    for number, (one, place) in enumerate(zip(points, places, strict=True), start=1):
        tries = [(str(number), bars), (str(number), ())]
        for text, besides in tries if numbered else [(one.label, bars), *tries]:
            free = _free(text, place, [*filled, *besides, *words], words, frame)
            if free is None:
                continue
            box, lead = free
            words += [_padded(box, 2), *lead]
            line = f'<path class="lead" d="M{place[0]:g},{place[1]:g}L{lead[-1][0] + 1:g},{lead[-1][1] + 1:g}"/>' if lead else ""
            place_of_text = f'x="{(box[0] + box[2]) / 2:g}" y="{box[3] - 3:g}"'
            found.append(f'{_group("name", one, ship)}{line}<text {place_of_text} class="mid">{html.escape(text)}</text></g>')
            if text != one.label:
                key.append(f"{number} {one.label}")
            break
    return found, "; ".join(key)


def _free(text: str, place: tuple[float, float], taken: Sequence[Box], words: Sequence[Box], frame: Box) -> tuple[Box, list[Box]] | None:
    """The nearest place for a text, and the line to its point where that is far, as small boxes; None where there is none.

    ``words``: what such a line may not cross.
    """
    width = sum(LETTER if unicodedata.east_asian_width(one) in "WF" else 0.62 * LETTER for one in text)
    for reach, (right, down) in itertools.product((11, 24, 40, 60, 84, 110, 140, 175, 215), SIDES):
        x = place[0] + right * reach - (0 if right > 0 else width if right < 0 else width / 2)
        y = place[1] + down * reach - (LINE if down < 0 else LINE / 2 if down == 0 else 0)
        box = (x, y, x + width, y + LINE)
        inside = frame[0] <= box[0] and box[2] <= frame[2] and frame[1] <= box[1] and box[3] <= frame[3]
        if inside and not any(_overlap(box, other) for other in taken):
            near = (min(max(place[0], box[0]), box[2]), min(max(place[1], box[1]), box[3]))
            along = [[a + (b - a) * step / 20 for a, b in zip(place, near, strict=True)] for step in range(21)] if reach > 11 else []
            lead = [_padded((a, b, a, b), 1) for a, b in along]
            if not any(_overlap(one, other) for one in lead for other in words):
                return box, lead
    return None


def _padded(box: Box, by: float) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _sign(marker: str, x: float, y: float) -> str:
    """A runtime's sign, as matplotlib's letters name it, around a point."""
    if marker == "o":
        return f'<circle class="sign" cx="{x:g}" cy="{y:g}" r="4.5"/>'
    return f'<polygon class="sign" points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in SIGNS[marker])}"/>'


def _regular(corners: int, turn: float = -90, radius: Callable[[int], float] = lambda _: 5.5, wide: float = 1) -> list[tuple[float, float]]:
    angles = [math.radians(turn + 360 * n / corners) for n in range(corners)]
    return [(wide * radius(n) * math.cos(angle), radius(n) * math.sin(angle)) for n, angle in enumerate(angles)]


_CROSS = [(-5, -2), (-2, -2), (-2, -5), (2, -5), (2, -2), (5, -2), (5, 2), (2, 2), (2, 5), (-2, 5), (-2, 2), (-5, 2)]
SIGNS: Mapping[str, Sequence[tuple[float, float]]] = {
    "D": _regular(4), "d": _regular(4, wide=0.6), "h": _regular(6), "s": _regular(4, -45), "^": _regular(3), "v": _regular(3, 90),
    ">": _regular(3, 0), "p": _regular(5), "P": _CROSS, "X": [((a - b) * 0.7, (a + b) * 0.7) for a, b in _CROSS],
    "*": _regular(10, radius=lambda n: 6.5 if n % 2 == 0 else 2.7),
}  # fmt: skip
