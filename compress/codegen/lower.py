"""From nodes to calls: what is stored, what is an expression, and which node disappears in the call before it.

A Relu, Clip or QuantizeLinear goes into the call that makes what it alone reads. A product with a gate waits, as an expression, for the Add and
Relu behind it. The parts of a Concat are stored where they belong in it. A Gemm behind a Flatten is a convolution as large as the map.
Convolutions of int8 tensors by int8 weights stay in integers: ``Contract.scale`` is what one of them stands for.

Refuses, by node: operators that ``NODES`` does not have, and settings of them that are not computed here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calls import ACC, Call, Contract, Fill, Loop, Product, Reduce, Resize, Softmax, Window
from .expressions import Expr, Shape, Tensor, broadcast, constant, dtype_of, function, load, move, number, reshape, straight
from .read import Constant, Graph, Node, Quantized


class Lowering:
    """The calls for a graph; ``values``: what each tensor of the graph is."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.calls: list[Call] = []
        self.values: dict[str, Expr] = {}
        self.makers: dict[Tensor, Call] = {}
        self.stored: dict[Expr, Tensor] = {}
        self.done: set[Node] = set()
        self.reading = {name: node for node in graph.nodes for name in node.inputs}
        shape, kind = graph.shapes[graph.input], graph.types[graph.input]
        self.image = Tensor(graph.input, shape, "u8" if kind == np.uint8 else "f32", kind="plain", place="image")
        self.values[graph.input] = load(self.image)

    # What is asked of nodes

    def shape(self, node: Node, output: int = 0) -> Shape:
        return self.graph.shapes[node.outputs[output]]

    def constant(self, node: Node, place: int, what: str) -> Constant:
        """An input that must be a constant."""
        found = self.graph.constants.get(node.inputs[place])
        if found is None:
            raise node.refuse(f"{what} must be a constant")
        return found

    def numbers(self, node: Node, place: int, what: str) -> NDArray[Any]:
        """A constant as numbers."""
        found = self.constant(node, place, what)
        return found.numbers() if isinstance(found, Quantized) else found

    def get(self, node: Node, place: int = 0) -> Expr:
        """An input as an expression."""
        name = node.inputs[place]
        if name in self.graph.constants:
            values = self.numbers(node, place, name)
            if values.dtype.kind not in "fiub":
                raise node.refuse(f"constants of type {values.dtype}")
            return constant(values, name)
        if name not in self.values:
            raise node.refuse(f'its input "{name}" is of a type that is not computed here')
        found = self.values[name]
        return load(self.stored[found]) if found in self.stored else found

    # What is stored

    def add(self, call: Call) -> None:
        self.calls.append(call)
        self.makers.update(dict.fromkeys(call.writes, call))

    def fits(self, tensor: Tensor, kind: str | None, halo: bool) -> bool:
        """Whether the tensor lies, or may be laid, in memory in this way."""
        whole = tensor.whole
        fixed = whole.place != "arena" or whole.kind == "plain"
        if halo and (fixed or tensor.alias or tensor.shape[2:] != whole.shape[2:]):
            return False
        if kind is None:
            return True
        if kind == "plain" and (any(whole.halo) or tensor.inside):
            return False
        if whole.kind is None and tensor.alias is None and not fixed:
            whole.kind = kind
            return True
        simple = sum(size > 1 for size in tensor.shape) <= 1 and tensor.shape == whole.shape
        flat = len(tensor.shape) == 4 and whole.shape[1] == tensor.shape[0] == 1 and {kind, whole.kind} <= {"pixel", "tight", "planes"}
        return whole.place == "arena" and (kind == whole.kind or simple or flat)

    def store(self, source: Expr, name: str, kind: str | None = None, *, halo: bool = False, inside: tuple[Tensor, Shape] | None = None) -> Tensor:
        """The tensor that holds an expression, in a layout of this kind, with a margin where it must have one, as a part of another."""
        known = source.tensor if source.is_whole() else self.stored.get(source)
        if known is not None and inside is None and self.fits(known, kind, halo):
            return known
        if source.op == "reshape":
            flat = self.store(source.args[0], name, "plain")
            alias = Tensor(name, source.shape, flat.dtype, alias=flat, kind="plain")
            return alias if self.fits(alias, kind, halo) and inside is None else self.store(load(alias), name, kind, halo=halo, inside=inside)
        tensor = Tensor(name, source.shape, dtype_of(source), kind=None if inside else kind, inside=inside)
        self.add(Loop(name=name, writes=[tensor], source=source))
        self.stored.setdefault(source, tensor)
        return tensor

    def result(self, node: Node, source: Expr) -> None:
        """What the node gives; stored at once where it is read several times and costs more than that."""
        name = node.outputs[0]
        if self.graph.readers[name] > 1 and (source.is_heavy() or source.size() > 2) and source.op not in ("dequantize", "reshape"):
            source = load(self.store(source, name))
        self.values[name] = source

    def operand(self, source: Expr, shape: Shape, name: str) -> Expr:
        """What a function of this shape reads: stored first where it would be computed again and again."""
        if source.is_heavy() and np.prod(source.shape) < np.prod(shape):
            return load(self.store(source, name))
        return self.usable(source, name)

    def usable(self, source: Expr, name: str) -> Expr:
        """An expression that other functions can read: what was put in another order is stored."""
        return load(self.store(source, name)) if source.op == "reshape" else source

    def alone(self, node: Node, *kinds: type[Call]) -> Any:
        """The call of these kinds that makes what only this node reads, or None."""
        source = self.values.get(node.inputs[0])
        if source is None or not source.is_whole() or self.graph.readers[node.inputs[0]] > 1:
            return None
        found = self.makers.get(source.tensor)  # type: ignore[arg-type]
        return found if isinstance(found, kinds) else None

    # Functions of one number after the other

    def pointwise(self, node: Node, op: str, *args: Expr, numbers: tuple[float, ...] = ()) -> Expr:
        shape = np.broadcast_shapes(*(one.shape for one in args))
        if args[0].op == "reshape" and all(one.op == "number" for one in args[1:]):
            return function(op, *args, numbers=numbers)
        return function(op, *(self.operand(one, shape, f"{node.name}_in") for one in args), numbers=numbers)

    def after(self, node: Node, change: Callable[[Expr], Expr]) -> bool:
        """Let the reduction or pool before the node compute it; whether that was possible."""
        call = self.alone(node, Reduce, Window)
        if call is None:
            return False
        place = call.writes.index(self.values[node.inputs[0]].tensor)
        call.after[place] = change(call.after[place])
        call.writes[place].dtype = dtype_of(call.after[place])
        self.values[node.outputs[0]] = self.values[node.inputs[0]]
        return True

    def bounds(self, node: Node, low: float, high: float) -> None:
        """Clip, Relu and Relu6."""
        call = self.alone(node, Contract)
        if call is not None and call.quantize is None and call.low == -np.inf and call.high == np.inf:
            call.low, call.high = low, high
            self.values[node.outputs[0]] = self.values[node.inputs[0]]
            return

        def change(x: Expr) -> Expr:
            x = self.pointwise(node, "min", x, number(high)) if high < np.inf else x
            return self.pointwise(node, "max", x, number(low)) if low > -np.inf else x

        if not self.after(node, change):
            self.result(node, change(self.get(node)))

    def unary(self, node: Node, change: Callable[[Expr], Expr]) -> None:
        if not self.after(node, change):
            self.result(node, change(self.operand(self.get(node), self.shape(node), f"{node.name}_in")))

    def fold(self, node: Node, op: str) -> None:
        """A function of two, over all inputs."""
        source = self.get(node)
        for place in range(1, len(node.inputs)):
            source = self.pointwise(node, op, source, self.get(node, place))
        self.result(node, source)

    # int8

    def parameters(self, node: Node) -> tuple[float, float, bool]:
        """Scale, zero point as of uint8, and whether the integers are signed."""
        scale = self.numbers(node, 1, "the scale")
        zero = self.numbers(node, 2, "the zero point") if len(node.inputs) > 2 and node.inputs[2] else np.zeros((), np.uint8)
        if scale.size != 1 or zero.dtype not in (np.uint8, np.int8):
            raise node.refuse("scale and zero point of activations must be one number, of uint8 or int8")
        signed = zero.dtype == np.int8
        return float(scale.reshape(())), float(zero.reshape(())) + 128 * signed, signed

    def quantize(self, node: Node) -> None:
        scale, zero, _ = self.parameters(node)
        call = self.alone(node, Contract)
        if call is not None and call.quantize is None and call.scale is not None:
            call.quantize, call.writes[0].dtype = (scale, zero), "u8"
            self.values[node.outputs[0]] = self.values[node.inputs[0]]
        elif not self.after(node, lambda x: function("quantize", x, numbers=(scale, zero))):
            self.result(node, self.pointwise(node, "quantize", self.get(node), numbers=(scale, zero)))

    def dequantize(self, node: Node) -> None:
        scale, zero, _ = self.parameters(node)
        source = self.get(node)
        if source.op == "reshape":
            self.values[node.outputs[0]] = function("dequantize", source, numbers=(scale, zero))
        else:
            self.values[node.outputs[0]] = Expr("dequantize", source.shape, (source,), (scale, zero))

    # The rest of the file's methods are one per kind of node; see NODES.

    def concat(self, node: Node) -> None:
        shape, reader = self.shape(node), self.reading.get(node.outputs[0])
        axis, start = node.settings["axis"] % len(shape), 0
        parts = [self.usable(self.get(node, place), f"{node.name}_in") for place in range(len(node.inputs))]
        output = node.outputs[0]
        if reader is not None and reader.kind == "QuantizeLinear" and self.graph.readers[output] == 1:  # each part for itself
            scale, zero, _ = self.parameters(reader)
            parts = [function("quantize", one, numbers=(scale, zero)) for one in parts]
            output = reader.outputs[0]
            self.done.add(reader)
        if len({dtype_of(one) for one in parts}) > 1:
            parts = [function("copy", one) if dtype_of(one) == "u8" else one for one in parts]
        whole = Tensor(output, shape, dtype_of(parts[0]))
        for place, part in enumerate(parts):
            at = tuple(start if one == axis else 0 for one in range(len(shape)))
            start += part.shape[axis]
            tensor = part.tensor if part.is_whole() else self.stored.get(part)
            if tensor is not None and self.may_join(tensor, whole):
                whole.kind = whole.kind or tensor.kind
                tensor.inside, tensor.kind = (whole, at), None
            else:
                self.store(part, f"{output}_{place}", inside=(whole, at))
        self.values[output] = load(whole)

    def may_join(self, tensor: Tensor, whole: Tensor) -> bool:
        """Whether a tensor can be stored as a part of another from the start."""
        free = tensor.place == "arena" and tensor.inside is None and tensor.alias is None and not any(tensor.halo)
        same = tensor.kind is None or whole.kind in (None, tensor.kind)
        return free and same and tensor.kind != "plain" and tensor.dtype == whole.dtype and tensor is not whole

    def slices(self, node: Node) -> None:
        source = self.usable(self.get(node), f"{node.name}_in")
        starts, ends = (self.numbers(node, place, "where it begins and ends").reshape(-1) for place in (1, 2))
        axes = self.numbers(node, 3, "axes").reshape(-1) if len(node.inputs) > 3 and node.inputs[3] else np.arange(len(starts))
        steps = self.numbers(node, 4, "steps").reshape(-1) if len(node.inputs) > 4 and node.inputs[4] else np.ones(len(starts), int)
        ways = list(straight(source.shape))
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            first, _, stride = slice(int(start), int(end), int(step)).indices(source.shape[axis])
            ways[axis] = (int(axis), first, stride)
        self.result(node, move(source, self.shape(node), ways))

    def split(self, node: Node) -> None:
        source = self.usable(self.get(node), f"{node.name}_in")
        axis, start = node.settings.get("axis", 0) % len(source.shape), 0
        if any(self.graph.readers[name] for name in node.outputs) and not source.is_whole():
            source = load(self.store(source, f"{node.name}_in"))
        for place, name in enumerate(node.outputs):
            shape = self.shape(node, place)
            ways = [(at, start if at == axis else 0, 1) for at in range(len(shape))]
            self.values[name] = move(source, shape, ways)
            start += shape[axis]

    def transpose(self, node: Node) -> None:
        source = self.usable(self.get(node), f"{node.name}_in")
        order = node.settings.get("perm", tuple(reversed(range(len(source.shape)))))
        ways = tuple((list(order).index(axis) if size > 1 else None, 0, 1) for axis, size in enumerate(source.shape))
        self.result(node, move(source, self.shape(node), ways))

    def view(self, node: Node) -> None:
        self.result(node, reshape(self.get(node), self.shape(node)))

    def expand(self, node: Node) -> None:
        self.result(node, broadcast(self.usable(self.get(node), f"{node.name}_in"), self.shape(node)))

    def same(self, node: Node) -> None:
        types = [self.graph.types[name] for name in (node.inputs[0], node.outputs[0])]
        if types[1] != np.float32 and types[0] != types[1]:
            raise node.refuse(f"from {types[0]} to {types[1]}")
        self.values[node.outputs[0]] = self.get(node)

    def pad(self, node: Node) -> None:
        source, shape = self.usable(self.get(node), f"{node.name}_in"), self.shape(node)
        if node.settings.get("mode", "constant") != "constant":
            raise node.refuse(f'mode (="{node.settings["mode"]}") must be constant')
        pads = self.numbers(node, 1, "pads").reshape(-1)
        axes = self.numbers(node, 3, "axes").reshape(-1) if len(node.inputs) > 3 and node.inputs[3] else np.arange(len(shape))
        value = float(self.numbers(node, 2, "the value").reshape(())) if len(node.inputs) > 2 and node.inputs[2] else 0.0
        before, after = [0] * len(shape), [0] * len(shape)
        for place, axis in enumerate(axes):
            before[axis], after[axis] = int(pads[place]), int(pads[len(axes) + place])
        cut = [max(0, -one) for one in before]
        inner = tuple(size - max(0, -a) - max(0, -b) for size, b, a in zip(source.shape, before, after, strict=True))
        value += 128 if self.graph.types[node.inputs[0]] == np.int8 else 0
        source = move(source, inner, [(axis, start, 1) for axis, start in enumerate(cut)])
        whole = Tensor(node.outputs[0], shape, dtype_of(source))
        self.add(Fill(name=node.name, writes=[whole], value=value))
        self.store(source, f"{node.name}_in", inside=(whole, tuple(max(0, one) for one in before)))
        self.values[node.outputs[0]] = load(whole)

    def reduce(self, node: Node) -> None:
        source = self.usable(self.get(node), f"{node.name}_in")
        rank, op = len(source.shape), {"GlobalAveragePool": "mean", "GlobalMaxPool": "max"}.get(node.kind) or node.kind.removeprefix("Reduce").lower()
        axes = node.settings.get("axes", ())
        if node.kind.startswith("Global"):
            axes = range(2, rank)
        elif len(node.inputs) > 1 and node.inputs[1]:
            axes = self.numbers(node, 1, "axes").reshape(-1)
        if not len(axes) and node.settings.get("noop_with_empty_axes", 0):
            self.result(node, source)
            return
        chosen = tuple(sorted(int(axis) % rank for axis in axes)) or tuple(range(rank))
        kept = tuple(1 if axis in chosen else size for axis, size in enumerate(source.shape))
        factor = {"mean": 1 / np.prod([source.shape[axis] for axis in chosen])}.get(op)
        after = function("mul", ACC, number(float(np.float32(factor)))) if factor else ACC
        if source.op == "dequantize" and op != "sum":  # of the integers, which is exact
            after, source = Expr("dequantize", (), (after,), source.numbers), source.args[0]
        if source.op == "quantize" or (source.is_heavy() and self.graph.readers[node.inputs[0]] > 1):
            source = load(self.store(source, f"{node.name}_in"))
        tensor, last = Tensor(node.outputs[0], kept), self.calls[-1] if self.calls else None
        if isinstance(last, Reduce) and last.axes == chosen and same(last.source, source):
            last.writes.append(tensor)
            last.ops.append(op)
            last.after.append(after)
            self.makers[tensor] = last
        else:
            self.add(Reduce(name=node.name, writes=[tensor], source=source, axes=chosen, ops=[op], after=[after]))
        self.values[node.outputs[0]] = reshape(load(tensor), self.shape(node))

    def window(self, node: Node) -> None:
        if len(node.outputs) > 1 and node.outputs[1] and self.graph.readers[node.outputs[1]]:
            raise node.refuse("the places of the maxima")
        source, shape = self.spatial(node, self.get(node)), as_map(node, self.shape(node))
        kernel, strides, dilations, pads = geometry(node, source.shape, shape, node.settings["kernel_shape"])
        op = "max" if node.kind == "MaxPool" else "mean"
        count = bool(node.settings.get("count_include_pad", 0))
        call = Window(name=node.name, writes=[], source=source, op=op, kernel=kernel, strides=strides, dilations=dilations, pads=pads, count_pads=count)
        if source.op == "dequantize" and (op == "max" or not (count and any(pads))):
            call.source, call.after = source.args[0], [ACC if op == "max" else Expr("dequantize", (), (ACC,), source.numbers)]
        if not call.source.is_whole():
            call.source = load(self.store(call.source, f"{node.name}_in"))
        maker = self.makers.get(call.source.tensor)  # type: ignore[arg-type]
        if isinstance(maker, Contract) and self.graph.readers[node.inputs[0]] == 1 and not maker.matrix:
            reach = [(shape[2 + a] - 1) * strides[a] - pads[a] + (kernel[a] - 1) * dilations[a] + 1 for a in (0, 1)]
            maker.limit = min(reach[0], source.shape[2]), min(reach[1], source.shape[3])
        integers = source.op == "dequantize" and op == "max"
        tensor = Tensor(node.outputs[0], shape, "u8" if integers else "f32")
        call.writes = [tensor]
        self.add(call)
        made = Expr("dequantize", shape, (load(tensor),), source.numbers) if integers else load(tensor)
        self.values[node.outputs[0]] = reshape(made, self.shape(node))

    def spatial(self, node: Node, source: Expr) -> Expr:
        """(N, C, W) as a map of one row."""
        return reshape(self.usable(source, f"{node.name}_in"), as_map(node, source.shape))

    def convolution(self, node: Node) -> None:
        weights, source = self.constant(node, 1, "the weights"), self.get(node)
        shape, wide = as_map(node, self.shape(node)), as_map(node, source.shape)
        source = reshape(source, wide) if source.op == "reshape" or wide != source.shape else source
        given = weights.values if isinstance(weights, Quantized) else weights
        kernel, strides, dilations, pads = geometry(node, wide, shape, node.settings.get("kernel_shape", given.shape[2:]))
        filters = given.reshape(*given.shape[:2], *kernel)
        bias = self.constant(node, 2, "the bias") if len(node.inputs) > 2 and node.inputs[2] else np.zeros(len(given), np.float32)
        self.contract(
            node, source, weights, filters, bias, shape, strides=strides, dilations=dilations, pads=pads[:2], groups=node.settings.get("group", 1)
        )

    def gemm(self, node: Node) -> None:
        left, alpha, beta = self.get(node), node.settings.get("alpha", 1.0), node.settings.get("beta", 1.0)
        right = self.graph.constants.get(node.inputs[1])
        if right is None and node.kind == "MatMul":
            self.product(node)
            return
        weights = self.constant(node, 1, "the second matrix")
        given = weights.values if isinstance(weights, Quantized) else weights
        if node.settings.get("transA", 0):
            left = move(self.usable(left, f"{node.name}_in"), left.shape[::-1], [(1, 0, 1), (0, 0, 1)])
        if given.ndim != 2 or len(left.shape) < 2:
            self.product(node)
            return
        given = given if node.settings.get("transB", 0) else given.T
        third = len(node.inputs) > 2 and bool(node.inputs[2])
        bias = self.graph.constants.get(node.inputs[2]) if third else np.zeros(len(given), np.float32)
        plain = alpha == beta == 1 and bias is not None and np.size(bias.values if isinstance(bias, Quantized) else bias) == len(given)
        if not plain:  # a matrix is added, or something is scaled
            self.scaled_gemm(node, left, weights, given, alpha, beta, third)
            return
        assert bias is not None
        inner = left.args[0].args[0] if left.op == "dequantize" and left.args[0].op == "reshape" else left.args[0] if left.op == "reshape" else None
        if inner is not None and len(inner.shape) == 4 and inner.shape[0] == left.shape[0] == 1:
            wide = Expr("dequantize", inner.shape, (inner,), left.numbers) if left.op == "dequantize" else inner
            self.contract(node, wide, weights, given.reshape(len(given), *inner.shape[1:]), bias, (1, len(given), 1, 1))
        else:
            self.contract(node, left, weights, given.reshape(*given.shape, 1, 1), bias, self.shape(node), matrix=True)

    def scaled_gemm(self, node: Node, left: Expr, weights: Constant, given: NDArray[Any], alpha: float, beta: float, third: bool) -> None:
        numbers = weights.numbers() if isinstance(weights, Quantized) else weights
        numbers = (numbers if numbers.shape == given.shape else numbers.T) * np.float32(alpha)
        zeros = np.zeros(len(given), np.float32)
        self.contract(node, left, numbers, numbers.reshape(*given.shape, 1, 1), zeros, self.shape(node), matrix=True)
        if third:
            added = function("mul", self.get(node, 2), number(beta))
            self.result(node, self.pointwise(node, "add", self.values[node.outputs[0]], added))

    def contract(self, node: Node, source: Expr, weights: Constant, filters: NDArray[Any], bias: Constant, shape: Shape, **how: Any) -> None:
        """One convolution or product with weights; ``filters`` are its (N, C, kh, kw)."""
        matrix, few = how.get("matrix", False), len(filters) <= 3 and how.get("groups", 1) == 1 and np.prod(shape[2:]) > 1
        few = few and not matrix and how.get("strides", (1, 1)) == (1, 1)
        integers = isinstance(weights, Quantized) and source.op == "dequantize" and is_int8(weights)
        scale, zero = None, 0
        numbers = (bias.numbers() if isinstance(bias, Quantized) else np.asarray(bias, np.float32)).reshape(-1)
        if integers:
            assert isinstance(weights, Quantized)
            scale = np.broadcast_to(np.float32(source.numbers[0]) * weights.scale, (len(filters),)).astype(np.float32)
            source, zero = source.args[0], int(source.numbers[1])
            whole = bias.values.reshape(-1) if isinstance(bias, Quantized) and not np.any(bias.zero) else np.rint(numbers / scale)
            numbers = whole.astype(np.int32)
        elif isinstance(weights, Quantized):
            flat = weights.numbers()
            filters = (flat if flat.size and flat.shape == filters.shape[: flat.ndim] else flat.T if flat.ndim == 2 and flat.shape[0] != len(filters) else flat).reshape(filters.shape)
        if integers and few:  # whole numbers in float32, exact up to 2^24
            source, filters = function("sub", self.usable(source, node.name), number(zero)), filters.astype(np.float32)
            numbers = numbers.astype(np.float32)
        tight = not matrix and filters.shape[1] <= 4 and how.get("groups", 1) == 1
        source = source if integers and not few else number_of(source)
        kind = "rows" if matrix else "planes" if few else "tight" if tight else "pixel"
        if not matrix:
            halo = margin(source.shape, shape, filters.shape[2:], **{key: how.get(key, value) for key, value in (("strides", (1, 1)), ("dilations", (1, 1)), ("pads", (0, 0)))})
        depthwise = how.get("groups", 1) == len(filters) == source.shape[1] > 1 and not matrix
        margins = not matrix and any(halo) and not depthwise
        stored = self.store(source, f"{node.name}_in", kind, halo=margins or few)
        if margins:
            stored.whole.halo = [max(pair) for pair in zip(stored.whole.halo, halo, strict=True)]
            stored.whole.fill = zero if not few else 0
        tensor = Tensor(node.outputs[0], shape, kind="rows" if matrix else "planes" if few else "pixel")
        call = Contract(name=node.name, writes=[tensor], source=stored, weights=filters, bias=numbers, **how)
        self.add(call)
        made = load(tensor)
        if integers and few:
            made = function("mul", made, constant(scale.reshape(1, -1, 1, 1), f"{node.name}_scale"))  # type: ignore[union-attr]
        elif integers:
            call.scale, call.zero = scale, zero
        self.values[node.outputs[0]] = reshape(made, self.shape(node))

    def product(self, node: Node) -> None:
        left, right = self.get(node), self.get(node, 1)
        if min(len(left.shape), len(right.shape)) < 2 or node.kind != "MatMul":
            raise node.refuse("products of vectors, or of two computed matrices, must be a MatMul of matrices")
        tensor = Tensor(node.outputs[0], self.shape(node), kind="rows")
        pair = [self.store(number_of(one), f"{node.name}_in{place}", "rows") for place, one in enumerate((left, right))]
        self.add(Product(name=node.name, writes=[tensor], left=pair[0], right=pair[1]))
        self.values[node.outputs[0]] = load(tensor)

    def softmax(self, node: Node) -> None:
        source = self.store(number_of(self.get(node)), f"{node.name}_in")
        tensor = Tensor(node.outputs[0], source.shape)
        self.add(Softmax(name=node.name, writes=[tensor], source=source, axis=node.settings.get("axis", -1) % len(source.shape)))
        self.values[node.outputs[0]] = load(tensor)

    def normalise(self, node: Node) -> None:
        if node.settings.get("training_mode", 0):
            raise node.refuse("training_mode (=1) must be 0")
        gain, shift, mean, variance = (self.numbers(node, place, "its numbers") for place in (1, 2, 3, 4))
        factor = gain / np.sqrt(variance + np.float32(node.settings.get("epsilon", 1e-5)))
        source = self.get(node)
        along = (-1, *[1] * (len(source.shape) - 2))
        scaled = self.pointwise(node, "mul", source, constant(factor.reshape(along), f"{node.name}_factor"))
        self.result(node, function("add", scaled, constant((shift - mean * factor).reshape(along), f"{node.name}_shift")))

    def resize(self, node: Node) -> None:
        source, shape = self.store(self.get(node), f"{node.name}_in", "pixel"), self.shape(node)
        if len(shape) != 4 or shape[:2] != source.shape[:2]:
            raise node.refuse("only height and width can be resized")
        scales = self.numbers(node, 2, "scales").reshape(-1) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(0)
        how = {"coordinates": "half_pixel", "nearest": "round_prefer_floor"}
        how = {key: node.settings.get(f"{key.removesuffix('s')}_transformation_mode" if key == "coordinates" else "nearest_mode", value) for key, value in how.items()}
        mode = node.settings.get("mode", "nearest")
        if mode not in ("nearest", "linear") or node.settings.get("antialias", 0) or how["coordinates"] == "tf_crop_and_resize":
            raise node.refuse(f'mode (="{mode}") must be nearest or linear, without antialias and cropping')
        places = []
        for axis in (2, 3):
            scale = float(scales[axis]) if len(scales) == 4 else shape[axis] / source.shape[axis]
            places.append([sample(mode, how, x, scale, source.shape[axis], shape[axis]) for x in range(shape[axis])])
        tensor = Tensor(node.outputs[0], shape, kind="pixel")
        self.add(Resize(name=node.name, writes=[tensor], source=source, rows=places[0], columns=places[1]))
        self.values[node.outputs[0]] = load(tensor)


