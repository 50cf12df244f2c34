"""Graphs as other tools write them, made by hand; the truth is what the file itself answers."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from compress.errors import CompressError
from compress.graphs import floats
from compress.graphs.adopt import adopt, adopt_any, image_shape
from compress.graphs.file import write_onnx
from compress.graphs.index import index

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def classifier(
    folder: Path,
    *,
    shape: tuple[object, ...] = ("n", 3, 8, 8),
    kind: int = TensorProto.FLOAT,
    softmax: bool = False,
    fixed: bool = False,
    inputs: int = 1,
    entry: str = "x",
    undone: bool = False,
) -> Path:
    """Convolution, pool, linear layer; ``fixed`` writes the batch of one into a Reshape; ``undone``: a Transpose to channels first."""
    rng = np.random.default_rng(1)
    weights = {
        "conv": rng.normal(size=(4, 3 if undone else shape[1], 3, 3)).astype(np.float32),
        "linear": rng.normal(size=(4, 6)).astype(np.float32),
        "shape": np.array([1 if fixed else -1, 4]),
    }
    nodes = [helper.make_node("Cast", [entry], ["float"], to=TensorProto.FLOAT)] if kind != TensorProto.FLOAT else []
    nodes += [helper.make_node("Transpose", ["float" if nodes else entry], ["first"], perm=[0, 3, 1, 2])] if undone else []
    nodes += [
        helper.make_node("Conv", [nodes[-1].output[0] if nodes else entry, "conv"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("MatMul", ["c", "linear"], ["out"]),
    ]
    last = "out"
    if softmax:
        nodes.append(helper.make_node("Softmax", ["out"], ["p"], axis=1))
        last = "p"
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info(entry if i == 0 else f"x{i}", kind, shape) for i in range(inputs)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, (shape[0], 6))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def run(model: onnx.ModelProto | Path, feed: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString() if isinstance(model, onnx.ModelProto) else model)
    found: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: feed})
    return found


def normalised(images: np.ndarray) -> np.ndarray:
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.astype(np.float32) / 255 - mean) / std


@pytest.mark.parametrize("entry", ["x", "image"])  # the name that we give may be taken already
def test_raw_images_give_what_normalised_ones_gave(tmp_path: Path, entry: str) -> None:
    path = classifier(tmp_path, entry=entry)
    model = adopt(path, (3, 8, 8), MEAN, STD, {"compress.classes": "[]"})
    logits, probabilities = run(model, IMAGES)
    (expected,) = run(path, normalised(IMAGES))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), atol=1e-6)
    assert [value.name for value in model.graph.output] == ["logits", "probabilities"]
    assert model.metadata_props[0].key == "compress.classes"


def test_a_size_of_minus_one_is_an_open_one_as_paddle_writes_it(tmp_path: Path) -> None:
    """In an old opset too, which is converted and run on noise."""
    (expected,) = run(classifier(tmp_path), normalised(IMAGES))
    path = classifier(tmp_path, shape=(-1, 3, -1, -1))
    model = onnx.load(path)
    model.opset_import[0].version = 11
    onnx.save(model, path)
    assert image_shape(path) is None
    np.testing.assert_allclose(run(adopt(path, (3, 8, 8), MEAN, STD, {}), IMAGES)[0], expected, atol=1e-5 * np.abs(expected).max())


def test_a_softmax_at_the_end_stays_and_its_input_becomes_the_logits(tmp_path: Path) -> None:
    path = classifier(tmp_path, softmax=True)
    model = adopt(path, (3, 8, 8), (0.0,), (1.0,), {})
    logits, probabilities = run(model, IMAGES)
    (expected,) = run(path, IMAGES.astype(np.float32) / 255)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert sum(node.op_type == "Softmax" for node in model.graph.node) == 1
    assert not np.allclose(logits.sum(axis=1), 1)


def with_outputs(path: Path, *nodes: onnx.NodeProto, outputs: tuple[str, ...], shape: tuple[object, ...] = ("n", 6)) -> Path:
    """The file with nodes behind its "out", a constant T of 2 and two of axes, and other outputs."""
    model = onnx.load(path)
    model.graph.node.extend(nodes)
    constants = {"T": np.float32(2), "one": np.array([1, 2]), "two": np.array([2, 3])}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs)
    onnx.save(model, path)
    return path


def made_and_given(path: Path) -> tuple[list[np.ndarray], np.ndarray, onnx.ModelProto]:
    """What the adopted file answers, and what the file itself does."""
    model = adopt(path, (3, 8, 8), (0.0,), (1.0,), {})
    return run(model, IMAGES), run(path, IMAGES.astype(np.float32) / 255)[0], model


@pytest.mark.parametrize("tail", ["sigmoid", "view", "beside"])
def test_what_a_sigmoid_gives_are_the_probabilities(tail: str, tmp_path: Path) -> None:
    """Sigmoids of 0.263 and 0.060 are not logits, whose softmax would be 0.551 and 0.449."""
    nodes = [helper.make_node("Sigmoid", ["out" if tail != "view" else "u"], ["s"])]
    if tail == "view":
        nodes = [helper.make_node("Unsqueeze", ["out", "two"], ["u"]), *nodes, helper.make_node("Flatten", ["s"], ["f"])]
    outputs = ("out", "s") if tail == "beside" else (nodes[-1].output[0],)
    (logits, probabilities), given, model = made_and_given(with_outputs(classifier(tmp_path), *nodes, outputs=outputs))
    expected = 1 / (1 + np.exp(-given)) if tail == "beside" else given
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert [value.name for value in model.graph.output] == ["logits", "probabilities"]
    assert "Softmax" not in [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("kind", ["", "Softmax", "Sigmoid"])
@pytest.mark.parametrize(("axes", "axis"), [("two", 1), ("one", 3)])
def test_an_output_of_four_dimensions_is_flattened(kind: str, axes: str, axis: int, tmp_path: Path) -> None:
    """(B, K, 1, 1) as squeezenet gives it, and (B, 1, 1, K)."""
    nodes = [helper.make_node("Unsqueeze", ["out", axes], ["u"])]
    nodes += [helper.make_node(kind, ["u"], ["s"], **({"axis": axis} if kind == "Softmax" else {}))] if kind else []
    path = with_outputs(
        classifier(tmp_path), *nodes, outputs=(nodes[-1].output[0],), shape=("n", *(6 if i == axis else 1 for i in (1, 2, 3)))
    )
    found, given, _ = made_and_given(path)
    assert given.ndim == 4 and [one.shape for one in found] == [(5, 6), (5, 6)]
    np.testing.assert_allclose(found[bool(kind)], given.reshape(5, 6), rtol=0, atol=1e-5 * np.abs(given).max())


def test_a_softmax_over_another_axis_than_the_classes_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Unsqueeze", ["out", "one"], ["u"]), helper.make_node("Softmax", ["u"], ["ones"], axis=1)]
    path = with_outputs(classifier(tmp_path), *nodes, outputs=("ones",), shape=("n", 1, 1, 6))
    with pytest.raises(CompressError, match=r'net\.onnx" answers otherwise with its image preparation inside; please report'):
        adopt(path, (3, 8, 8), MEAN, STD, {})


def test_of_several_outputs_the_first_of_two_dimensions_is_that_of_the_classes(tmp_path: Path) -> None:
    path = classifier(tmp_path)
    model = onnx.load(path)
    model.graph.output.insert(0, helper.make_tensor_value_info("b", TensorProto.FLOAT, ("n", 4, 1, 1)))
    onnx.save(model, path)
    made = adopt(path, (3, 8, 8), (0.0,), (1.0,), {})
    np.testing.assert_allclose(run(made, IMAGES)[0], run(path, IMAGES.astype(np.float32) / 255)[1], rtol=1e-4, atol=1e-4)
    assert [value.name for value in made.graph.output] == ["logits", "probabilities", "b"]


@pytest.mark.parametrize("undone", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
def test_channels_last_are_taken(kind: int, undone: bool, tmp_path: Path) -> None:
    """As TensorFlow has them, whose converter begins with a Transpose that takes ours back; without one this file's channels are rows."""
    path = classifier(tmp_path, shape=("n", 8, 8, 3), kind=kind, undone=undone)
    last = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1))
    fed = last if kind == TensorProto.UINT8 else normalised(IMAGES).transpose(0, 2, 3, 1)
    (expected,) = run(path, fed)
    made = adopt(path, (3, 8, 8), MEAN, STD, {})
    np.testing.assert_allclose(run(made, IMAGES)[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert image_shape(path) == (3, 8, 8)
    assert "Transpose" not in [node.op_type for node in made.graph.node] or not undone or kind == TensorProto.UINT8


@pytest.mark.parametrize(
    ("name", "kept"), [("probabilities", "probabilities_"), ("cool", "cool"), ("logits", "logits_"), ("image", "image_")]
)
def test_an_output_that_computes_something_else_is_kept(name: str, kept: str, tmp_path: Path) -> None:
    tail = [helper.make_node("Div", ["out", "T"], ["half"]), helper.make_node("Softmax", ["half"], [name], axis=1)]
    path = with_outputs(classifier(tmp_path), *tail, outputs=("out", name))
    model = adopt(path, (3, 8, 8), (0.0,), (1.0,), {})
    logits, probabilities, cooled = run(model, IMAGES)
    out, tempered = run(path, IMAGES.astype(np.float32) / 255)
    np.testing.assert_allclose(logits, out, atol=1e-5 * np.abs(out).max())
    np.testing.assert_allclose(cooled, tempered, atol=1e-6)
    assert not np.allclose(probabilities, tempered, atol=1e-3)
    assert [value.name for value in model.graph.output][:2] == ["logits", "probabilities"]
    assert model.graph.output[2].name.startswith(kept)


def test_probabilities_and_logits_in_this_order_are_both_of_the_files(tmp_path: Path) -> None:
    path = with_outputs(classifier(tmp_path), helper.make_node("Softmax", ["out"], ["logits"], axis=-1), outputs=("logits", "out"))
    found = run(adopt(path, (3, 8, 8), (0.0,), (1.0,), {}), IMAGES)
    for one, other in zip(found, reversed(run(path, IMAGES.astype(np.float32) / 255)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_an_old_opset_is_converted_and_answers_as_it_did(opset: int, softmax: bool, tmp_path: Path) -> None:
    path = classifier(tmp_path, softmax=softmax)
    model = onnx.load(path)
    model.opset_import[0].version = opset
    onnx.save(model, path)
    made = adopt(path, (3, 8, 8), (0.0,), (1.0,), {})
    expected = run(path, IMAGES.astype(np.float32) / 255)[0]
    np.testing.assert_allclose(run(made, IMAGES)[softmax], expected, atol=1e-5 * np.abs(expected).max())
    assert made.opset_import[0].version == 13 and [node.op_type for node in made.graph.node].count("Softmax") == 1


def test_an_old_opset_that_comes_out_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = classifier(tmp_path)
    model = onnx.load(path)
    model.opset_import[0].version = 12
    onnx.save(model, path)

    def twice(given: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        for weight in given.graph.initializer:
            if weight.name == "linear":
                weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), "linear"))
        given.opset_import[0].version = opset
        return given

    def fails(given: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        raise onnx.version_converter.ConvertError("No Adapter")

    for converter, told in ((twice, r"and converted to that it computes something else"), (fails, r"to which it cannot be .*No Adapter")):
        monkeypatch.setattr(onnx.version_converter, "convert_version", converter)
        with pytest.raises(CompressError, match=rf'net\.onnx" has opset 12, but float32 and opset 13 are needed, {told}.*export it again'):
            adopt(path, (3, 8, 8), MEAN, STD, {})


@pytest.mark.parametrize(("kind", "opset"), [("Upsample", 9), ("Resize", 10)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_pixels_are_enlarged_as_old_opsets_did(kind: str, opset: int, mode: str, tmp_path: Path) -> None:
    """Their corners lay elsewhere; the converter leaves that out."""
    path = classifier(tmp_path)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 1, 1.5, 1.5]), "scales"))
    model.graph.node.insert(0, helper.make_node(kind, ["x", "scales"], ["large"], mode=mode))
    model.graph.node[1].input[0] = "large"
    model.graph.node.insert(2, helper.make_node("Mul", ["a", "a"], ["square"]))
    model.graph.node[3].input[0] = "square"  # a mean over all pixels would hide where they lie
    model.opset_import[0].version = opset
    onnx.save(model, path)
    found, given, _ = made_and_given(path)
    np.testing.assert_allclose(found[0], given, rtol=0, atol=1e-5 * np.abs(given).max())


def halved(folder: Path, *, inside: bool = False, opset: int = 17, softmax: bool = False) -> Path:
    """The classifier in float16; ``inside``: with float32 in and out."""
    path = classifier(folder, softmax=softmax)
    model = onnx.load(path)
    model.opset_import[0].version = opset
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    for value in () if inside else (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    if inside:
        model.graph.node[0].input[0], model.graph.node[-1].output[0] = "half", "half_out"
        model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16))
        model.graph.node.append(helper.make_node("Cast", ["half_out"], [model.graph.output[0].name], to=TensorProto.FLOAT))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("softmax", [False, True])
