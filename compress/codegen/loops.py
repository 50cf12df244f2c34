"""The text of loops over numbers: expressions, reductions and pools, in vectors where the memory allows.

The innermost loop runs along the axis that lies innermost in what is written. Where everything read lies so too, or stands still, it goes in
vectors of K_V numbers, else number by number; what stands still is computed before it. Axes that follow one another without a gap are one.
"""

from collections.abc import Sequence

import numpy as np

from .calls import Loop, Reduce, Window
from .expressions import Expr, Tensor
from .plan import Layout, layout, rounded
from .text import Text, literal

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_CALLS = {"max": 2, "min": 2, "exp": 1, "sigmoid": 1, "tanh": 1, "erf": 1, "sqrt": 1, "abs": 1}
_START = {"max": "-INFINITY", "min": "INFINITY", "sum": "0.0f", "mean": "0.0f"}


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
        if source.op == "quantize":  # rounded as it is stored
            scale, zero = source.numbers
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
    if axes and padded(out, plan, axes[-1], lanes) and all(fills(leaf, axes[-1], one[axes[-1]], lanes) for leaf, one in zip(leaves, steps[1:], strict=True)):
        sizes[-1] = rounded(sizes[-1], lanes)
    nest = Nest(text, sizes, [[one[axis] for axis in axes] for one in steps])
    lines = [text.pointer("o", out, starts[0], write=True)]
    lines += [text.pointer(f"a{place}", leaf.tensor, start) for place, (leaf, start) in enumerate(zip(leaves, starts[1:], strict=True))]  # type: ignore[arg-type]
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
    return leaf.ways[along[0][1]][1] == 0 and (whole.kind not in ("tight", "planes", "plain") and leaf.tensor.alias is None and (whole is leaf.tensor or whole.place == "flash"))


def reduce(text: Text, call: Reduce) -> list[str]:
    """Sums, means and extremes over axes, in one pass."""
    lanes, shape, rank = text.lanes, call.source.shape, len(call.source.shape)
    leaves = leaves_of([call.source])
    starts, steps = zip(*(leaf_steps(leaf, rank, lanes) for leaf in leaves), strict=True)
    plans = [layout(out, lanes) for out in call.writes]
    by_stride = sorted(range(rank), key=lambda axis: (shape[axis] > 1, -max(one[axis] for one in steps), axis))
    fast = by_stride[-1]
    kept = [axis for axis in by_stride if axis not in call.axes and axis != fast]
    gone = [axis for axis in by_stride if axis in call.axes and axis != fast]
    unit = all(one[fast] in (0, 1) for one in steps) and any(one[fast] for one in steps)
    across = fast in call.axes
    vector = unit and (across or all(plan.strides[fast] == 1 for plan in plans))
    lines = [text.pointer(f"o{place}", out, plan.start, write=True) for place, (out, plan) in enumerate(zip(call.writes, plans, strict=True))]
    lines += [text.pointer(f"a{place}", leaf.tensor, start) for place, (leaf, start) in enumerate(zip(leaves, starts, strict=True))]  # type: ignore[arg-type]
    outer = Nest(text, [shape[axis] for axis in kept], [[plan.strides[axis] for axis in kept] for plan in plans] + [[one[axis] for axis in kept] for one in steps])
    inside = Nest(text, [shape[axis] for axis in gone], [[one[axis] for axis in gone] for one in steps])
    width = shape[fast]
    lines += outer.open()
    index = {leaf: inside.index(outer.index(f"a{place}", place + len(plans)), place) for place, leaf in enumerate(leaves)}
    moving = dict(zip(leaves, (one[fast] for one in steps), strict=True))
    targets = [outer.index(f"o{place}", place) for place in range(len(plans))]

    def accumulate(body: Body, names: list[str], prefix: str, part: str = "") -> list[str]:
        value = body.value(call.source)
        found = []
        for op, name in zip(call.ops, names, strict=True):
            if op in ("max", "min"):
                found.append(f"{name} = {prefix}_{op}({name}, {f'v_first({value}, {part}, {_START[op]})' if part else value});")
            else:
                found.append(f"{name} += {f'v_first({value}, {part}, 0.0f)' if part else value};")
        return [*body.outer, *body.inner, *found]

    names = [text.fresh("s") for _ in call.ops]
    if not vector:
        flat = {leaf: f"{where} + i * {moving[leaf]}" for leaf, where in index.items()}
        fixed = dict.fromkeys(leaves, 0)
        head = f"for (int i = 0; i < {width}; i++) {{"
        lines += [] if across else [head]
        lines += [f"float {name} = {_START[op]};" for name, op in zip(names, call.ops, strict=True)]
        lines += [*inside.open(), *([head] if across else []), *accumulate(Body(text, flat, fixed, "s"), names, "s")]
        lines += ["}"] * (len(inside.sizes) + across)
        for place, out in enumerate(call.writes):
            where = f"{targets[place]}{'' if across else f' + i * {plans[place].strides[fast]}'}"
            lines += _finish(text, call.after[place], where, out, "s", names[place])
        lines += [] if across else ["}"]
    elif across:
        lines += [f"vf {name} = v_set({_START[op]});" for name, op in zip(names, call.ops, strict=True)]
        full = width // lanes * lanes
        lines += inside.open()
        if full:
            body = Body(text, index, moving, "v")
            lines += [f"for (int i = 0; i < {full}; i += K_V) {{", *accumulate(body, names, "v"), "}"]
        if width % lanes:
            body = Body(text, index, moving, "v")
            lines += [f"for (int i = {full}; i < {width}; i += K_V) {{", *accumulate(body, names, "v", f"{width} - i"), "}"]
        lines += ["}"] * len(inside.sizes)
        for place, (op, out) in enumerate(zip(call.ops, call.writes, strict=True)):
            total = {"max": f"v_top({names[place]})", "min": f"-v_top(-{names[place]})"}.get(op, f"v_sum({names[place]})")
            lines += _finish(text, call.after[place], targets[place], out, "s", total)
    else:
        lines += [f"for (int i = 0; i < {width}; i += K_V) {{"]
        lines += [f"vf {name} = v_set({_START[op]});" for name, op in zip(names, call.ops, strict=True)]
        lines += [*inside.open(), *accumulate(Body(text, index, moving, "v"), names, "v"), *["}"] * len(inside.sizes)]
        for place, out in enumerate(call.writes):
            lines += _finish(text, call.after[place], f"{targets[place]} + i", out, "v", names[place], f"{width} - i" if width % lanes else "")
        lines += ["}"]
    return lines + ["}"] * len(outer.sizes)


