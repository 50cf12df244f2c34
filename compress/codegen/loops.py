"""The text of loops over numbers: expressions, reductions and pools, in vectors where the memory allows.

The innermost loop runs along the axis that lies innermost in what is written. Where everything read lies so too, or stands still, it goes
in vectors of K_V numbers, else number by number; what stands still is computed before it. Axes that follow each other without a gap are
one.
"""

from collections.abc import Sequence

import numpy as np

from .calls import Loop, Reduce
from .expressions import Expr, Tensor
from .plan import Layout, layout, rounded
from .text import Text, literal

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_CALLS = {"max": 2, "min": 2, "exp": 1, "sigmoid": 1, "tanh": 1, "erf": 1, "sqrt": 1, "abs": 1}
START = {"max": "-INFINITY", "min": "INFINITY", "sum": "0.0f", "mean": "0.0f"}


class Body:
    """The statements of an expression: ``outer`` stand before the innermost loop, ``inner`` in it.

    ``strides``: for each leaf, how far it moves in the innermost loop; None for all where there is only one level.
    """

    def __init__(self, text: Text, index: dict[Expr, str], strides: dict[Expr, int], prefix: str, acc: str = "") -> None:
        self.text, self.index, self.strides, self.prefix, self.acc = text, index, strides, prefix, acc
        self.outer: list[str] = []
        self.inner: list[str] = []
        self.known: dict[Expr, tuple[str, bool]] = {}

    def value(self, source: Expr) -> str:
        """The name of its value in the innermost loop, of the loop's type."""
        name, moves = self.of(source)
        return name if moves or self.prefix == "s" else f"v_set({name})"

    def store(self, source: Expr, out: Tensor, where: str, left: str = "") -> list[str]:
        """The statements of the innermost loop, up to the store; ``left``: how many numbers of a vector there are, where they are few."""
        partly = f"n({where}, {{}}, {left});" if left and self.prefix == "v" else f"({where}, {{}});"
        if source.op == "quantize" and out.dtype == "u8":  # rounded as it is stored
            zero = source.numbers[1]
            held = self.value(Expr("within", source.shape, source.args, source.numbers))
            return [*self.inner, f"{self.prefix}_stq{partly.format(f'{held}, {int(zero)}')}"]
        value = self.value(source)
        return [*self.inner, f"{self.prefix}_{'stu' if out.dtype == 'u8' else 'st'}{partly.format(value)}"]

    def of(self, source: Expr) -> tuple[str, bool]:
        """A name for the value, and whether it moves in the innermost loop."""
        if source not in self.known:
            self.known[source] = self._of(source)
        return self.known[source]

    def _of(self, source: Expr) -> tuple[str, bool]:
        if source.op == "number":
            return literal(source.numbers[0]), False
        if source.op == "acc":
            return self.acc, True
        if source.op == "load":
            assert source.tensor is not None
            moves = self.strides[source] != 0
            kind = "ldu" if source.tensor.dtype == "u8" else "ld"
            return self._let(f"{self.prefix if moves else 's'}_{kind}({self.index[source]}{' + i' if moves else ''})", moves)
        parts = [self.of(one) for one in source.args]
        moves = any(one for _, one in parts)
        prefix = self.prefix if moves else "s"
        wide = [name if one or prefix == "s" else f"v_set({name})" for name, one in parts]
        match source.op:
            case "quantize" | "within":
                scale, zero = source.numbers
                return self._let(f"{prefix}_{source.op}({wide[0]}, {literal(float(1 / np.float32(scale)))}, {literal(zero)})", moves)
            case "dequantize":
                scale, zero = source.numbers
                shifted = f"({parts[0][0]} - {literal(zero)})" if zero else parts[0][0]
                return self._let(f"{shifted} * {literal(scale)}" if scale != 1 else shifted, moves)
            case "copy":
                return parts[0]
            case "neg":
                return self._let(f"-{parts[0][0]}", moves)
            case op if op in _INFIX:
                return self._let(f"{parts[0][0]} {_INFIX[op]} {parts[1][0]}", moves)
            case op:
                assert op in _CALLS, op
                return self._let(f"{prefix}_{op}({', '.join(wide)})", moves)

    def _let(self, value: str, moves: bool) -> tuple[str, bool]:
        name = self.text.fresh("t")
        kind = "vf" if moves and self.prefix == "v" else "float"
        (self.inner if moves else self.outer).append(f"const {kind} {name} = {value};")
        return name, moves