def test_half_precision_becomes_float32(inside: bool, opset: int, softmax: bool, tmp_path: Path) -> None:
    path = halved(tmp_path, inside=inside, opset=opset, softmax=softmax)
    made = adopt(path, (3, 8, 8), MEAN, STD, {})
    (expected,) = run(path, normalised(IMAGES).astype(np.float32 if inside else np.float16))
    np.testing.assert_allclose(run(made, IMAGES)[softmax], expected.astype(np.float32), rtol=0, atol=5e-3 * np.abs(expected).max())
    assert {one.data_type for one in made.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}
    assert [node.op_type for node in made.graph.node].count("Softmax") == 1
    assert [value.name for value in made.graph.output] == ["logits", "probabilities"]


@pytest.mark.parametrize("keep", [False, True])
def test_half_precision_as_onnx_runtime_writes_it_becomes_float32(keep: bool, tmp_path: Path) -> None:
    """Which leaves its casts of the input behind the nodes that read them, and its own loader does not mind."""
    path = classifier(tmp_path)
    expected = run(path, normalised(IMAGES))[0]
    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=keep), path)
    np.testing.assert_allclose(run(adopt(path, (3, 8, 8), MEAN, STD, {}), IMAGES)[0], expected, rtol=0, atol=5e-3 * np.abs(expected).max())


