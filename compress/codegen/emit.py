"""From calls to C: one function for each call, with its sizes as constants."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calls import Call, Contract, Fill, Loop, Product, Reduce, Resize, Softmax, Window
from .expressions import Tensor
from .loops import loop, reduce
from .plan import Layout, layout, rounded, share, width
from .pools import resize, softmax, window
from .text import Text, literal


def body(text: Text, call: Call) -> list[str]:
    """The statements of a call."""
    return _EMIT[type(call)](text, call)


def margins(whole: Tensor, lanes: int) -> list[str]:
    """Write the margin of a tensor that has one."""
    if not any(whole.halo):
        return []
    top, left, bottom, right = whole.halo
    plan, (n, c, rows, columns), one = layout(whole, lanes), whole.shape, width(whole)
    planes = whole.kind == "planes"
    row, pixel = plan.strides[2] * one, plan.strides[3] * one
    lines = []
    for base in [a * plan.strides[0] + b * plan.strides[1] for a in range(n) for b in range(c if planes else 1)]:
        at = whole.offset + base * one
        head, across, under = top * row + left * pixel, (left + right) * pixel, bottom * row
        lines += [f"memset(arena + {at}, {whole.fill}, {head});"] * (head > 0)
        if across:
            lines += [f"k_fill(arena + {at + head + columns * pixel}, {row}, {rows}, {across}, {whole.fill});"]
        lines += [f"memset(arena + {at + (top + rows) * row}, {whole.fill}, {under});"] * (under > 0)
    return lines


def panels(filters: NDArray[Any], lanes: int) -> NDArray[Any]:
    """(N, C, kh, kw) as [panel][kh kw C][lanes], float32."""
    n = rounded(len(filters), lanes)
    flat = np.zeros((n, filters[0].size), np.float32)
    flat[: len(filters)] = filters.transpose(0, 2, 3, 1).reshape(len(filters), -1)
    return np.ascontiguousarray(flat.reshape(n // lanes, lanes, -1).transpose(0, 2, 1))


def spread(filters: NDArray[Any], lanes: int) -> NDArray[np.float32]:
    """(N, 1, kh, kw) as [kh kw][N, padded], float32."""
    made = np.zeros((filters[0].size, rounded(len(filters), lanes)), np.float32)
    made[:, : len(filters)] = filters.reshape(len(filters), -1).T
    return made


def filled(values: NDArray[Any], lanes: int) -> NDArray[Any]:
    """Zeros behind one number per channel, up to the next multiple."""
    return np.concatenate([values.ravel(), np.zeros(rounded(values.size, lanes) - values.size, values.dtype)])


def stored_last(out: Tensor, n: int, lanes: int) -> int:
    """How many numbers of the last panel are stored: the padding too where it is nobody else's."""
    mine = out.whole is out or out.whole.shape[-1 if out.whole.kind == "rows" else 1] == n
    return lanes if mine else (n - 1) % lanes + 1