class Nest:
    """Loops over the axes of a shape, with a pointer into each tensor: outermost first, merged where memory has no gap."""

    def __init__(self, text: Text, sizes: Sequence[int], steps: list[list[int]]) -> None:
        """``sizes`` of the axes in the order of the loops; ``steps``: for each pointer, how far it moves along each."""
        kept = [axis for axis, size in enumerate(sizes) if size > 1]
        self.sizes = [sizes[axis] for axis in kept]
        self.steps = [[one[axis] for axis in kept] for one in steps]
        axis = 0
        while axis + 1 < len(self.sizes):
            if all(one[axis] == one[axis + 1] * self.sizes[axis + 1] for one in self.steps):
                self.sizes[axis : axis + 2] = [self.sizes[axis] * self.sizes[axis + 1]]
                for one in self.steps:
                    del one[axis]
            else:
                axis += 1
        self.names = [text.fresh("i") for _ in self.sizes]

    def open(self, keep: int = 0) -> list[str]:
        """The heads of the loops but for the last ``keep``."""
        return [f"for (int {name} = 0; {name} < {size}; {name}++) {{" for name, size in self.pairs(keep)]

    def pairs(self, keep: int) -> list[tuple[str, int]]:
        return list(zip(self.names, self.sizes, strict=True))[: len(self.sizes) - keep]

    def index(self, pointer: str, which: int, keep: int = 0) -> str:
        """Where a pointer is, within the loops that are open."""
        moved = [f"{name} * {step}" for (name, _), step in zip(self.pairs(keep), self.steps[which], strict=False) if step]
        return " + ".join([pointer, *moved])


def leaves_of(sources: Sequence[Expr]) -> list[Expr]:
    """The loads of expressions, each once."""
    return list(dict.fromkeys(leaf for source in sources for leaf in source.leaves()))


def leaf_steps(leaf: Expr, rank: int, lanes: int) -> tuple[int, list[int]]:
    """Where a leaf begins in its tensor's memory, and how far it moves along each axis of the expression."""
    assert leaf.tensor is not None
    plan = layout(leaf.tensor, lanes)
    start, steps = plan.start, [0] * rank
    for (axis, first, step), stride in zip(leaf.ways, plan.strides, strict=True):
        start += first * stride
        if axis is not None:
            steps[axis] += step * stride
    return start, steps


def order(plan: Layout, shape: Sequence[int]) -> list[int]:
    """The axes of a tensor from the one with the longest stride to the shortest."""
    return sorted(range(len(shape)), key=lambda axis: (shape[axis] > 1, -plan.strides[axis], axis))


def padded(tensor: Tensor, plan: Layout, axis: int, lanes: int) -> bool:
    """Whether all of the padding along the innermost axis is this tensor's own to write."""
    whole = tensor.whole
    own = tensor.alias is None and (whole is tensor or whole.shape[axis] == tensor.shape[axis])
    return own and whole.kind not in ("tight", "planes", "plain") and plan.strides[axis] == 1 and tensor.shape[axis] > 1


