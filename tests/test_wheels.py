"""What a package index is given: built by the script, and read as pip and the index's page would. Skipped where nothing can be built."""

import email
import re
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://example.org/someone/compress-edge"


def built(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / ".ci" / "wheels.py"), *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    if (done := built(f"{REPOSITORY}/", str(folder))).returncode != 0:
        pytest.skip(f"no package registry to build wheels with: {done.stderr.strip().splitlines()[-1]}")
    assert done.stdout.splitlines() == sorted(map(str, folder.iterdir()))
    return {path.name.split("-")[0]: path for path in folder.iterdir()}


def about(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        [name] = [name for name in file.namelist() if name.endswith("METADATA")]
        return email.message_from_bytes(file.read(name))


def test_either_asks_for_one_onnx_runtime_whatever_the_extras(wheels: dict[str, Path]) -> None:
    assert sorted(wheels) == ["compress_edge", "compress_edge_gpu"]
    for name, runtime in {"compress_edge": "onnxruntime", "compress_edge_gpu": "onnxruntime-gpu"}.items():
        told = about(wheels[name])
        needs = told.get_all("Requires-Dist", [])
        assert [line for line in needs if "onnxruntime" in line] == [f"{runtime}>=1.24"]
        assert told["Name"].replace("-", "_") == name
        own = {line.split("[")[0] for line in needs if line.startswith("compress")}
        assert own == {told["Name"]}, "an extra of the other distribution would bring its ONNX Runtime"


def test_both_hold_the_same_files_and_name_their_own_extras(wheels: dict[str, Path]) -> None:
    plain, gpu = (zipfile.ZipFile(wheels[name]) for name in ("compress_edge", "compress_edge_gpu"))
    names = [name for name in plain.namelist() if name.startswith("compress/")]
    assert names == [name for name in gpu.namelist() if name.startswith("compress/")]
    differ = [name for name in names if plain.read(name) != gpu.read(name)]
    assert "compress/cli/main.py" in differ
    for name in differ:
        assert plain.read(name).replace(b"compress-edge[", b"compress-edge-gpu[") == gpu.read(name)


def test_links_of_the_readme_lead_to_files_of_the_repository(wheels: dict[str, Path]) -> None:
    for wheel in wheels.values():
        told = about(wheel)
        links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", str(told.get_payload()))
        assert len(links) > 10
        for picture, link in links:
            if link.startswith(REPOSITORY):
                kind, head, path = link.removeprefix(f"{REPOSITORY}/").split("/", 2)
                assert (kind, head) == ("raw" if picture else "blob", "HEAD") and (ROOT / path.split("#")[0]).exists(), link
            else:
                assert link.startswith(("https://", "http://")), link
        urls = dict(line.split(", ") for line in told.get_all("Project-URL", []))
        assert urls["Homepage"] == REPOSITORY and set(urls) == {"Homepage", "Documentation", "Changelog", "Issues"}


@pytest.mark.parametrize("given", ["", "github.com/someone/name", "http://host/name", "https://host"])
def test_what_is_no_address_is_said_before_anything_is_built(given: str, tmp_path: Path) -> None:
    done = built(given, str(tmp_path / "out"))
    told = f"REPOSITORY (={given}) must be the https address of the sources, such as https://host/owner/name\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
    assert not (tmp_path / "out").exists()
