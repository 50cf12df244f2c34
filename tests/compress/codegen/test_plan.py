"""The arena: what lives together has its own bytes, but for a result that stays behind what is still to be read of its source."""

from pathlib import Path

import c_networks as networks
import numpy as np
import pytest
from compiled_c import library, needs_gcc

from compress.codegen.calls import Call, Contract, Loop
from compress.codegen.expressions import Tensor, load
from compress.codegen.plan import place, share
from compress.codegen.program import generate
from compress.codegen.target import TARGETS


def convolution(source: Tensor, result: Tensor) -> Contract:
    filters = np.ones((result.shape[1], source.shape[1], 3, 3), np.int8)
    return Contract(name="conv", source=source, writes=[result], weights=filters, bias=np.zeros(4, np.int32), pads=(1, 1))


def chain() -> tuple[list[Call], list[Tensor]]:
    """An image, a map a, a convolution b of it, and the sum of b and a map c that lived all the time."""
    image = Tensor("image", (1, 4, 8, 8), "u8", kind="plain", place="image")
    a, b, c, d = (Tensor(name, (1, 4, 8, 8), "u8", kind="pixel") for name in "abcd")
    a.halo = [1, 1, 1, 1]
    calls = [Loop(name="c", writes=[c], source=load(image)), Loop(name="a", writes=[a], source=load(c)), convolution(a, b)]
    last = Loop(name="d", writes=[d], source=load(b))
    last.reads = lambda: [b, c]  # type: ignore[method-assign]
    return [*calls, last], [a, b, c, d]


def test_a_convolution_lies_behind_what_it_still_reads_of_its_source() -> None:
    """By hand: a row of a is (8 + 2) * 4 = 40 bytes, one of b 32. Row y reads from 40 y on and ends at 32 (y + 1): 32 bytes before a."""
    calls, (a, b, c, d) = chain()
    size, lives = place(calls, 4)
    assert a.offset - b.offset == 32 and share(a, b, 4)
    assert d.offset == b.offset and not share(c, b, 4) and not share(c, a, 4)
    assert size == max(lives) == (256 + 32) + (400 + 32 + 16) + 32  # c, and a with b before it, each with what vectors may read behind


def test_with_vectors_nothing_lies_over_what_is_read() -> None:
    calls, (a, b, c, d) = chain()
    place(calls, 16)
    assert not any(share(one, other, 16) for one, other in ((a, b), (b, c), (b, d), (c, d), (a, c)))


def test_a_source_that_is_read_again_is_left_alone() -> None:
    calls, (a, b, *_) = chain()
    last = Loop(name="again", writes=[Tensor("e", (1, 4, 8, 8), "u8", kind="pixel")], source=load(a))
    place([*calls, last], 4)
    assert not share(a, b, 4)


@needs_gcc
@pytest.mark.parametrize(("name", "int8"), [("mixed", True), ("mixed", False), ("residual", True)])
def test_shared_memory_changes_no_number(name: str, int8: bool, tmp_path: Path) -> None:
    """Against the same network laid out for vectors, where nothing shares, both in the scalar form."""
    model, batch = networks.model(name, int8=int8), networks.images(name)[:10]
    flags = ["-O1", "-DK_SCALAR", *TARGETS["portable"].flags]
    programs = [generate(model, name=f"on_{target}", target=TARGETS[target]) for target in ("native", "portable")]
    apart, shared = (library([one], tmp_path / str(number), flags)[0] for number, one in enumerate(programs))
    assert programs[1].arena_bytes < programs[0].arena_bytes
    for image in batch:
        for one, other in zip(apart(image), shared(image), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_residual_block_of_32x32x16_fits_in_38_kb() -> None:
    """Two maps of 16 kB with their margins live at once, not three: the sum lies over one, the second convolution over its source."""
    program = generate(networks.model("residual", int8=True), name="net", target=TARGETS["cortex-m4"])
    assert 2 * 34 * 34 * 16 < program.arena_bytes < 38_500
    assert program.arena_bytes <= 1.02 * max(layer.arena for layer in program.layers)