def test_half_precision_that_comes_out_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floats, "HALF_ALIKE", 1e-6)  # closer than float16 can be
    with pytest.raises(CompressError, match=r'net\.onnx" has half precision, but float32 .* converted to that it computes something else'):
        adopt(halved(tmp_path), (3, 8, 8), MEAN, STD, {})


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_that_are_listed_as_inputs_are_weights(ir_version: int, tmp_path: Path) -> None:
    """IR 3 demands it, and torch wrote it for later ones: keep_initializers_as_inputs."""
    path = classifier(tmp_path)
    model = onnx.load(path)
    model.ir_version = ir_version
    model.graph.input.extend(helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in model.graph.initializer)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    made = adopt(path, (3, 8, 8), MEAN, STD, {})
    write_onnx(made, tmp_path / "made.onnx")
    expected = run(path, normalised(IMAGES))[0]
    np.testing.assert_allclose(run(tmp_path / "made.onnx", IMAGES)[0], expected, atol=1e-5 * np.abs(expected).max())


def test_a_file_that_takes_raw_pixels_is_left_as_it_is(tmp_path: Path) -> None:
    path = classifier(tmp_path, kind=TensorProto.UINT8)
    model = adopt(path, (3, 8, 8), MEAN, STD, {})
    np.testing.assert_array_equal(run(model, IMAGES)[0], run(path, IMAGES)[0])


