"""GELU as graphs before opset 20 write it, x * (1 + erf(x / sqrt(2))) / 2, in any order of its numbers; LiteRT has it whole only."""

import math

import numpy as np

from ..codegen.read import Node
from .lowering import End, Lowering


def gelu(low: Lowering, node: Node) -> bool:
    """Lower a node that scales x for an Erf, and all that follows of it; False where it is none."""
    erf = low.only_reader(node.outputs[0])
    if erf is None or erf.kind != "Erf" or node.kind not in ("Mul", "Div"):
        return False
    x, factor = _scaled(low, node)
    if x is None or not math.isclose(factor, math.sqrt(0.5), rel_tol=1e-5):
        return False
    factor, done, reader = 1.0, [node, erf], low.only_reader(erf.outputs[0])
    if reader is None or reader.kind != "Add" or not math.isclose(_other(low, reader, erf.outputs[0]), 1.0):
        return False
    halves = {one.outputs[0]: one for one in low.reading.get(x, []) if one.kind in ("Mul", "Div") and one is not node}
    joined = False
    while not joined or not math.isclose(factor, 0.5, rel_tol=1e-5):
        done.append(reader)
        name, reader = reader.outputs[0], low.only_reader(reader.outputs[0])
        if reader is None or reader.kind not in ("Mul", "Div"):
            return False
        [other] = [one for one in reader.inputs if one != name] or [name]
        if low.is_constant(other):
            factor *= _scaled(low, reader)[1]
        elif not joined and reader.kind == "Mul" and (other == x or _scaled(low, halves.get(other))[0] == x):
            if other != x:
                factor *= _scaled(low, halves[other])[1]
                done.append(halves[other])
            joined = True
        else:
            return False
    source = low.floats(x)
    end = End(reader.outputs[0], (*done, reader))
    low.file.add("GELU", [source.at], [low.output(reader, end, last=source.last).at], "GeluOptions", approximate=False)
    return True


def _scaled(low: Lowering, node: Node | None) -> tuple[str | None, float]:
    """What a node multiplies by one number, and that."""
    if node is None or len(constants := [one for one in node.inputs if low.is_constant(one)]) != 1:
        return None, math.nan
    number = _number(low, node, constants[0])
    [name] = [one for one in node.inputs if one != constants[0]]
    if node.kind == "Div" and node.inputs[1] != constants[0]:
        return None, math.nan
    return name, 1 / number if node.kind == "Div" else number


def _other(low: Lowering, node: Node, name: str) -> float:
    [other] = [one for one in node.inputs if one != name] or [name]
    return _number(low, node, other) if low.is_constant(other) else math.nan


def _number(low: Lowering, node: Node, name: str) -> float:
    found = low.numbers(node, node.inputs.index(name))
    return float(np.asarray(found).reshape(-1)[0]) if np.size(found) == 1 else math.nan