def sample(mode: str, how: dict[str, str], x: int, scale: float, size: int, wanted: int) -> tuple[int, int, float]:
    """Where output ``x`` is in a row of ``size``: two places, and the weight of the second."""
    match how["coordinates"]:
        case "align_corners":
            at = x * (size - 1) / (wanted - 1) if wanted > 1 else 0.0
        case "asymmetric":
            at = x / scale
        case "pytorch_half_pixel":
            at = (x + 0.5) / scale - 0.5 if wanted > 1 else 0.0
        case "half_pixel_symmetric":
            at = size / 2 * (1 - wanted / (scale * size)) + (x + 0.5) / scale - 0.5
        case _:
            at = (x + 0.5) / scale - 0.5
    if mode == "nearest":
        low = {"floor": np.floor(at), "ceil": np.ceil(at), "round_prefer_ceil": np.floor(at + 0.5)}.get(how["nearest"], np.ceil(at - 0.5))
        place = int(min(max(low, 0), size - 1))
        return place, place, 0.0
    at = min(max(at, 0.0), size - 1.0)
    return int(at), min(int(at) + 1, size - 1), at - int(at)


def number_of(source: Expr) -> Expr:
    """The expression as float32 where it would be stored as integers."""
    return function("copy", source) if dtype_of(source) == "u8" else source