def loop(text: Text, call: Loop) -> list[str]:
    """Store an expression."""
    [out], lanes, source = call.writes, text.lanes, call.source
    plan, leaves, rank = layout(out, lanes), leaves_of([source]), len(out.shape)
    axes = order(plan, out.shape)
    starts, steps = [plan.start], [list(plan.strides)]
    for leaf in leaves:
        start, moved = leaf_steps(leaf, rank, lanes)
        starts.append(start)
        steps.append(moved)
    sizes = [out.shape[axis] for axis in axes]
    if (
        axes
        and padded(out, plan, axes[-1], lanes)
        and all(fills(leaf, axes[-1], one[axes[-1]], lanes) for leaf, one in zip(leaves, steps[1:], strict=True))
    ):
        sizes[-1] = rounded(sizes[-1], lanes)
    nest = Nest(text, sizes, [[one[axis] for axis in axes] for one in steps])
    lines = [text.pointer("o", out, starts[0], write=True)]
    lines += [
        text.pointer(f"a{place}", leaf.whole_tensor(), start) for place, (leaf, start) in enumerate(zip(leaves, starts[1:], strict=True))
    ]
    inner = [one[-1] if one else 0 for one in nest.steps]
    vector = bool(nest.sizes) and inner[0] == 1 and all(one in (0, 1) for one in inner[1:])
    lines += nest.open(1)
    index = {leaf: nest.index(f"a{place}", place + 1, 1) for place, leaf in enumerate(leaves)}
    size = nest.sizes[-1] if nest.sizes else 1
    target, moving = nest.index("o", 0, 1), dict(zip(leaves, inner[1:], strict=True))
    if vector:
        body, tail = Body(text, index, moving, "v"), size % lanes
        inside = body.store(source, out, f"{target} + i")
        head = f"for (; i + K_V <= {size}; i += K_V) {{" if tail else f"for (int i = 0; i < {size}; i += K_V) {{"
        lines += [*body.outer, *["int i = 0;"] * (tail > 0), head, *inside, "}"]
        if tail:
            body = Body(text, index, moving, "s")
            inside = body.store(source, out, f"{target} + i")
            lines += [*body.outer, f"for (; i < {size}; i++) {{", *inside, "}"]
    else:
        index = {leaf: f"{where} + i * {moving[leaf]}" for leaf, where in index.items()}
        body = Body(text, index, dict.fromkeys(leaves, 0), "s")
        inside = body.store(source, out, f"{target} + i * {inner[0]}")
        lines += [f"for (int i = 0; i < {size}; i++) {{", *body.outer, *inside, "}"]
    return [*lines, *["}"] * len(nest.open(1))]


def fills(leaf: Expr, axis: int, step: int, lanes: int) -> bool:
    """Whether a leaf may be read behind the end of the innermost axis, up to the padding of what is written."""
    assert leaf.tensor is not None
    whole = leaf.tensor.whole
    along = [(size, at) for at, (size, (way, _, _)) in enumerate(zip(leaf.tensor.shape, leaf.ways, strict=True)) if way == axis]
    if step == 0:
        return True
    if step != 1 or whole.place not in ("arena", "flash") or len(along) != 1:
        return False
    return leaf.ways[along[0][1]][1] == 0 and (
        whole.kind not in ("tight", "planes", "plain") and leaf.tensor.alias is None and (whole is leaf.tensor or whole.place == "flash")
    )


