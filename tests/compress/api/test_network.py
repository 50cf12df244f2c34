"""The Python face. The truth: what the commands offer is what the methods offer, and both come to the same artifacts."""

import datetime
import inspect
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import compress
from compress.api import files as api
from compress.api.network import Network
from compress.artifacts.artifact import read_artifact
from compress.benchmarks.errors import BenchmarkError
from compress.cli.main import COMMANDS, cli
from compress.errors import CompressError
from compress.train.errors import TrainError
from compress.train.pictures import BrokenPictures

METHODS: dict[str, Callable[..., Any]] = {
    name: getattr(Network, name.replace("-", "_")) for name in COMMANDS if hasattr(Network, name.replace("-", "_"))
} | {"compare": compress.compare, "verify": compress.verify, "serve": api.serve, "page": api.page}
# What a command has beside the options: how it prints, and a switch to another method.
SWITCHES = {"remove-channels": ("--groups", Network.channel_groups), "quantize": ("--explain", Network.explain_int8)}


def options_of(method: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(getattr(method, "options", object))


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("data", "recipe", "completion", "board")])
def test_a_command_and_its_method_take_the_same(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    method = METHODS[name]
    taken = {*options_of(method), *(one for one in inspect.signature(method).parameters if one == "start")}
    if name not in ("compare", "verify", "serve", "page"):
        taken |= {"model", *options_of(compress.open)}
    offered = {one.name for one in command.params if isinstance(one, click.Option)} - {"as_json", "switched"}
    assert offered == taken
    switches = [one.opts[0] for one in command.params if one.name == "switched"]
    assert switches == ([SWITCHES[name][0]] if name in SWITCHES else [])
    for one in command.params:
        assert isinstance(one, click.Argument) or getattr(one, "help", None), f"{one.name} says nothing"


def test_every_method_is_a_command_or_the_switch_of_one() -> None:
    public = {name for name, value in vars(Network).items() if not name.startswith("_") and callable(value)}
    assert public == {method.__name__ for name, method in METHODS.items() if name not in ("compare", "verify", "serve", "page")} | {
        method.__name__ for _, method in SWITCHES.values()
    }
    assert set(compress.__all__) <= set(dir(compress))


def test_help_shows_the_options_with_their_types() -> None:
    parameters = inspect.signature(Network.train).parameters
    assert parameters["epochs"].annotation is int and parameters["epochs"].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(parameters)[:2] == ["self", "start"]


def test_a_wrong_option_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"^open takes no option dats; did you mean data\?$"):
        compress.open("emnist", dats="digits")  # type: ignore[call-arg]
    network = compress.open("emnist", runs=tmp_path)
    with pytest.raises(CompressError, match=r"^train takes no option epohcs; did you mean epochs\?$"):
        network.train(epohcs=3)  # type: ignore[call-arg]
    with pytest.raises(CompressError, match=r"^epochs \(=0\) must be at least 1$"):
        network.train(epochs=0)
    with pytest.raises(CompressError, match=r"^epochs \(='two'\) in train must be of type int, not str$"):
        network.train(epochs="two")  # type: ignore[arg-type]
    for given, told in (
        ({"folds": "three"}, r"^folds \(='three'\) in train must be of type int, not str$"),
        ({"weights": 3}, r"^weights \(=3\) in train must be of type str or Path, not int$"),
        ({"weights": "none.pt"}, r"^weights \(=none.pt\): there is no such file$"),
    ):
        with pytest.raises(CompressError, match=told):
            network.train(**given)  # type: ignore[arg-type]
    with pytest.raises(CompressError, match=r"^bypass \(='auto'\) in remove_channels must be of type list, not str$"):
        network.remove_channels(bypass="auto")
    with pytest.raises(CompressError, match=r"^image_shape \(=\(28, 28\)\) must be a list of 3$"):
        compress.open("emnist", image_shape=(28, 28))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_from_a_network_to_a_verdict_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quick.toml").write_text("[benchmark]\nlaunches = 2\ntime_limit = 0\n")
    emnist = compress.open("emnist", data="digits", options={"channels": [4, 8], "hidden": 16}, recipe="quick.toml", device="cpu")
    trained = emnist.train(epochs=1)
    assert emnist.train(epochs=1).path == trained.path, "the same again is not made again"
    small = emnist.remove_channels(trained, max_macs=0.6, round_to=1, steps=1, epochs=0)
    assert small.parent == trained and small.manifest.parent == trained.manifest.hash
    graph = emnist.export_onnx(small.path)
    int8 = emnist.quantize(graph, mode="static", images=64)
    assert compress.verify(int8.path).holds
    measured = emnist.benchmark(graph.path, int8.path, quick=True, rounds=1, samples=5)
    assert str(measured.verdict) == measured.verdict.headline and measured.verdict.headline.startswith("Ship ")
    assert [one.name for one in measured.result.measurements] == ["0.6x MACs", "0.6x MACs, static int8"]
    read = emnist.predict(start=int8, random=4)
    assert len(read.images) == 4 and read.picture is None
    assert len(emnist.channel_groups(trained)) == 3
    assert read_artifact(int8.path).manifest.hash == int8.manifest.hash
    assert capfd.readouterr() == ("", "")


def test_import_is_light(tmp_path: Path) -> None:
    """No library but the standard one, so that `import compress` costs a board or a script nothing."""
    code = "import sys, compress; print([name for name in ('torch', 'numpy', 'onnx', 'click', 'msgspec', 'rich') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "[]\n", done.stderr


def test_options_for_a_factory_are_plain_values() -> None:
    with pytest.raises(CompressError, match=r"^option: hidden \(=2020-01-01\) is a date; write it as a text in quotes$"):
        compress.open("emnist", options={"hidden": datetime.date(2020, 1, 1)})
    with pytest.raises(CompressError, match=r"^option: hidden \(=nan\) must be a finite number"):
        compress.open("emnist", options={"hidden": float("nan")})


def test_whatever_can_be_put_right_is_one_kind_of_error(tmp_path: Path) -> None:
    with pytest.raises(compress.CompressError, match="neither a known name nor a folder") as data:
        compress.open("k49", data=str(tmp_path / "none"), runs=tmp_path).train()
    with pytest.raises(compress.CompressError, match="there is no such file") as result:
        compress.compare(tmp_path / "a", tmp_path / "b")
    assert isinstance(data.value, TrainError) and isinstance(result.value, BenchmarkError)


def test_what_an_error_knows_it_still_knows(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "one.png").write_bytes(b"no picture")
    with pytest.raises(compress.CompressError, match=r"2 of 2 images cannot be used, .*one\.png") as broken:
        compress.open("k49", data=str(tmp_path / "photos"), runs=tmp_path, image_shape=(1, 28, 28)).train()
    assert isinstance(broken.value, BrokenPictures) and len(broken.value.names) == 2
