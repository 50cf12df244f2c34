"""Model references: the built-in names and a user's factory through the same door."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.artifacts.model_reference import BUILT_IN, ModelReference
from compress.errors import NetworkError

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a user's file and gives the reference ``FILE:make``; what importing it does to Python's path is undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write_file(source: str, factory: str = "make", name: str = "net.py") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
        return f"{tmp_path / name}:{factory}"

    return write_file


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_name_is_its_own_folder_and_has_no_source(name: str) -> None:
    model = ModelReference(reference=name, options={"dropout": 0.2})
    assert model.is_built_in and model.slug == name
    assert model.identity() == {"reference": name, "options": {"dropout": 0.2}, "source": None}
    assert model.factory().__module__ == f"compress.models.{name}"


def test_a_users_factory_is_found_and_its_folder_named(write: Write) -> None:
    model = ModelReference(reference=write("def make(): return 'made'"))
    assert not model.is_built_in and model.slug == "net-make"
    assert model.factory()() == "made"


def test_a_class_is_a_factory_too(write: Write) -> None:
    made = ModelReference(reference=write("class Net: pass", "Net")).factory()()
    assert type(made).__name__ == "Net"


def test_a_relative_path_is_taken_from_the_current_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("def make(): return 3")
    monkeypatch.chdir(tmp_path)
    assert ModelReference(reference="net.py:make").factory()() == 3


def test_the_identity_changes_with_the_users_file(write: Write) -> None:
    model = ModelReference(reference=write("def make(): return 1"))
    before, made = model.identity(), model.factory()()
    write("def make(): return 2")
    assert made == 1 and model.factory()() == 2, "an edited file is imported again"
    after = model.identity()
    assert before["source"] != after["source"] and before["reference"] == after["reference"]


def test_the_users_file_imports_what_lies_beside_it(write: Write) -> None:
    write("WIDTH = 24", name="net_parts.py")
    assert ModelReference(reference=write("import net_parts\ndef make(): return net_parts.WIDTH")).factory()() == 24


def test_a_network_may_import_its_neighbours_later(write: Write) -> None:
    write("WIDTH = 48", name="later_parts.py")
    reference = write("def make():\n    import later_parts\n    return later_parts.WIDTH")
    assert ModelReference(reference=reference).factory()() == 48


@pytest.mark.parametrize("reference", ["", "k50", "net.py", "net.py:", ":make", "net.txt:make", "net:make", "net.py:make it", "net.py:1"])
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(
        NetworkError,
        match=r"model \(=.*\) must be one of k49, emnist, torchvision:NAME, timm:NAME, or path/net\.py:factory for a network of your own",
    ):
        ModelReference(reference=reference).factory()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"there is no file .*none\.py; paths are taken from the current folder"):
        ModelReference(reference=f"{tmp_path}/none.py:make").identity()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def make(:\n    pass", r"net\.py cannot be imported: SyntaxError: "),
        ("import a_module_that_nobody_has", r"net\.py cannot be imported: ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
        ("widths = undefined", r"net\.py cannot be imported: NameError: name 'undefined' is not defined"),
        ("raise ValueError('first line\\nsecond')", r"net\.py cannot be imported: ValueError: first line$"),
        ("raise RuntimeError", r"net\.py cannot be imported: RuntimeError: no message$"),
        ("def other(): pass", r"net\.py has no function make; the reference is path/net\.py:factory"),
        ("make = 3", r"net\.py has no function make"),
    ],
)
def test_a_file_that_does_not_give_a_factory_is_refused(write: Write, source: str, told: str) -> None:
    model = ModelReference(reference=write(source))
    for _ in range(2):  # the second time no half-imported module may be found
        with pytest.raises(NetworkError, match=told):
            model.factory()


def test_a_network_of_a_package_needs_no_file(tmp_path: Path) -> None:
    named = ModelReference(reference="torchvision:mobilenet_v3_small", options={"dropout": 0.1})
    assert named.slug == "torchvision-mobilenet_v3_small" and not named.is_built_in
    assert named.identity() == {"reference": named.reference, "options": {"dropout": 0.1}, "source": None}
    asked = named.images(tmp_path)
    assert asked["shape"] == (3, 224, 224) and ModelReference(reference="k49").images(tmp_path) == {}
    assert not [*tmp_path.iterdir()], "nothing is noted before something was made"
    named.note_images(tmp_path)
    [note] = tmp_path.rglob("*.json")
    assert named.images(tmp_path) == asked
    note.write_text(note.read_text().replace("0.485", "0.25"))
    assert named.images(tmp_path)["mean"] == (0.25, 0.456, 0.406), "it is read"
    with pytest.raises(NetworkError, match=r"model \(=timm:\.\./x\) must name a network of timm"):
        _ = ModelReference(reference="timm:../x").slug
