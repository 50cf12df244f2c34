from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto

from compress.benchmarks.profile import profile_onnx
from compress.benchmarks.runtimes import Candidate

Make = Callable[..., Path]


@pytest.mark.parametrize("options", [{}, {"batch": 1, "kind": TensorProto.FLOAT}])
def test_nodes_and_activations_of_a_file_counted_by_hand(pixel_model: Make, options: dict[str, object]) -> None:
    found = profile_onnx(Candidate(name="a", path=pixel_model("a", work=3, **options)), (1, 4, 4))
    operators = found.placement["CPUExecutionProvider"]
    assert list(found.placement) == ["CPUExecutionProvider"]
    assert operators["MatMul"] == 1 + 3
    # The heaviest nodes multiply a 200x200 activation by a constant: 200 * 200 floats in, as many out. The weights do not count.
    assert found.activation_bytes == 2 * 200 * 200 * 4


def test_no_profile_is_left_behind(pixel_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = pixel_model("a")
    profile_onnx(Candidate(name="a", path=path), (1, 4, 4))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
