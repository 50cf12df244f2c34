from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from compress.errors import CompressError
from compress.graphs.file import first_line, read_onnx, write_onnx


def relu(kind: str = "Relu") -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, ["x"], ["y"])],
        "by_hand",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 4])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def test_what_is_written_is_read_again_and_readable_by_others(tmp_path: Path) -> None:
    write_onnx(relu(), tmp_path / "new" / "net.onnx")
    assert read_onnx(tmp_path / "new" / "net.onnx") == relu()
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["net.onnx"]
    assert (tmp_path / "new" / "net.onnx").stat().st_mode & 0o444 == 0o444


def test_a_graph_that_is_refused_leaves_the_old_file(tmp_path: Path) -> None:
    write_onnx(relu(), tmp_path / "net.onnx")
    before = (tmp_path / "net.onnx").read_bytes()
    with pytest.raises(CompressError, match=r'net\.onnx" is no valid ONNX graph \(.*Nonsense'):
        write_onnx(relu("Nonsense"), tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx(relu(), tmp_path / "net.onnx")
    before = (tmp_path / "net.onnx").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_onnx(relu("Abs"), tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\); export it again"),
        (b"PK\x03\x04" + bytes(80), "is truncated or no ONNX file at all"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no operators"),
        (relu("Nonsense").SerializeToString(), r"is no valid ONNX graph \(.*Nonsense"),
    ],
)
def test_files_that_are_no_graphs_are_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(CompressError, match=rf'net\.onnx" {message}') as caught:
        read_onnx(tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)


def test_weights_that_lie_in_a_file_that_is_missing_are_named(tmp_path: Path) -> None:
    model = relu("Abs")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(500, np.float32), "weight"))
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    assert read_onnx(tmp_path / "net.onnx").graph.node[0].op_type == "Abs"
    (tmp_path / "net.data").unlink()
    with pytest.raises(CompressError, match=r'net\.onnx" keeps its weights in another file that cannot be read; put it beside') as caught:
        read_onnx(tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(CompressError, match=r'" is not a file; give the path of an \.onnx file'):
            read_onnx(path)


def test_foreign_errors_become_one_short_line() -> None:
    assert first_line(ValueError("first\nsecond")) == "ValueError: first"
    assert first_line(KeyError()) == "KeyError: no message"
    assert len(first_line(ValueError("x" * 500))) == len("ValueError: ") + 160


def not_text(tmp_path: Path, old: bytes) -> Path:
    """A graph in which ``old`` ends with a byte that no UTF-8 has there; ONNX Runtime loads it."""
    made = relu()
    made.graph.node[0].name = "the node"
    onnx.helper.set_model_props(made, {"a key": "a value"})
    content = made.SerializeToString()
    assert content.count(old) == 1
    (tmp_path / "net.onnx").write_bytes(content.replace(old, old[:-1] + b"\x8b"))
    onnxruntime.InferenceSession(tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.mark.parametrize("old", [b"the node", b"a key", b"a value", b"by_hand"])
def test_text_that_is_no_utf8_is_refused(old: bytes, tmp_path: Path) -> None:
    """protobuf's parser hands it out as ``bytes``, which breaks whatever sorts, joins or writes names."""
    with pytest.raises(CompressError, match=r'net\.onnx" has a name, a label or a note that is no UTF-8; export it again'):
        read_onnx(not_text(tmp_path, old))
