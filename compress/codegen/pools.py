"""The text of loops over the pixels of a map, or along one axis: pools, resizing, softmax."""

import numpy as np

from .calls import Resize, Softmax, Window
from .loops import finish, padded
from .plan import Layout, layout
from .text import Text, literal


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
    inside = not any(call.pads) and all(
        (out.shape[2 + a] - 1) * call.strides[a] + (call.kernel[a] - 1) * call.dilations[a] < size[a] for a in (0, 1)
    )
    for axis, (name, at) in enumerate((("y", "y"), ("x", "x"))):
        kernel, stride, dilation, pad, end = (
            call.kernel[axis],
            call.strides[axis],
            call.dilations[axis],
            call.pads[axis],
            call.pads[2 + axis],
        )
        if inside:
            lines += [f"const int {name}0 = {at} * {stride}, {name}k = 0, {name}e = {kernel};"]
            continue
        lines += [f"const int {name}0 = {at} * {stride} - {pad};", f"int {name}k = 0, {name}e = {kernel};"]
        lines += [
            f"while ({name}0 + {name}k * {dilation} < 0) {name}k++;",
            f"while ({name}0 + ({name}e - 1) * {dilation} >= {size[axis]}) {name}e--;",
        ]
        if call.count_pads:
            lines += [f"int {name}c = {kernel};", f"while ({name}0 + ({name}c - 1) * {dilation} >= {size[axis] + end}) {name}c--;"]
    bytes_ = (
        source.dtype == out.dtype == "u8"
        and call.op == "max"
        and call.after[0].op == "acc"
        and vector
        and padded(out, plan, 1, lanes)
        and padded(source, under, 1, lanes)
    )
    if bytes_:
        prefix, step = "b", "K_LANES"
    kind, load = {"v": "vf", "s": "float", "b": "vb"}[prefix], "ldu" if source.dtype == "u8" and not bytes_ else "ld"
    channel = "i" if vector else f"i * {under.strides[1]}"
    row, column = (f"({name}0 + {{}} * {call.dilations[axis]}) * {under.strides[2 + axis]}" for axis, name in enumerate("yx"))
    tap = f"{prefix}_{load}(a + n * {under.strides[0]} + {row} + {column} + {channel})"
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
    lines += [f"b_st({where}, s);"] if bytes_ else finish(text, call.after[0], where, out, prefix, "s", left)
    return [*lines, "}", "}"]


def softmax(text: Text, call: Softmax) -> list[str]:
    """Along one axis, for every place of the others."""
    [out], lanes = call.writes, text.lanes
    plan, under, axis = layout(out, lanes), layout(call.source, lanes), call.axis
    others = [at for at in range(len(out.shape)) if at != axis and out.shape[at] > 1]
    names = {at: text.fresh("i") for at in others}
    heads = [f"for (int {names[at]} = 0; {names[at]} < {out.shape[at]}; {names[at]}++)" for at in others]
    o, a = (" + ".join([name, *(f"{names[at]} * {which.strides[at]}" for at in others)]) for name, which in (("o", plan), ("a", under)))
    pointers = [text.pointer("o", out, plan.start, write=True), text.pointer("a", call.source, under.start)]
    return [*pointers, *heads, f"k_softmax({o}, {plan.strides[axis]}, {a}, {under.strides[axis]}, {out.shape[axis]});"]


def places(plan: Layout) -> str:
    """Where number (n, c, y, x) is."""
    return " + ".join(f"{name} * {step}" for name, step in zip("ncyx", plan.strides, strict=True))


def resize(text: Text, call: Resize) -> list[str]:
    """Two rows and two columns of the source, weighted."""
    [out], lanes, source = call.writes, text.lanes, call.source
    plan, under = layout(out, lanes), layout(source, lanes)
    tables = [text.array(np.array([list(map(int, one[:2])) for one in axis], np.int32)) for axis in (call.rows, call.columns)]
    n, c, rows, columns = out.shape
    load = "s_ldu" if source.dtype == "u8" else "s_ld"
    tap = lambda j, k: f"{load}(q + {tables[0]}[2 * y + {j}] * {under.strides[2]} + {tables[1]}[2 * x + {k}] * {under.strides[3]})"  # noqa: E731
    linear = any(one[2] for axis in (call.rows, call.columns) for one in axis)
    weights = [text.array(np.array([one[2] for one in axis], np.float32)) for axis in (call.rows, call.columns)] if linear else ["", ""]
    across = [f"{tap(j, 0)} + ({tap(j, 1)} - {tap(j, 0)}) * {weights[1]}[x]" for j in (0, 1)]
    value = (
        [f"const float s = {across[0]}, t = {across[1]};", f"const float v = s + (t - s) * {weights[0]}[y];"]
        if linear
        else [f"const float v = {tap(0, 0)};"]
    )
    return [
        text.pointer("o", out, plan.start, write=True), text.pointer("a", source, under.start),
        f"for (int n = 0; n < {n}; n++) for (int y = 0; y < {rows}; y++)",
        f"for (int x = 0; x < {columns}; x++) for (int c = 0; c < {c}; c++) {{",
        f"const {'uint8_t' if source.dtype == 'u8' else 'k_f32'} *q = a + n * {under.strides[0]} + c * {under.strides[1]};",
        *value,
        f"s_{'stu' if out.dtype == 'u8' else 'st'}(o + {places(plan)}, v);", "}",
    ]  # fmt: skip