def same(one: Expr, other: Expr) -> bool:
    """Whether two expressions are the same, written twice."""
    alike = (one.op, one.shape, one.numbers, one.tensor, one.ways) == (other.op, other.shape, other.numbers, other.tensor, other.ways)
    return one is other or (alike and all(same(*pair) for pair in zip(one.args, other.args, strict=True)))


def is_int8(weights: Quantized) -> bool:
    """Whether a convolution can multiply by them as they are."""
    return weights.values.dtype == np.int8 and not np.any(weights.zero)


def as_map(node: Node, shape: Shape) -> Shape:
    """(N, C, W) as (N, C, 1, W)."""
    if len(shape) not in (3, 4):
        raise node.refuse(f"its rank (={len(shape)}) must be 3 or 4")
    return shape if len(shape) == 4 else (*shape[:2], 1, shape[2])


def geometry(node: Node, source: Shape, shape: Shape, kernel: Any) -> tuple[Any, Any, Any, Any]:
    """Kernel, strides, dilations (y, x) and pads (top, left, bottom, right) of a convolution or pool from ``source`` to ``shape``."""
    flat = len(kernel) == 1
    two = lambda values: (1, int(values[0])) if flat else tuple(int(one) for one in values)  # noqa: E731
    kernel = two(kernel)
    strides, dilations = (two(node.settings.get(name, (1, 1))) for name in ("strides", "dilations"))
    pads = tuple(int(one) for one in node.settings.get("pads", (0,) * (2 if flat else 4)))
    pads = (0, pads[0], 0, pads[1]) if len(pads) == 2 else pads
    auto = node.settings.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [max(0, (shape[2 + a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 - source[2 + a]) for a in (0, 1)]
        first = [(one + (auto == "SAME_LOWER")) // 2 for one in total]
        pads = (*first, total[0] - first[0], total[1] - first[1])
    return kernel, strides, dilations, pads


def margin(source: Shape, shape: Shape, kernel: Any, *, strides: Any, dilations: Any, pads: Any) -> list[int]:
    """Zeros around a map that a convolution reads: top, left, bottom, right."""
    end = [(shape[2 + a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 - pads[a] - source[2 + a] for a in (0, 1)]
    return [pads[0], pads[1], max(0, end[0]), max(0, end[1])]


def _activation(build: Callable[[Node, Expr], Expr]) -> Callable[[Lowering, Node], None]:
    return lambda lowering, node: lowering.unary(node, lambda x: build(node, x))


def _hard(node: Node, x: Expr) -> Expr:
    alpha, beta = node.settings.get("alpha", 0.2), node.settings.get("beta", 0.5)
    return function("max", function("min", function("add", function("mul", x, number(alpha)), number(beta)), number(1)), number(0))


def _hard_swish(node: Node, x: Expr) -> Expr:
    sixth = function("add", function("mul", x, number(1 / 6)), number(0.5))
    return function("mul", x, function("max", function("min", sixth, number(1)), number(0)))


def _gelu(node: Node, x: Expr) -> Expr:
    if node.settings.get("approximate", "none") == "tanh":
        cube = function("mul", function("mul", function("mul", x, x), x), number(0.044715))
        inner = function("tanh", function("mul", function("add", x, cube), number(0.7978845608)))
    else:
        inner = function("erf", function("mul", x, number(0.70710678)))
    return function("mul", function("mul", x, number(0.5)), function("add", inner, number(1)))


def _leaky(node: Node, x: Expr) -> Expr:
    return function("add", function("max", x, number(0)), function("mul", function("min", x, number(0)), number(node.settings.get("alpha", 0.01))))


def _elu(node: Node, x: Expr) -> Expr:
    below = function("sub", function("exp", function("min", x, number(0))), number(1))
    return function("add", function("max", x, number(0)), function("mul", below, number(node.settings.get("alpha", 1.0))))


def _prelu(lowering: Lowering, node: Node) -> None:
    x, slope = lowering.operand(lowering.get(node), lowering.shape(node), node.name), lowering.get(node, 1)
    lowering.result(node, function("add", function("max", x, number(0)), function("mul", function("min", x, number(0)), slope)))


def _clip(lowering: Lowering, node: Node) -> None:
    low, high = (
        float(lowering.numbers(node, place, "its bounds").reshape(())) if len(node.inputs) > place and node.inputs[place] else default
        for place, default in ((1, node.settings.get("min", -np.inf)), (2, node.settings.get("max", np.inf)))
    )
    lowering.bounds(node, low, high)


def _one(op: str) -> Callable[[Lowering, Node], None]:
    return _activation(lambda node, x: function(op, x))


def _two(op: str) -> Callable[[Lowering, Node], None]:
    def several(lowering: Lowering, node: Node) -> None:
        lowering.fold(node, op)

    return several


NODES: dict[str, Callable[[Lowering, Node], None]] = {
    **{name: _one(name.lower()) for name in ("Exp", "Sigmoid", "Tanh", "Erf", "Sqrt", "Abs", "Neg")},
    **{name: _two(name.lower()) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "GlobalAveragePool", "GlobalMaxPool"), Lowering.reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), Lowering.view),
    **dict.fromkeys(("Cast", "Identity", "Dropout"), Lowering.same),
    **dict.fromkeys(("MaxPool", "AveragePool"), Lowering.window),
    **dict.fromkeys(("Gemm", "MatMul"), Lowering.gemm),
    "Conv": Lowering.convolution,
    "Relu": lambda lowering, node: lowering.bounds(node, 0.0, np.inf),
    "Clip": _clip,
    "HardSigmoid": _activation(_hard),
    "HardSwish": _activation(_hard_swish),
    "Gelu": _activation(_gelu),
    "LeakyRelu": _activation(_leaky),
    "Elu": _activation(_elu),
    "PRelu": _prelu,
    "Softmax": Lowering.softmax,
    "Concat": Lowering.concat,
    "Split": Lowering.split,
    "Slice": Lowering.slices,
    "Pad": Lowering.pad,
    "Transpose": Lowering.transpose,
    "Expand": Lowering.expand,
    "Resize": Lowering.resize,
    "BatchNormalization": Lowering.normalise,
    "QuantizeLinear": Lowering.quantize,
    "DequantizeLinear": Lowering.dequantize,
}


_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Concat", "Split", "Slice", "Pad", "Transpose", "Expand", "MaxPool")
_INTEGERS = {"QuantizeLinear", "Cast", "Dropout", *_MOVES}


def lower(graph: Graph) -> tuple[list[Call], Tensor, list[Tensor]]:
    """The calls for a graph, the image, and its outputs. Raises CodegenError for what the module refuses."""
    lowering = Lowering(graph)
    for node in graph.nodes:
        if node.kind not in NODES:
            raise node.refuse("there is no kernel for this operator")
        for name in node.outputs:
            if node.kind not in _INTEGERS and graph.types.get(name, np.dtype(np.float32)) != np.float32:
                raise node.refuse(f"its output is {graph.types[name]}, which only {', '.join(sorted(_INTEGERS))} may have")
        if node not in lowering.done:
            NODES[node.kind](lowering, node)
    outputs = []
    for name in graph.outputs:
        found = lowering.values.get(name)
        source = found if found is not None else constant(graph.constants[name].numbers() if isinstance(graph.constants[name], Quantized) else graph.constants[name], name)  # type: ignore[union-attr,arg-type]
        if graph.types.get(name) == np.int8:
            source = function("sub", lowering.usable(source, name), number(128))
        tensor = Tensor(name, graph.shapes[name], kind="plain", place="outputs")
        lowering.add(Loop(name=name, writes=[tensor], source=lowering.usable(source, name)))
        outputs.append(tensor)
    return lowering.calls, lowering.image, outputs
