"""The same command with the same seed makes the same files, in another folder, under another hash seed, on more threads.

What may differ, and why, is in docs/guide.md, "The same each time", and nowhere else than here: the time at which an artifact was made and
the hashes that contain it, the images per second of a training, and latencies. Training on another number of threads adds in another
order, so there the third run starts from the first one's weights.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "compress" / "artifacts" / "benchmark.json"
SCRIPT = """
import glob, sys
from compress.cli.main import main
for line in sys.stdin.read().splitlines():
    found = glob.glob("runs/emnist/train/*")
    sys.argv = ["compress", *line.format(trained=found[0] if found else "").split(), "--json"]
    if main():
        sys.exit(line)
"""
NETWORK = "--model emnist --option channels=[4,8] --option hidden=16 --data digits"
TRAIN = [
    f"train {NETWORK} --epochs 2",
    f"train {NETWORK} --epochs 1 --folds 2",
    "prune --from {trained} --epochs 1 --sparsity 0.5",
    "remove-channels --from {trained} --epochs 1 --steps 1 --max-macs 0.6x --round-to 1",
]
FURTHER = [
    "prune --from {trained} --epochs 0 --sparsity 0.6",
    "remove-channels --from {trained} --epochs 0 --sparsity 0.5 --round-to 1",
    "sensitivity --from {trained} --granularity channel",
    "export-onnx --from {trained}",
    "quantize --from {trained} --mode static --images 64 --accept-unproved",
    "quantize --from {trained} --mode dynamic --accept-unproved",
    "predict --from {trained} --random 4",
    "explain --from {trained}",
    "report benchmark.json --out report",
]


def started(folder: Path, commands: list[str], hash_seed: int, threads: int) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    shutil.copy(RESULTS, folder)
    (folder / "commands").write_text("\n".join(commands))
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    with (folder / "commands").open() as lines:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=folder,
            env=environment,
            text=True,
            stdin=lines,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def without_time(value: Any, name: str = "") -> Any:
    """The values of an ``artifact.json`` without the time, the hashes that contain one, and what was measured."""
    if isinstance(value, dict):
        passed = ("created", "hash", "parent", "latency", "history.csv")
        return {key: without_time(one, key) for key, one in value.items() if key not in passed}
    return [without_time(one) for one in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    if path.name == "artifact.json":
        return without_time(json.loads(path.read_text()))
    if path.name == "history.csv":
        return [{**row, "images_per_second": ""} for row in csv.DictReader(path.read_text().splitlines())]
    return path.read_bytes()


def made(folder: Path) -> dict[str, Any]:
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(name): content(folder / name) for name in files if name.parts[0] != "commands"}


def test_what_is_made_depends_on_the_seed_alone(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "third")]
    processes = [started(folder, [*TRAIN, *FURTHER], seed, 1) for folder, seed in zip(folders, (0, 4242), strict=False)]
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    first, second = made(folders[0]), made(folders[1])
    assert first.keys() == second.keys() and len(first) > 40
    assert [name for name in first if first[name] != second[name]] == []

    shutil.copytree(folders[0] / "runs/emnist/train", folders[2] / "runs/emnist/train")
    process = started(folders[2], FURTHER, 1, 2)
    assert process.communicate(timeout=600) and process.returncode == 0
    third = made(folders[2])
    assert len(third) > 25 and [name for name in third if third[name] != first[name]] == []
