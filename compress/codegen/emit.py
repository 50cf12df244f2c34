"""From calls to C: one function for each call, with its sizes as constants."""

from collections.abc import Callable, Sequence
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


def filled(values: NDArray[Any], lanes: int) -> NDArray[Any]:
    """Zeros behind one number per channel, up to the next multiple."""
    return np.concatenate([values.ravel(), np.zeros(rounded(values.size, lanes) - values.size, values.dtype)])


def stored_last(out: Tensor, n: int, lanes: int) -> int:
    """How many numbers of the last panel are stored: the padding too where it is nobody else's."""
    mine = out.whole is out or out.whole.shape[-1 if out.kind == "rows" else 1] == n
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


def multipliers(call: Contract, lanes: int, place: slice = slice(None)) -> NDArray[np.float32]:
    """What an integer is in the output, one per channel."""
    assert call.scale is not None
    return filled(call.scale[place] / np.float32(call.quantize[0] if call.quantize else 1), lanes)


def out_bytes(call: Contract) -> str:
    """The pointer to the output, as bytes."""
    return "o" if call.quantize else "(uint8_t *)(void *)o"


def ends(call: Contract) -> str:
    """Where numbers end, and the zero point before it where they are uint8."""
    if call.scale is None or call.quantize is None:
        zero = "" if call.scale is None else "0, "
        return f"{zero}{literal(max(call.low, -(2.0**127)))}, {literal(min(call.high, 2.0**127))}"
    scale, zero_point = call.quantize
    low, high = (float(np.rint(np.float32(one) / np.float32(scale))) for one in (call.low, call.high))
    return f"{int(zero_point)}, {literal(max(low, -zero_point))}, {literal(min(high, 255 - zero_point))}"


def contract(text: Text, call: Contract) -> list[str]:
    """A convolution or matrix product with weights."""
    [out], lanes, filters = call.writes, text.lanes, call.weights
    plan, under, (oh, ow, rows, columns), (ih, iw, ah, aw) = geometry(call, lanes)
    corner = 0 if call.matrix else call.pads[0] * under.strides[2] + call.pads[1] * under.strides[3]
    images = 1 if call.matrix else out.shape[0]
    n, c, kh, kw = filters.shape
    bounds, wide = ends(call), int(call.quantize is None)
    pool, suffix = (2, "_pool") if call.pooled else (1, "")
    by_rows, count = share(call.source, out, lanes), rows  # the result lies over the source: all of a row before the next
    if call.depthwise():
        cs = rounded(n, lanes)
        h, w = call.source.shape[2:]
        to, of = (f"{where.strides[2]}, {where.strides[3]}" for where in (plan, under))
        top = f"{call.pads[0]} - y * {call.strides[0]}" if by_rows else call.pads[0]
        how = ", ".join(map(str, (h, w, 1 if by_rows else rows, columns, kh, kw, *call.strides, *call.dilations, top, call.pads[1])))
        if call.scale is None:
            spread = np.zeros((kh * kw, cs), np.float32)
            spread[:, :n] = filters.reshape(n, -1).T
            tables = [text.array(spread), text.array(filled(call.bias, lanes))]
            line = f"k_depthwise(o, {to}, a, {of}, {how}, {', '.join(tables)}, {cs}, {bounds});"
        else:
            tables = [
                text.array(columns_of_four(filters, lanes)),
                biases(text, call, filters.reshape(n, -1)),
                text.array(multipliers(call, lanes)),
            ]
            line = f"k_depthwise8({out_bytes(call)}, {to}, {wide}, a, {of}, {call.zero}, {how}, {', '.join(tables)}, {cs}, {bounds});"
        lines = [f"for (int y = 0; y < {count}; y++, o += {oh}) {line}"] if by_rows else [line]
        return images_of(text, call, plan.start, under.start, images, plan, under, lines)
    if out.kind == "planes":
        values = f"{text.array(np.ascontiguousarray(filters, np.float32))}, {text.array(call.bias)}"
        size = f"{rows}, {columns}, {n}, {c}, {kh}, {kw}, {ah}, {aw}"
        line = f"k_planes(o, {plan.strides[1]}, {oh}, a, {under.strides[1]}, {ih}, {size}, {values}, {bounds});"
        return images_of(text, call, plan.start, under.start - corner, images, plan, under, [line])
    each = n // call.groups
    if aw == c and call.groups == 1:  # a row of taps is one run
        c, kw, aw = c * kw, 1, 0
    if ah == c and kw == 1 and call.groups == 1:
        c, kh, ah = c * kh, 1, 0
    if by_rows:
        rows = 1
    elif kh == kw == pool == 1 and ih == columns * iw and oh == columns * ow:
        rows, columns = 1, rows * columns
    lines = []
    for group in range(call.groups):
        part = filters[group * each : (group + 1) * each]
        place = slice(group * each, (group + 1) * each)
        last = stored_last(out, n, lanes) if call.groups == 1 else (each - 1) % lanes + 1
        size = f"{ih}, {iw}, {rows}, {columns}, {kh}, {ah}, {kw}, {aw}"
        if call.scale is None:
            tables = [text.array(panels(part, lanes)), text.array(filled(call.bias[place], lanes))]
            start = f"o + {group * each}, {oh}, {ow}, a + {group * c}"
            lines += [f"k_conv{suffix}({start}, {size}, {c}, {', '.join(tables)}, {each}, {last}, {bounds});"]
        else:
            runs = part.transpose(0, 2, 3, 1).reshape(each, kh * kw, c)
            tables = [
                text.array(words(runs, lanes)),
                biases(text, call, runs.reshape(each, -1), place),
                text.array(multipliers(call, lanes, place)),
            ]
            start = f"{out_bytes(call)} + {group * each * (4 if wide else 1)}, {oh}, {ow}, {wide}, a + {group * c}"
            lines += [f"k_conv8{suffix}({start}, {size}, {rounded(c, 4) // 4}, {', '.join(tables)}, {each}, {last}, {bounds});"]
    lines = [f"for (int y = 0; y < {count}; y++, o += {oh}, a += {ih * pool}) {{", *lines, "}"] if by_rows else lines
    return images_of(text, call, plan.start, under.start - corner, images, plan, under, lines)


def images_of(
    text: Text, call: Contract, start: int, begin: int, images: int, plan: Layout, under: Layout, lines: Sequence[str]
) -> list[str]:
    """The lines, once for each image of a batch."""
    found = []
    for image in range(images):
        o, a = (
            text.pointer("o", call.writes[0], start + image * plan.strides[0] * (images > 1), write=True),
            text.pointer("a", call.source, begin + image * under.strides[0] * (images > 1)),
        )
        found += ["{", o, a, *lines, "}"]
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