def test_weights_called_as_our_tensors_are_get_out_of_the_way(tmp_path: Path) -> None:
    path = classifier(tmp_path)
    model = onnx.load(path)
    new = {"conv": "image", "linear": "logits"}
    for weight in model.graph.initializer:
        weight.name = new.get(weight.name, weight.name)
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
    onnx.save(model, path)
    logits, _ = run(adopt(path, (3, 8, 8), MEAN, STD, {}), IMAGES)
    np.testing.assert_allclose(logits, run(path, normalised(IMAGES))[0], rtol=1e-4, atol=1e-4)


def test_a_batch_of_one_in_the_input_becomes_free_but_one_inside_the_graph_stays(tmp_path: Path) -> None:
    free = adopt(classifier(tmp_path, shape=(1, 3, 8, 8)), (3, 8, 8), MEAN, STD, {})
    assert free.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert len(run(free, IMAGES)[0]) == 5
    fixed = adopt(classifier(tmp_path, shape=(1, 3, 8, 8), fixed=True), (3, 8, 8), MEAN, STD, {})
    assert fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert len(run(fixed, IMAGES[:1])[0]) == 1


def test_the_shape_of_its_images_is_read_from_the_file(tmp_path: Path) -> None:
    assert image_shape(classifier(tmp_path)) == (3, 8, 8)
    assert image_shape(classifier(tmp_path, shape=("n", 3, "h", "w"))) is None


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"inputs": 2}, r"has 2 inputs \(x, x1\); one of images is needed"),
        ({"shape": (8, 3, 8, 8)}, r"takes 8 images at a time; export it with a batch of 1, or a free one"),
        ({"kind": TensorProto.INT64}, r"takes INT64; export it with float32 or uint8 input"),
        ({"shape": ("n", 3, 9, 9)}, r"takes images \(3, 9, 9\), and image-shape \(=\(3, 8, 8\)\) is another"),
    ],
)
def test_what_is_no_image_classifier_is_refused(tmp_path: Path, about: dict[str, object], told: str) -> None:
    try:
        path = classifier(tmp_path, **about)  # type: ignore[arg-type]
    except onnx.checker.ValidationError:
        pytest.fail("the file itself must be sound")
    with pytest.raises(CompressError, match=told):
        adopt(path, (3, 8, 8), MEAN, STD, {})


