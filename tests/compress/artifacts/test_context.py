"""What is known of data without reading them: the truth is that the same files are the same data, and that others are noticed."""

import dataclasses
import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.artifacts import context as context_module
from compress.artifacts.artifact import InputSpec
from compress.artifacts.context import Context
from compress.artifacts.project import making
from compress.artifacts.records import write_record
from compress.train.data_set import DataSet
from compress.train.errors import TrainError
from compress.train.resize import Resize

SPEC = InputSpec(shape=(1, 4, 4))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of ten pictures each."""
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(10):
            pixels = np.random.default_rng([ord(label), index]).integers(0, 256, (4, 4), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.png")
    return tmp_path / "data"


def load(pictures: Path) -> DataSet:
    """As a new process does it."""
    return Context(runs=pictures.parent / "runs").load(str(pictures), 0, SPEC)[0]


def noted(pictures: Path) -> DataSet:
    """Load the data, and note what is known of them as a stage does that has made something."""
    data = load(pictures)
    assert data.note is not None
    write_record(data.note, data.about)
    return data


def refuse(*_: object, **__: object) -> DataSet:
    raise AssertionError("an image was read")


def test_the_same_files_are_not_read_before_an_image_is_asked_for(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = noted(pictures)
    read = context_module.load_data
    monkeypatch.setattr(context_module, "load_data", refuse)
    again = load(pictures)
    assert again.about == first.about and again.about.counts == (14, 2, 4)
    monkeypatch.setattr(context_module, "load_data", read)
    assert np.array_equal(again.train.images, first.train.images) and np.array_equal(again.order, first.order)


@pytest.mark.parametrize("change", ["content", "new file", "file gone", "other shape"])
def test_other_files_are_read(pictures: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noted(pictures)
    spec = SPEC
    if change == "content":
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(pictures / "a" / "0.png")
    elif change == "new file":
        shutil.copy(pictures / "a" / "0.png", pictures / "a" / "10.png")
    elif change == "file gone":
        (pictures / "a" / "0.png").unlink()
    else:
        spec = InputSpec(shape=(1, 5, 5))
    monkeypatch.setattr(context_module, "load_data", refuse)
    with pytest.raises(AssertionError, match="an image was read"):
        Context(runs=pictures.parent / "runs").load(str(pictures), 0, spec)


def test_a_note_that_does_not_fit_is_noticed_and_a_damaged_one_is_passed_over(pictures: Path) -> None:
    note = noted(pictures).note
    assert note is not None
    about = json.loads(note.read_text())
    note.write_text(json.dumps(about | {"fingerprint": "0" * 64}))
    wrong = load(pictures)
    with pytest.raises(TrainError, match=r"data \(=data\) was changed while it was used; run the command again"):
        _ = wrong.train
    assert load(pictures).fingerprint == about["fingerprint"], "run again, as the message says, and the images are read"
    note.write_text("{ damaged")
    assert load(pictures).fingerprint == about["fingerprint"]


def test_a_note_that_cannot_be_written_costs_nothing_but_time(pictures: Path, tmp_path: Path) -> None:
    """A file lies where the folder of notes would be; the artifact is made all the same."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".data").write_text("in the way")
    context = Context(model="emnist", runs=tmp_path / "runs", data=str(pictures), image_shape=(1, 4, 4))
    project = context.project(context.load_recipe())
    with making(project, "folds", "folds", "0" * 64, {}) as new:
        (new.folder / "folds.json").write_text("{}")
    assert new.artifact.path.is_dir()


def test_what_is_broken_is_left_out_for_the_descendants_too(pictures: Path, tmp_path: Path) -> None:
    """The stage that trains is told so; those that start from its artifact know it from there."""
    (pictures / "a" / "3.png").write_bytes(b"no picture")
    (pictures / "b" / "4.png").write_bytes(b"no picture")
    told: list[str] = []
    console = types.SimpleNamespace(say=told.append, progress=lambda *_: None)
    plain = Context(runs=tmp_path / "runs", console=console)  # type: ignore[arg-type]
    with pytest.raises(TrainError, match="2 of 20 images cannot be used"):
        plain.load(str(pictures), 0, SPEC)
    assert [line.split()[1] for line in told] == [str(pictures / "a" / "3.png"), str(pictures / "b" / "4.png")]
    data, record = dataclasses.replace(plain, skip_broken=True).load(str(pictures), 0, SPEC)
    assert sum(data.about.counts) == 18 and record.skipped == 2
    about = types.SimpleNamespace(data=record, input=SPEC)
    assert plain.load_like(about, str(pictures))[0].fingerprint == data.fingerprint  # type: ignore[arg-type]


def test_images_are_those_of_a_named_network_unless_others_are_said() -> None:
    named = Context(model="torchvision:resnet50")
    assert named.spec_of(named.model).resized == Resize(way="crop", crop=224 / 232)
    other = dataclasses.replace(named, image_shape=(3, 64, 64), resize="stretch", mean=(0.5,))
    spec = other.spec_of(other.model)
    assert (spec.shape, spec.mean, spec.std, spec.resized) == ((3, 64, 64), (0.5,), (0.229, 0.224, 0.225), Resize())
    half = dataclasses.replace(named, crop=0.5)
    assert half.spec_of(half.model).resized == Resize(way="crop", crop=0.5)
