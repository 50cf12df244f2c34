"""Microcontrollers, emulated: Cortex-M4, M7 and M55 give what the scalar form gives on this machine, in the memory that was planned."""

import functools
import shutil
import tempfile
from pathlib import Path

import c_networks as networks
import numpy as np
import pytest
from compiled_c import board, library, needs_gcc, text_of

from compress.codegen.program import Program, generate
from compress.codegen.target import TARGETS

MACHINES = {"cortex-m4": "mps2-an386", "cortex-m7": "mps2-an500", "cortex-m55": "mps3-an547"}
needs_boards = pytest.mark.skipif(
    not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm")), reason="needs arm-none-eabi-gcc and qemu-system-arm"
)


@functools.cache
def scalar(name: str) -> tuple[Program, list[np.ndarray]]:
    """A network for no processor in particular, and the logits that it gives on this one."""
    program = generate(networks.model(name, int8=True), name="net", target=TARGETS["portable"])
    with tempfile.TemporaryDirectory() as folder:
        [run] = library([program], Path(folder), ["-O2", "-DK_SCALAR", *TARGETS["portable"].flags])
    return program, [run(image)[0] for image in networks.images(name)[:5]]


@needs_gcc
@needs_boards
@pytest.mark.parametrize("target", MACHINES)
@pytest.mark.parametrize("name", ["emnist", "mixed", "residual"])
def test_a_board_gives_the_integers_of_this_machine(name: str, target: str, tmp_path: Path) -> None:
    """Logits bit for bit; 512 kB of flash must do, with the images, and 256 kB of RAM."""
    batch = networks.images(name)[:5]
    program = generate(networks.model(name, int8=True), name="net", target=TARGETS[target])
    same, expected = scalar(name)
    assert text_of(program) == text_of(same)
    for found, wanted in zip(board(program, tmp_path, ["-O2", *TARGETS[target].flags], MACHINES[target], batch), expected, strict=True):
        np.testing.assert_array_equal(found[0], wanted)


@needs_gcc
@needs_boards
def test_a_board_gives_the_float32_logits_of_onnx_runtime(tmp_path: Path) -> None:
    batch, model = networks.images("residual")[:3], networks.model("residual")
    program = generate(model, name="net", target=TARGETS["cortex-m4"])
    found = board(program, tmp_path, ["-O2", *TARGETS["cortex-m4"].flags], MACHINES["cortex-m4"], batch)
    for one, wanted in zip(found, networks.answers(model, batch), strict=True):
        np.testing.assert_allclose(one[0], wanted[0], rtol=0, atol=1e-5 * np.abs(wanted[0]).max())
