"""Whole networks as C against ONNX Runtime: every tensor between, the logits, the answers."""

import functools
import tempfile
from pathlib import Path

import c_networks as networks
import numpy as np
import onnx
import pytest
from compiled_c import Compiled, library, needs_gcc
from onnx import helper
from static_int8 import exact_sums

from compress.codegen.program import generate
from compress.codegen.target import TARGETS
from compress.graphs.probe import with_outputs

NATIVE = TARGETS["native"]
FAST = ["-O2", *NATIVE.flags]


def all_tensors(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every tensor as an output, those of the model first."""
    inferred = onnx.shape_inference.infer_shapes(model)
    names = [value.name for value in (*model.graph.output, *inferred.graph.value_info)]
    return with_outputs(model, dict.fromkeys(names))


@functools.cache
def compiled(name: str) -> dict[tuple[str, bool], Compiled]:
    """A network in float32 ("float") and in "int8", and each once more with all tensors or integers as outputs, in one go."""
    floats, int8 = networks.model(name), networks.model(name, int8=True)
    models = {("float", False): floats, ("float", True): all_tensors(floats)}
    models |= {("int8", False): int8, ("int8", True): networks.with_integers(name)}
    programs = [generate(model, name=f"net{number}", target=NATIVE) for number, model in enumerate(models.values())]
    with tempfile.TemporaryDirectory() as folder:
        return dict(zip(models, library(programs, Path(folder), FAST), strict=True))


@needs_gcc
@pytest.mark.parametrize("name", networks.SHAPES)
def test_every_tensor_is_that_of_onnx_runtime(name: str) -> None:
    model, run = all_tensors(networks.model(name)), compiled(name)["float", True]
    batch = networks.images(name)[:3]
    for image, expected in zip(batch, networks.answers(model, batch, as_written=True), strict=True):
        for port, found, wanted in zip(run.program.outputs, run(image), expected, strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(), err_msg=port.name)


@needs_gcc
@pytest.mark.parametrize("name", networks.SHAPES)
def test_float32_logits_and_answers_are_those_of_onnx_runtime(name: str) -> None:
    model, run = networks.model(name), compiled(name)["float", False]
    batch = networks.images(name)
    found, wanted = (np.concatenate([one[0] for one in many]) for many in (map(run, batch), networks.answers(model, batch)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert (found.argmax(1) == wanted.argmax(1)).all()


@needs_gcc
@pytest.mark.parametrize("name", networks.SHAPES)
def test_int8_integers_are_those_of_onnx_runtime_but_for_ties(name: str) -> None:
    """ONNX Runtime divides by a scale where C multiplies by its inverse, and sums up in float32: what lies at a half may round either way.

    So does it itself without its optimiser; all integers are outputs here, and as many of them may differ by as much.
    """
    every, run = networks.with_integers(name), compiled(name)["int8", True]
    batch = networks.images(name)[:5]
    found, wanted, other = (
        np.concatenate([part.ravel() for one in many for part in one[1:]]).astype(np.float32)
        for many in (map(run, batch), networks.answers(every, batch), networks.answers(every, batch, as_written=True))
    )
    for most in (0, 1, 3):
        ours, its = (np.mean(np.abs(one - wanted) > most) for one in (found, other))
        assert ours <= 1.25 * its + 1e-3, f"off by more than {most} steps"


@needs_gcc
@exact_sums
def test_emnist_in_int8_is_bit_for_bit_onnx_runtime() -> None:
    """It has convolutions, maxima and matrix products alone, whose integers have no ties: 1,000 images, every logit the same."""
    model, run = networks.model("emnist", int8=True), compiled("emnist")["int8", False]
    batch = networks.images("emnist", 1000)
    found, wanted = (np.concatenate([one[0] for one in many]) for many in (map(run, batch), networks.answers(model, batch)))
    np.testing.assert_array_equal(found, wanted)


@needs_gcc
@pytest.mark.parametrize("name", ["k49", "residual", "mixed"])
def test_int8_answers_differ_only_where_onnx_runtime_itself_is_undecided(name: str) -> None:
    """ONNX Runtime with and without its optimiser rounds ties differently too; how far its logits move so is how far ours may."""
    model, run = networks.model(name, int8=True), compiled(name)["int8", False]
    batch = networks.images(name)
    found, wanted, other = (
        np.concatenate([one[0] for one in many])
        for many in (map(run, batch), networks.answers(model, batch), networks.answers(model, batch, as_written=True))
    )
    assert np.abs(found - wanted).mean() <= 1.5 * np.abs(other - wanted).mean() + 1e-6
    changed = found.argmax(1) != wanted.argmax(1)
    margin = np.sort(wanted, axis=1)[:, -1] - wanted[np.arange(len(wanted)), found.argmax(1)]
    assert (margin[changed] <= 2 * np.abs(other - wanted).max()).all()
    assert changed.sum() <= 2 + 2 * (other.argmax(1) != wanted.argmax(1)).sum()


@needs_gcc
def test_a_sum_of_int8_tensors_is_not_deleted(tmp_path: Path) -> None:
    """gcc 12.2 took the stores of this call for dead, at every level, and the output was what had been in the arena before."""
    model = networks.model("residual", int8=True)
    [total] = [node.output[0] for node in model.graph.node if node.op_type == "Add"]
    program = generate(with_outputs(model, [total]), name="net", target=NATIVE)
    image = networks.images("residual")[0]
    [[expected]] = networks.answers(with_outputs(model, [total]), image[None], as_written=True)  # else it saturates where there is no VNNI
    for level in ("-O1", "-O2", "-O3", "-Os"):
        [run] = library([program], tmp_path / level, [level, *NATIVE.flags])
        assert np.mean(np.abs(run(image)[0] - expected) < 1e-5 * np.abs(expected).max()) > 0.98, level


@needs_gcc
def test_a_map_with_a_border_of_its_own_keeps_the_zeros_of_the_convolution_behind_it(tmp_path: Path) -> None:
    """Pad by ones, then a convolution that pads by zeros, and a part of the map that is read beside it."""
    weights = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Pad", ["image", "pads", "one"], ["wide"]),
        helper.make_node("Conv", ["wide", "weights"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Slice", ["wide", "from", "to"], ["part"]),
        helper.make_node("Conv", ["part", "weights"], ["b"], pads=[2, 0, 0, 1], strides=[2, 1]),
        helper.make_node("ReduceMean", ["b"], ["c"], keepdims=0),
    ]
    constants = {
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2]), "one": np.float32(1), "weights": weights,
        "from": np.array([0, 0, 1, 2]), "to": np.array([1, 3, 8, 9]),
    }  # fmt: skip
    entry = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ("batch", 3, 8, 7))
    outputs = [onnx.ValueInfoProto(name=name) for name in ("a", "b", "c")]
    initializers = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", [entry], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    [run] = library([generate(model, name="net", target=NATIVE)], tmp_path, FAST)
    image = np.random.default_rng(1).normal(size=(3, 8, 7)).astype(np.float32)
    for found, wanted in zip(run(image), networks.answers(model, image[None])[0], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_the_plan_is_told() -> None:
    """By hand: emnist has two convolutions (26 * 26 * 32 * 9 and 11 * 11 * 64 * 288), and layers of 1600 * 196 and 196 * 47."""
    program = generate(networks.model("emnist"), name="net", target=NATIVE)
    macs = {layer.macs for layer in program.layers}
    assert macs == {0, 26 * 26 * 32 * 9, 11 * 11 * 64 * 288, 1600 * 196, 196 * 47}
    assert program.input.shape == (1, 1, 28, 28) and program.input.dtype == "uint8"
    assert [(port.name, port.shape) for port in program.outputs] == [("logits", (1, 47)), ("probabilities", (1, 47))]
    assert f"#define NET_ARENA_BYTES {program.arena_bytes}\n" in program.files["net.h"]
    assert program.flash_bytes == sum(layer.weights for layer in program.layers)
    assert max(layer.arena for layer in program.layers) <= program.arena_bytes
    assert "window" not in {layer.kind for layer in program.layers}  # both maxima are taken before anything is stored
    assert program.arena_bytes % 64 == 0
