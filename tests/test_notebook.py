"""The notebook of the documentation, executed cell by cell in a kernel of its own, in a folder of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "docs" / "from-weights-to-file.ipynb"


def test_the_notebook_runs_from_weights_to_a_file(tmp_path: Path) -> None:
    shutil.copy(NOTEBOOK, tmp_path)
    (tmp_path / "recipe.toml").write_text("[benchmark]\nlaunches = 2\ntime_limit = 0\n")  # which the notebook takes where it lies beside it
    command = [sys.executable, "-c", "from nbclient.cli import main; main()", "--inplace", "--timeout=300", NOTEBOOK.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = [cell for cell in json.loads((tmp_path / NOTEBOOK.name).read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    said = ["".join(line for one in cell["outputs"] for line in (one.get("text") or one["data"]["text/plain"])) for cell in cells]
    assert "Ship " in said[-2], said
    right, count = json.loads(said[-1].replace("(", "[").replace(")", "]"))
    assert count == 12 and right >= 9, "a network of 95% reads most of twelve digits"
    assert len(list(tmp_path.glob("runs/net-make_net/quantize/*/model.onnx"))) == 1