def test_a_file_that_gives_an_image_other_logits_in_a_batch_is_refused(tmp_path: Path) -> None:
    path = classifier(tmp_path)
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "one"
    model.graph.node.append(helper.make_node("ReduceMean", ["one"], ["mean"], axes=[0], keepdims=1))
    model.graph.node.append(helper.make_node("Sub", ["one", "mean"], ["out"]))
    onnx.save(model, path)
    with pytest.raises(CompressError, match=r'net\.onnx" gives an image other logits alone than in a batch, .*; export it in eval mode'):
        adopt(path, (3, 8, 8), MEAN, STD, {})


def test_a_classifier_of_vectors_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "vectors",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 12))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 2))],
        [numpy_helper.from_array(np.ones((12, 2), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx")
    with pytest.raises(CompressError, match=r"takes 2 dimensions; images \(B, C, H, W\) are needed"):
        adopt(tmp_path / "net.onnx", (3, 8, 8), MEAN, STD, {})


def test_a_file_of_our_own_shape_is_left_as_it_is(tmp_path: Path) -> None:
    once = adopt(classifier(tmp_path), (3, 8, 8), MEAN, STD, {})
    onnx.save(once, tmp_path / "ours.onnx")
    twice = adopt(tmp_path / "ours.onnx", (3, 8, 8), MEAN, STD, {})
    for one, two in zip(run(once, IMAGES), run(twice, IMAGES), strict=True):
        np.testing.assert_array_equal(one, two)
    assert [node.op_type for node in twice.graph.node] == [node.op_type for node in once.graph.node]


def several(folder: Path, *, kind: int = TensorProto.FLOAT, shape: tuple[object, ...] = ("n", 3, 8, 8), mixing: bool = False) -> Path:
    """No classifier: a map of the image's size, and the pixels above a threshold, whose number differs, with no place for the batch.

    ``mixing``: the map is divided by the largest of the whole batch.
    """
    weights = {"w": np.random.default_rng(1).normal(size=(2, 3, 3, 3)).astype(np.float32), "t": np.array(2, np.float32)}
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)] if kind != TensorProto.FLOAT else []
    nodes += [
        helper.make_node("Conv", [nodes[-1].output[0] if nodes else "x", "w"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMax", ["conv"], ["most"], keepdims=0),
        helper.make_node("Div", ["conv", "most" if mixing else "t"], ["map"]),
        helper.make_node("Greater", ["conv", "t"], ["over"]),
        helper.make_node("NonZero", ["over"], ["found"]),
    ]
    graph = helper.make_graph(
        nodes,
        "several",
        [helper.make_tensor_value_info("x", kind, shape)],
        [
            helper.make_tensor_value_info("map", TensorProto.FLOAT, (shape[0], 2, 8, 8)),
            helper.make_tensor_value_info("found", TensorProto.INT64, (4, "k")),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = folder / "several.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("pixels", [False, True])
def test_all_outputs_stay_what_they_were_of_each_image(tmp_path: Path, pixels: bool, mixing: bool) -> None:
    """Of pixels, whose normalisation comes inside, and of floats as the file takes them; one image at a time where a batch is no such."""
    path, floats = several(tmp_path, mixing=mixing), normalised(IMAGES)
    made = adopt_any(path, IMAGES if pixels else floats, MEAN, STD, {"a": "b"})
    assert [one.name for one in made.graph.output] == ["map", "found"] and made.metadata_props[0].value == "b"
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    for raw, given in zip(IMAGES if pixels else floats, floats, strict=True):
        (ours, found), (theirs, expected) = run(made, raw[None]), run(path, given[None])
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        np.testing.assert_array_equal(found, expected)


def test_a_batch_stays_free_where_it_can(tmp_path: Path) -> None:
    made = adopt_any(classifier(tmp_path), normalised(IMAGES), (0.0,), (1.0,), {})
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    np.testing.assert_allclose(run(made, normalised(IMAGES))[0], run(tmp_path / "net.onnx", normalised(IMAGES))[0], atol=1e-5)


def test_channels_last_become_first(tmp_path: Path) -> None:
    path = classifier(tmp_path, shape=("n", 8, 8, 3), undone=True)
    made = adopt_any(path, IMAGES, MEAN, STD, {})
    np.testing.assert_allclose(run(made, IMAGES)[0], run(path, normalised(IMAGES).transpose(0, 2, 3, 1))[0], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "shape", "images", "told"),
    [
        (
            TensorProto.UINT8,
            ("n", 3, 8, 8),
            normalised(IMAGES),
            r"takes N images of uint8 \(3, 8, 8\), and the data give float32 \(3, 8, 8\)",
        ),
        (TensorProto.FLOAT, ("n", 3, 8, 8), IMAGES[:, :, :4], r"takes N images of float \(3, 8, 8\), and the data give uint8 \(3, 4, 8\)"),
        (TensorProto.FLOAT, (4, 3, 8, 8), IMAGES, "takes 4 images of float"),
    ],
)
def test_data_of_another_kind_are_refused(tmp_path: Path, kind: int, shape: tuple[object, ...], images: np.ndarray, told: str) -> None:
    with pytest.raises(CompressError, match=told):
        adopt_any(several(tmp_path, kind=kind, shape=shape), images, (0.0,), (1.0,), {})


def test_one_number_for_an_image_is_no_class(tmp_path: Path) -> None:
    make = helper.make_node
    nodes = [make("Conv", ["x", "w"], ["a"]), make("GlobalAveragePool", ["a"], ["b"]), make("Flatten", ["b"], ["c"])]
    graph = helper.make_graph(
        [*nodes, make("Sigmoid", ["c"], ["y"])],
        "binary",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 1))],
        [numpy_helper.from_array(np.ones((1, 3, 3, 3), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx")
    with pytest.raises(CompressError, match=r'net\.onnx" gives one number for an image, .* of a sigmoid\'s p make 1 - p and p$'):
        adopt(tmp_path / "net.onnx", (3, 8, 8), (0.0,), (1.0,), {})


def test_weights_that_are_no_numbers_are_named_as_such(tmp_path: Path) -> None:
    model = onnx.load(classifier(tmp_path))
    weights = next(one for one in model.graph.initializer if one.name == "conv")
    odd = numpy_helper.to_array(weights).copy()
    odd[0, 0, 0, 0] = np.nan
    weights.CopyFrom(numpy_helper.from_array(odd, "conv"))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(CompressError, match=r'net\.onnx" answers NaN; mend its weights'):
        adopt(tmp_path / "net.onnx", (3, 8, 8), MEAN, STD, {})


def test_a_constant_that_is_sparse_is_told(tmp_path: Path) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [3])
    nodes = [helper.make_node("Constant", [], ["c"], sparse_value=sparse), helper.make_node("Add", ["x", "c"], ["y"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:]), opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(CompressError, match=r"^the graph has a part that is not read here .*; make dense constants of sparse ones$"):
        index(model)
