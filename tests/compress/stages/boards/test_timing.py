"""Graphs as C for searches: what is compiled and how often, and that it is called as ONNX Runtime is."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from c_folders import HEIGHT, WIDTH, net
from compiled_c import needs_gcc
from stand_ins import Silent

from compress.benchmarks.runtimes import Candidate, onnx_session, open_model
from compress.benchmarks.turns import in_turns
from compress.errors import CompressError
from compress.stages.boards import compilers, timing
from compress.stages.boards.timing import DECIDE, LOOK, InC


@pytest.fixture
def in_c(tmp_path: Path) -> InC:
    return InC(Silent(), tmp_path / "kept")


def scaled(path: Path, target: Path, factor: float) -> Path:
    """The same graph with other weights."""
    model = onnx.load(path)
    for one in model.graph.initializer:
        if one.name == "weights":
            one.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(one) * np.float32(factor), "weights"))
    onnx.save(model, target)
    return target


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = onnx_session(Candidate(name="net", path=path), 1).run(None, {"image": images})[0]
    return found


@needs_gcc
def test_what_differs_in_its_numbers_alone_is_compiled_once_but_answers_with_its_own(in_c: InC, tmp_path: Path) -> None:
    one = net(tmp_path / "one.onnx")
    two = scaled(one, tmp_path / "two.onnx", 3)
    images = np.random.default_rng(0).integers(0, 256, (5, 1, HEIGHT, WIDTH), np.uint8)
    seconds = in_turns([one, two], [images[:1], images[1:2]], 2, np.random.default_rng(0), in_c.runtime(LOOK))
    assert seconds.shape == (2, 2) and (seconds > 0).all()
    assert in_c.compiled == 1
    in_turns([two, one], [images[:1]], 2, np.random.default_rng(0), in_c.runtime(LOOK))
    assert in_c.compiled == 1
    in_turns([one, two], [images[:1]], 2, np.random.default_rng(0), in_c.runtime(DECIDE))
    assert in_c.compiled == 2, "what decides is compiled as it will run"
    for path in (one, two):
        found = open_model(in_c.candidate(path), (1, HEIGHT, WIDTH), 3, threads=1).predict(images)
        np.testing.assert_allclose(found, answers(path, images), rtol=1e-5, atol=1e-5 * np.abs(found).max())
    assert in_c.compiled == 4


@needs_gcc
@pytest.mark.parametrize("floats", [False, True])
def test_it_is_called_as_a_session_is(in_c: InC, floats: bool, tmp_path: Path) -> None:
    """Floats go in as pixel / 255, as in ONNX Runtime."""
    path = net(tmp_path / "net.onnx", channels=3, floats=floats)
    runtime = in_c.runtime()
    runtime.ready([path])
    session = runtime.opening(path)
    [entry] = session.get_inputs()
    kind = np.float32 if floats else np.uint8
    assert (entry.name, entry.type) == ("image", "tensor(float)" if floats else "tensor(uint8)")
    images = [np.random.default_rng(seed).integers(0, 256, (1, 3, HEIGHT, WIDTH)).astype(kind) for seed in range(3)]
    for image in [*images, images[0]]:
        np.testing.assert_allclose(session.run(None, {"image": image})[0], answers(path, image)[0], rtol=1e-4, atol=1e-3)


@needs_gcc
def test_another_search_finds_what_was_compiled_unless_the_compiler_is_another(
    in_c: InC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = net(tmp_path / "net.onnx")
    in_c.runtime().ready([path])
    again = InC(Silent(), tmp_path / "kept")
    again.runtime().ready([path])
    assert (in_c.compiled, again.compiled) == (1, 0)
    monkeypatch.setattr(timing, "toolchain", lambda: compilers.toolchain() | {"compiler": "gcc: 99"})
    again.runtime().ready([path])
    assert again.compiled == 1


@needs_gcc
def test_only_the_newest_libraries_are_kept(in_c: InC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "KEPT", 1)
    for end in ("", "Softmax"):
        in_c.runtime().ready([net(tmp_path / f"{end}.onnx", end=end)])
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_libraries_lie_where_the_user_keeps_such_things_and_not_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert timing.kept_in() == Path("/somewhere/compress-edge/c")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert timing.kept_in() == Path.home() / ".cache/compress-edge/c"


def test_without_a_compiler_there_is_no_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    told = r"runtime \(=c\) needs a C compiler, and there is none here \(looked for gcc, clang, cc\); install one, or leave it out"
    with pytest.raises(CompressError, match=told):
        InC(Silent())


@needs_gcc
def test_what_cannot_be_c_is_named(in_c: InC, tmp_path: Path) -> None:
    assert in_c.refuses(net(tmp_path / "net.onnx")) == ""
    assert in_c.refuses(net(tmp_path / "odd.onnx", odd="Sin")).startswith('node "the odd one" (Sin) cannot be written as C')


def test_a_failing_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cc = tmp_path / "gcc"
    cc.write_text("#!/bin/sh\necho 'net.c:1:1: error: no room' >&2\nexit 1\n")
    cc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompressError, match=r"runtime \(=c\): a graph was not compiled, gcc: net\.c:1:1: error: no room"):
        InC(Silent(), tmp_path / "kept").runtime().ready([net(tmp_path / "net.onnx")])
    assert not list((tmp_path / "kept").iterdir()), "nothing half made stays"


def test_the_toolchain_has_what_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another version, and there is another text; the generator's hash is that of its files."""
    cc = tmp_path / "gcc"
    for version in ("gcc 1.0", "gcc 2.0"):
        where = tmp_path / version.replace(" ", "")
        where.mkdir()
        cc = where / "gcc"
        cc.write_text(f"#!/bin/sh\necho '{version}'\necho more\n")
        cc.chmod(0o755)
        monkeypatch.setenv("PATH", str(where))
        found = compilers.toolchain()
        assert found["compiler"] == f"gcc: {version}" and "-O3" in found["flags"] and len(found["generator"]) == 16
    monkeypatch.setenv("PATH", "")
    assert compilers.toolchain()["compiler"] == "none"