def _finish(text: Text, after: Expr, where: str, out: Tensor, prefix: str, acc: str, left: str = "") -> list[str]:
    """Store what was summed up."""
    body = Body(text, {}, {}, prefix, acc)
    inside = body.store(after, out, where, left)
    return ["{", *body.outer, *inside, "}"]


def window(text: Text, call: Window) -> list[str]:
    """A pool: for each output pixel, over the part of the window that is inside."""
    [out], lanes, source = call.writes, text.lanes, call.source.tensor
    assert source is not None
    plan, under = layout(out, lanes), layout(source, lanes)
    n, c, height, columns = out.shape
    vector = plan.strides[1] == under.strides[1] == 1 or c == 1
    prefix, step = ("v", "K_V") if vector and c > 1 else ("s", "1")
    size = source.shape[2:]
    lines = [text.pointer("o", out, plan.start, write=True), text.pointer("a", source, under.start)]
    lines += [f"for (int n = 0; n < {n}; n++) for (int y = 0; y < {height}; y++) for (int x = 0; x < {columns}; x++) {{"]
    inside = not any(call.pads) and all((out.shape[2 + a] - 1) * call.strides[a] + (call.kernel[a] - 1) * call.dilations[a] < size[a] for a in (0, 1))
    for axis, (name, at) in enumerate((("y", "y"), ("x", "x"))):
        kernel, stride, dilation, pad, end = call.kernel[axis], call.strides[axis], call.dilations[axis], call.pads[axis], call.pads[2 + axis]
        if inside:
            lines += [f"const int {name}0 = {at} * {stride}, {name}k = 0, {name}e = {kernel};"]
            continue
        lines += [f"const int {name}0 = {at} * {stride} - {pad};", f"int {name}k = 0, {name}e = {kernel};"]
        lines += [f"while ({name}0 + {name}k * {dilation} < 0) {name}k++;", f"while ({name}0 + ({name}e - 1) * {dilation} >= {size[axis]}) {name}e--;"]
        if call.count_pads:
            lines += [f"int {name}c = {kernel};", f"while ({name}0 + ({name}c - 1) * {dilation} >= {size[axis] + end}) {name}c--;"]
    bytes_ = source.dtype == out.dtype == "u8" and call.op == "max" and call.after[0].op == "acc" and vector and padded(out, plan, 1, lanes) and padded(source, under, 1, lanes)
    if bytes_:
        prefix, step = "b", "K_LANES"
    kind, load = {"v": "vf", "s": "float", "b": "vb"}[prefix], "ldu" if source.dtype == "u8" and not bytes_ else "ld"
    channel = "i" if vector else f"i * {under.strides[1]}"
    tap = f"{prefix}_{load}(a + n * {under.strides[0]} + (y0 + {{}} * {call.dilations[0]}) * {under.strides[2]} + (x0 + {{}} * {call.dilations[1]}) * {under.strides[3]} + {channel})"
    lines += [
        f"for (int i = 0; i < {c}; i += {step}) {{",
        f"{kind} s = {tap.format('yk', 'xk') if call.op == 'max' else f'{prefix}_set(0.0f)'};",
        "for (int j = yk; j < ye; j++) for (int k = xk; k < xe; k++) {",
        f"s = {prefix}_max(s, {tap.format('j', 'k')});" if call.op == "max" else f"s += {tap.format('j', 'k')};",
        "}",
    ]
    if call.op == "mean":
        count = "(float)(yc * xc)" if call.count_pads and not inside else "(float)((ye - yk) * (xe - xk))"
        lines += [f"s = s * {literal(1 / (call.kernel[0] * call.kernel[1]))};" if inside else f"s = s / {count};"]
    where = f"o + n * {plan.strides[0]} + y * {plan.strides[2]} + x * {plan.strides[3]} + {'i' if vector else f'i * {plan.strides[1]}'}"
    left = f"{c} - i" if c % lanes and not padded(out, plan, 1, lanes) else ""
    lines += [f"b_st({where}, s);"] if bytes_ else _finish(text, call.after[0], where, out, prefix, "s", left)
    return [*lines, "}", "}"]