def geometry(call: Contract, lanes: int) -> tuple[Layout, Layout, tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Layouts of source and output; output strides (y, x), rows and columns; source strides (y, x) per output, then per tap."""
    [out], source = call.writes, call.source
    plan, under = layout(out, lanes), layout(source, lanes)
    if call.matrix:
        rank = len(out.shape)
        step = [plan.strides[-2] if rank > 1 else 0, under.strides[-2] if rank > 1 else 0]
        return plan, under, (0, step[0], 1, int(np.prod(out.shape[:-1]))), (0, step[1], 0, 0)
    rows, columns = call.limit or out.shape[2:]
    rows, columns = min(rows, out.shape[2]), min(columns, out.shape[3])
    taps = under.strides[2] * call.dilations[0], under.strides[3] * call.dilations[1]
    return (
        plan,
        under,
        (plan.strides[2], plan.strides[3], rows, columns),
        (under.strides[2] * call.strides[0], under.strides[3] * call.strides[1], *taps),
    )


def words(runs: NDArray[Any], lanes: int) -> NDArray[np.int8]:
    """(N, runs, C) as [panel][runs C/4][lanes][4], int8."""
    n, c = rounded(len(runs), lanes), rounded(runs.shape[2], 4)
    flat = np.zeros((n, runs.shape[1], c), np.int8)
    flat[: len(runs), :, : runs.shape[2]] = runs
    return np.ascontiguousarray(flat.reshape(n // lanes, lanes, -1, 4).transpose(0, 2, 1, 3))


def columns_of_four(filters: NDArray[Any], lanes: int) -> NDArray[np.int8]:
    """(N, 1, kh, kw) as [panel][kh / 4][kw][lanes][4], int8."""
    n, _, kh, kw = filters.shape
    flat = np.zeros((rounded(n, lanes), rounded(kh, 4), kw), np.int8)
    flat[:n, :kh] = filters[:, 0]
    return np.ascontiguousarray(flat.reshape(-1, lanes, rounded(kh, 4) // 4, 4, kw).transpose(0, 2, 4, 1, 3))


def biases(text: Text, call: Contract, weights: NDArray[Any], place: slice = slice(None)) -> str:
    """The name of the biases, of which what the input's zero point adds up to is taken off."""
    sums = weights.sum(1, dtype=np.int64).astype(np.int32)
    return text.biases(filled(call.bias[place] - call.zero * sums, text.lanes), filled(sums, text.lanes))


def how(call: Contract, packed: NDArray[Any]) -> int:
    """1 where the result is float32; 2 where two products beside each other always fit into 16 bits."""
    pairs = packed.reshape(-1, 2).astype(np.int32)
    most = max(np.maximum(pairs, 0).sum(1).max(), -np.minimum(pairs, 0).sum(1).min())
    return int(call.quantize is None) + 2 * bool(most * 255 < 2**15)


def multipliers(call: Contract, lanes: int, place: slice = slice(None)) -> NDArray[np.float32]:
    """What an integer is in the output, one per channel."""
    assert call.scale is not None
    return filled(call.scale[place] / np.float32(call.quantize[0] if call.quantize else 1), lanes)


def ends(call: Contract) -> str:
    """Where numbers end, and the zero point before it where they are uint8."""
    if call.scale is None or call.quantize is None:
        zero = "" if call.scale is None else "0, "
        return f"{zero}{literal(max(call.low, -(2.0**127)))}, {literal(min(call.high, 2.0**127))}"
    scale, zero_point = call.quantize
    low, high = (float(np.rint(np.float32(one) / np.float32(scale))) for one in (call.low, call.high))
    return f"{int(zero_point)}, {literal(max(low, -zero_point))}, {literal(min(high, 255 - zero_point))}"


def tables(text: Text, call: Contract, place: slice, weights: NDArray[Any]) -> list[str]:
    """The names of weights as they lie in flash, of biases, and of multipliers for integers, of these channels."""
    if call.scale is None:
        return [text.array(weights), text.array(filled(call.bias[place], text.lanes))]
    filters = call.weights[place].reshape(len(call.weights[place]), -1)
    return [text.array(weights), biases(text, call, filters, place), text.array(multipliers(call, text.lanes, place))]


def listed(*values: Any) -> str:
    """Arguments of a C function."""
    return ", ".join(map(str, values))


def contract(text: Text, call: Contract) -> list[str]:
    """A convolution or matrix product with weights."""
    [out], lanes, filters, integers = call.writes, text.lanes, call.weights, call.scale is not None
    plan, under, (oh, ow, rows, columns), (ih, iw, ah, aw) = geometry(call, lanes)
    (n, c, kh, kw), bounds, pool = filters.shape, ends(call), 2 if call.pooled else 1
    o, eight = ("o" if call.quantize or not integers else "(uint8_t *)(void *)o"), "8" * integers
    count, by_rows = rows, share(call.source, out, lanes)  # the result lies over the source: all of a row before the next
    rows = 1 if by_rows else rows
    begin, step = under.start, f", a += {ih * pool}"
    if not call.matrix and not call.depthwise():
        begin -= call.pads[0] * under.strides[2] + call.pads[1] * under.strides[3]
    if call.depthwise():
        step, top = "", f"{call.pads[0]} - y * {call.strides[0]}" if by_rows else call.pads[0]
        packed = columns_of_four(filters, lanes) if integers else spread(filters, lanes)
        to, of = (listed(*where.strides[2:]) for where in (plan, under))
        size = listed(*call.source.shape[2:], rows, columns, kh, kw, *call.strides, *call.dilations, top, call.pads[1])
        before, zero = (f", {how(call, packed)}", f", {call.zero}") if integers else ("", "")
        names = listed(*tables(text, call, slice(None), packed))
        stored = rounded(n, lanes) - lanes + stored_last(out, n, lanes)
        widths = stored if integers else listed(rounded(n, lanes), stored)
        lines = [f"k_depthwise{eight}({o}, {to}{before}, a, {of}{zero}, {size}, {names}, {widths}, {bounds});"]
    elif out.whole.kind == "planes":
        values = listed(text.array(np.ascontiguousarray(filters, np.float32)), text.array(call.bias))
        size = listed(rows, columns, n, c, kh, kw, ah, aw)
        lines = [f"k_planes(o, {plan.strides[1]}, {oh}, a, {under.strides[1]}, {ih}, {size}, {values}, {bounds});"]
    else:
        each = n // call.groups
        if aw == c and call.groups == 1:  # a row of taps is one run
            c, kw, aw = c * kw, 1, 0
        if ah == c and kw == 1 and call.groups == 1:
            c, kh, ah = c * kh, 1, 0
        if not by_rows and kh == kw == pool == 1 and ih == columns * iw and oh == columns * ow:
            rows, columns = 1, rows * columns
        size, lines = listed(ih, iw, rows, columns, kh, ah, kw, aw, rounded(c, 4) // 4 if integers else c), []
        for first in range(0, n, each):
            place, last = slice(first, first + each), stored_last(out, n, lanes) if call.groups == 1 else (each - 1) % lanes + 1
            runs = filters[place].transpose(0, 2, 3, 1).reshape(each, kh * kw, c)
            packed = words(runs, lanes) if integers else panels(filters[place], lanes)
            kind = f", {how(call, packed)}" if integers else ""
            to = f"{o} + {first * (4 if integers and not call.quantize else 1)}, {oh}, {ow}{kind}"
            names = listed(*tables(text, call, place, packed))
            source = f"a + {first // each * c}, {size}"
            lines += [f"k_conv{eight}{'_pool' * (pool - 1)}({to}, {source}, {names}, {each}, {last}, {bounds});"]
    if by_rows:
        lines = [f"for (int y = 0; y < {count}; y++, o += {oh}{step}) {{", *lines, "}"]
    found = []
    for image in range(1 if call.matrix else out.shape[0]):
        written, read = (at + image * where.strides[0] if image else at for at, where in ((plan.start, plan), (begin, under)))
        found += ["{", text.pointer("o", out, written, write=True), text.pointer("a", call.source, read), *lines, "}"]
    return found


def fill(text: Text, call: Fill) -> list[str]:
    """One number everywhere."""
    [out] = call.writes
    plan, store = layout(out, text.lanes), "stu" if out.dtype == "u8" else "st"
    begin = min(plan.start, 0)
    return [text.pointer("o", out, begin, write=True), f"for (int i = 0; i < {plan.size}; i++) s_{store}(o + i, {literal(call.value)});"]


def product(text: Text, call: Product) -> list[str]:
    """Rows of the left, each number times a row of the right."""
    [out], lanes = call.writes, text.lanes
    *batch, rows, columns = out.shape
    k = call.left.shape[-1]
    plans = [layout(tensor, lanes) for tensor in (out, call.left, call.right)]

    def along(tensor: Tensor, plan: Layout) -> list[int]:
        extra = len(batch) - (len(tensor.shape) - 2)
        return [0 if axis < extra or tensor.shape[axis - extra] == 1 else plan.strides[axis - extra] for axis in range(len(batch))]

    names = [text.fresh("i") for _ in batch]
    pointers = [
        text.pointer(name, tensor, plan.start, write=name == "o")
        for name, tensor, plan in zip("oab", (out, call.left, call.right), plans, strict=True)
    ]
    where = [
        " + ".join([name, *(f"{i} * {step}" for i, step in zip(names, along(tensor, plan), strict=True) if step)])
        for name, tensor, plan in zip("oab", (out, call.left, call.right), plans, strict=True)
    ]
    return [
        *pointers, *(f"for (int {name} = 0; {name} < {size}; {name}++)" for name, size in zip(names, batch, strict=True)),
        f"for (int m = 0; m < {rows}; m++) for (int n = 0; n < {columns}; n += K_V) {{", "vf s = v_set(0.0f);",
        f"const k_f32 *p = {where[1]} + m * {plans[1].strides[-2]}, *q = {where[2]} + n;",
        f"for (int k = 0; k < {k}; k++) s = v_fma(v_set(p[k]), v_ld(q + k * {plans[2].strides[-2]}), s);",
        f"v_stn({where[0]} + m * {plans[0].strides[-2]} + n, s, {columns} - n);", "}",
    ]  # fmt: skip


_EMIT: dict[type[Call], Callable[[Text, Any], list[str]]] = {
    Contract: contract, Fill: fill, Loop: loop, Product: product, Reduce: reduce, Resize: resize, Softmax: softmax, Window: window,
}  # fmt: skip
