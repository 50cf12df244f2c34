import zlib
from pathlib import Path

import pytest

from compress.benchmarks.cost import peak_share, sizes


def test_zeros_cost_room_on_disk_but_not_after_gzip(tmp_path: Path) -> None:
    (tmp_path / "zeros.bin").write_bytes(bytes(100_000))
    assert sizes(tmp_path / "zeros.bin")[0] == 100_000
    assert sizes(tmp_path / "zeros.bin")[1] < 200


def test_gzip_size_is_deflate_at_level_6_plus_18_bytes_of_frame(tmp_path: Path) -> None:
    content = b"weights " * 999
    (tmp_path / "a").write_bytes(content)
    assert sizes(tmp_path / "a")[1] == len(zlib.compress(content, 6, -15)) + 18


def test_folder_and_external_data_count_whole(tmp_path: Path) -> None:
    for name, length in (("model.onnx", 10), ("model.onnx.data", 20), ("other.txt", 5)):
        (tmp_path / name).write_bytes(bytes(length))
    assert sizes(tmp_path / "model.onnx")[0] == 30
    assert sizes(tmp_path)[0] == 35
    assert sizes(tmp_path / "missing.onnx") == (0, 0)


def test_weights_beside_a_file_of_openvino_count_and_those_beside_others_do_not(tmp_path: Path) -> None:
    for name, length in (("net.xml", 10), ("net.bin", 20), ("net.onnx", 40)):
        (tmp_path / name).write_bytes(bytes(length))
    assert sizes(tmp_path / "net.xml")[0] == 30
    assert sizes(tmp_path / "net.onnx")[0] == 40


def test_share_of_the_peak_by_hand() -> None:
    assert peak_share(24_000_000, 0.001, 50e9) == pytest.approx(0.48)
    assert (peak_share(None, 0.001, 50e9), peak_share(24_000_000, 0.001, None), peak_share("?", 1, 1)) == (None, None, None)