class _Reduction:
    """The text of one :class:`Reduce`: loops over what stays, within them over what goes, and the axis along which memory lies."""

    def __init__(self, text: Text, call: Reduce) -> None:
        self.text, self.call, lanes, shape = text, call, text.lanes, call.source.shape
        self.leaves, rank = leaves_of([call.source]), len(shape)
        starts, steps = zip(*(leaf_steps(leaf, rank, lanes) for leaf in self.leaves), strict=True)
        self.plans = [layout(out, lanes) for out in call.writes]
        axes = sorted(range(rank), key=lambda axis: (shape[axis] > 1, -max(one[axis] for one in steps), axis))
        *slow, self.fast = axes
        kept, gone = ([axis for axis in slow if (axis in call.axes) == reduced] for reduced in (False, True))
        self.across, self.width = self.fast in call.axes, shape[self.fast]
        unit = all(one[self.fast] in (0, 1) for one in steps) and any(one[self.fast] for one in steps)
        self.vector = unit and (self.across or all(plan.strides[self.fast] == 1 for plan in self.plans))
        outer_steps = [[plan.strides[axis] for axis in kept] for plan in self.plans] + [[one[axis] for axis in kept] for one in steps]
        self.outer = Nest(text, [shape[axis] for axis in kept], outer_steps)
        self.inside = Nest(text, [shape[axis] for axis in gone], [[one[axis] for axis in gone] for one in steps])
        self.pointers = [
            *(
                text.pointer(f"o{n}", out, plan.start, write=True)
                for n, (out, plan) in enumerate(zip(call.writes, self.plans, strict=True))
            ),
            *(text.pointer(f"a{n}", leaf.whole_tensor(), start) for n, (leaf, start) in enumerate(zip(self.leaves, starts, strict=True))),
        ]
        self.index = {leaf: self.inside.index(self.outer.index(f"a{n}", n + len(self.plans)), n) for n, leaf in enumerate(self.leaves)}
        self.moving = dict(zip(self.leaves, (one[self.fast] for one in steps), strict=True))
        self.targets = [self.outer.index(f"o{n}", n) for n in range(len(self.plans))]
        self.names = [text.fresh("s") for _ in call.ops]

    def add_up(self, prefix: str, left: str = "") -> list[str]:
        """One step of the innermost loop; ``left``: how many numbers of its vector there are."""
        index = self.index if prefix == "v" else {leaf: f"{where} + i * {self.moving[leaf]}" for leaf, where in self.index.items()}
        body = Body(self.text, index, self.moving if prefix == "v" else dict.fromkeys(self.leaves, 0), prefix)
        value = body.value(self.call.source)
        lines = [*body.outer, *body.inner]
        for op, name in zip(self.call.ops, self.names, strict=True):
            part = f"v_first({value}, {left}, {START[op]})" if left else value
            lines.append(f"{name} = {prefix}_{op}({name}, {part});" if op in ("max", "min") else f"{name} += {part};")
        return lines

    def begin(self, kind: str) -> list[str]:
        """The sums before the first step."""
        wrap = "v_set({})" if kind == "vf" else "{}"
        return [f"{kind} {name} = {wrap.format(START[op])};" for name, op in zip(self.names, self.call.ops, strict=True)]

    def end(self, prefix: str, results: Sequence[str], places: Sequence[str], left: str = "") -> list[str]:
        """Store the results."""
        rows = zip(self.call.after, places, self.call.writes, results, strict=True)
        return [line for after, place, out, result in rows for line in finish(self.text, after, place, out, prefix, result, left)]

    def numbers(self) -> list[str]:
        """Number by number."""
        head = f"for (int i = 0; i < {self.width}; i++) {{"
        steps = [*self.inside.open(), *[head] * self.across, *self.add_up("s"), *["}"] * (len(self.inside.sizes) + self.across)]
        places = [
            f"{target}{'' if self.across else f' + i * {plan.strides[self.fast]}'}"
            for target, plan in zip(self.targets, self.plans, strict=True)
        ]
        return [*[head] * (not self.across), *self.begin("float"), *steps, *self.end("s", self.names, places), *["}"] * (not self.across)]

    def along(self) -> list[str]:
        """Vectors of what is added up, whose lanes become one number."""
        full, lines = self.width // self.text.lanes * self.text.lanes, [*self.begin("vf"), *self.inside.open()]
        if full:
            lines += [f"for (int i = 0; i < {full}; i += K_V) {{", *self.add_up("v"), "}"]
        if full < self.width:
            lines += [f"for (int i = {full}; i < {self.width}; i += K_V) {{", *self.add_up("v", f"{self.width} - i"), "}"]
        joined = {"max": "v_top({0})", "min": "-v_top(-{0})"}
        results = [joined.get(op, "v_sum({0})").format(name) for op, name in zip(self.call.ops, self.names, strict=True)]
        return [*lines, *["}"] * len(self.inside.sizes), *self.end("s", results, self.targets)]

    def beside(self) -> list[str]:
        """Vectors of sums that lie beside one another."""
        left = f"{self.width} - i" if self.width % self.text.lanes else ""
        steps = [*self.inside.open(), *self.add_up("v"), *["}"] * len(self.inside.sizes)]
        places = [f"{target} + i" for target in self.targets]
        return [f"for (int i = 0; i < {self.width}; i += K_V) {{", *self.begin("vf"), *steps, *self.end("v", self.names, places, left), "}"]


def reduce(text: Text, call: Reduce) -> list[str]:
    """Sums, means and extremes over axes, in one pass."""
    one = _Reduction(text, call)
    steps = one.numbers() if not one.vector else one.along() if one.across else one.beside()
    return [*one.pointers, *one.outer.open(), *steps, *["}"] * len(one.outer.sizes)]


def finish(text: Text, after: Expr, where: str, out: Tensor, prefix: str, acc: str, left: str = "") -> list[str]:
    """Store what was summed up."""
    body = Body(text, {}, {}, prefix, acc)
    inside = body.store(after, out, where, left)
    return ["{", *body.outer, *inside, "}"]
