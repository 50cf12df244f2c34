"""What a user's type checker sees of an installed toolkit: the editable install that these tests run in, and a wheel.

The wheel is built and installed into an environment of its own; without a package registry to build it from, that test is skipped. There is
nothing else in that environment, so that the toolkit's types must do without those of torch; where torch is installed, they do too.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOOD = """
import compress
from compress import CompressError

k49 = compress.open("k49", data="digits", image_shape=(1, 28, 28))
try:
    trained = k49.train(epochs=12)
    small = k49.remove_channels(trained, max_macs=0.35, bypass=["auto"])
    print(small.path.name, k49.benchmark(runtimes=["onnxruntime"]).verdict.headline, compress.verify(small.path).holds)
except CompressError as error:
    print(error)
"""
BAD = """
import compress

k49 = compress.open("k49", dats="digits")
k49.train(epochs="12")
k49.prune(sparsitty=0.8)
k49.benchmark().verdict.headlin
"""
WRONG = (
    'Unexpected keyword argument "dats" for "open"',
    'has incompatible type "str"; expected "int"',
    'Unexpected keyword argument "sparsitty" for "prune"',
    'has no attribute "headlin"',
)


# What is behind the toolkit's own types takes minutes to read.
LIBRARIES = ["torch", "torchvision", "numpy", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "PIL", "matplotlib", "optuna", "safetensors"]
SKIPPED = f"[mypy]\n[mypy-{','.join(f'{name}.*' for name in LIBRARIES)}]\nfollow_imports = skip\n"


def check(python: Path, folder: Path) -> list[str]:
    """What mypy says of the two files for the packages of ``python``."""
    (folder / "mypy.ini").write_text(SKIPPED, encoding="utf-8")
    (folder / "good.py").write_text(GOOD, encoding="utf-8")
    (folder / "bad.py").write_text(BAD, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--cache-dir", os.devnull, "good.py", "bad.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "MYPYPATH": "", "COLUMNS": "400"})
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if ": error:" in line]


def expect_types(said: list[str]) -> None:
    assert len(said) == len(WRONG) and all(line.startswith("bad.py:") for line in said), said
    assert all(words in line for words, line in zip(WRONG, said, strict=True)), said


def test_an_editable_install_has_types(tmp_path: Path) -> None:
    expect_types(check(Path(sys.executable), tmp_path))


def test_a_wheel_has_types(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], capture_output=True, text=True)
    if built.returncode != 0 and "setuptools" in built.stderr:
        pytest.skip(f"no package registry to build a wheel from: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    venv.create(tmp_path / "environment", symlinks=True, with_pip=False)
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)], check=True)
    expect_types(check(python, tmp_path))
