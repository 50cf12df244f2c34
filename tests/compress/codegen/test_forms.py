"""The same C for other processors, compilers and levels: int8 agrees bit for bit; sanitizers, C++ and threads."""

import ctypes
import functools
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import c_networks as networks
import numpy as np
import pytest
from compiled_c import WARNINGS, Compiled, executable, library, needs_clang, needs_gcc, text_of, write
from static_int8 import OLD, quantize_static

from compress.codegen.program import Program, generate
from compress.codegen.target import TARGETS

NATIVE = TARGETS["native"]
CPU = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
SCALAR = ("-DK_SCALAR", *NATIVE.flags)
FORMS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {  # what /proc/cpuinfo must have for it; flags there; macros that emulate it
    "avx2": ("avx2", TARGETS["x86-64-v3"].flags, ()),
    "avx2 with vpdpbusd": ("avx_vnni", ("-mavxvnni", *TARGETS["x86-64-v3"].flags), ("AVXVNNI",)),
    "avx512": ("avx512bw", TARGETS["x86-64-v4"].flags, ("AVX512",)),
    "avx512 with vpdpbusd": ("avx512_vnni", ("-mavx512vnni", *TARGETS["x86-64-v4"].flags), ("AVX512", "AVX512VNNI")),
    "avx512 with vpdpbusd and vpermb": (
        "avx512_vbmi",
        ("-mavx512vnni", "-mavx512vbmi", *TARGETS["x86-64-v4"].flags),
        ("AVX512", "AVX512VNNI", "AVX512VBMI"),
    ),
}
AVX512 = Path(__file__).parents[2] / "support" / "avx512.h"
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@functools.cache
def scalar(name: str) -> tuple[Program, list[list[np.ndarray]]]:
    """An int8 network with all its integers, and those of 20 images in the scalar form, which is the truth for all others."""
    program = generate(networks.with_integers(name), name="net", target=NATIVE)
    with tempfile.TemporaryDirectory() as folder:
        [run] = library([program], Path(folder), ["-O2", *SCALAR])
    return program, [run(image) for image in networks.images(name)[:20]]


@functools.cache
def mixed(cc: str, level: str) -> dict[bool, Compiled]:
    """The mixed network in float32, and in int8."""
    programs = [generate(networks.model("mixed", int8=int8), name=f"net{int8:d}", target=NATIVE) for int8 in (False, True)]
    with tempfile.TemporaryDirectory() as folder:
        return dict(zip((False, True), library(programs, Path(folder), [level, *NATIVE.flags], cc), strict=True))


@functools.cache
def plain(flags: tuple[str, ...]) -> dict[tuple[str, bool], Compiled]:
    """Networks in float32 and in int8, without sanitizers."""
    wanted = list(itertools.product(["mixed", "emnist"], [False, True]))
    programs = [generate(networks.model(name, int8=int8), name=f"{name}{int8:d}", target=NATIVE) for name, int8 in wanted]
    with tempfile.TemporaryDirectory() as folder:
        return dict(zip(wanted, library(programs, Path(folder), ["-O1", *flags]), strict=True))


@needs_gcc
@pytest.mark.parametrize("name", ["emnist", "residual", "mixed"])
def test_every_vector_form_of_int8_is_bit_for_bit_the_scalar_one(name: str, tmp_path: Path) -> None:
    """mixed has sigmoids and divisions in float32 between its integers too: they have the same order."""
    program, expected = scalar(name)
    tried = 0
    for form, (needs, flags, _) in FORMS.items():
        if f" {needs}" in CPU:
            tried += 1
            [run] = library([program], tmp_path / form.replace(" ", "-"), ["-O2", *flags])
            assert_same_integers(run, name, expected, form)
    if not tried:
        pytest.skip("this processor has none of the forms")


def assert_same_integers(run: Compiled, name: str, expected: list[list[np.ndarray]], form: str) -> None:
    """All integers of the images that ``expected`` is of."""
    for image, wanted in zip(networks.images(name)[: len(expected)], expected, strict=True):
        for port, one, other in zip(run.program.outputs[1:], run(image)[1:], wanted[1:], strict=True):
            np.testing.assert_array_equal(one, other, err_msg=f"{form}: {port.name}")


@needs_gcc
@pytest.mark.skipif(not Path("/usr/include/simde/x86/avx512.h").exists(), reason="needs SIMDe (libsimde-dev)")
@pytest.mark.parametrize("form", [form for form, (needs, *_) in FORMS.items() if f" {needs}" not in CPU])
@pytest.mark.parametrize("name", ["emnist", "residual", "mixed"])
def test_forms_that_this_processor_lacks_are_bit_for_bit_the_scalar_one_where_they_are_emulated(
    form: str, name: str, tmp_path: Path
) -> None:
    """So what a board with VNNI will compute is known on a machine without; only its speed is not."""
    program, expected = scalar(name)
    (tmp_path / "immintrin.h").write_text("", encoding="utf-8")
    macros = [f"-DEMULATE_{macro}" for macro in FORMS[form][2]]
    [run] = library(
        [program], tmp_path, ["-O1", "-Wno-psabi", *TARGETS["portable"].flags, f"-I{tmp_path}", "-include", str(AVX512), *macros]
    )
    assert_same_integers(run, name, expected, form)


@needs_gcc
@pytest.mark.skipif(" avx2" not in CPU, reason="needs AVX2")
def test_weights_of_seven_bits_take_one_product_of_bytes_and_stay_exact(tmp_path: Path) -> None:
    """What ``quantize`` makes where there is no VNNI: no two of them, times 255, leave 16 bits. The scalar form is the truth."""
    source, target, batch = tmp_path / "float32.onnx", tmp_path / "int8.onnx", networks.images("emnist")[:20]
    source.write_bytes(networks.model("emnist").SerializeToString())
    quantize_static(source, target, networks.images("emnist")[:64], types=OLD)
    program = generate(target, name="net", target=NATIVE)
    assert "k_conv8_pool(o + 0, 416, 32, 2, " in program.files["net.c"]  # 2: such weights
    [slow], [fast] = (library([program], tmp_path / str(len(flags)), ["-O1", *flags]) for flags in (SCALAR, TARGETS["x86-64-v3"].flags))
    for image in batch:
        np.testing.assert_array_equal(fast(image)[0], slow(image)[0])


@needs_gcc
@needs_clang
@pytest.mark.parametrize("int8", [False, True])
def test_compilers_and_levels_agree_and_do_not_warn(int8: bool) -> None:
    batch = networks.images("mixed")[:20]
    expected = None
    for cc in ("gcc", "clang"):
        for level in ("-O1", "-O2", "-O3", "-Os"):
            run = mixed(cc, level)[int8]
            found = np.concatenate([run(image)[0] for image in batch])
            expected = found if expected is None else expected
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=f"{cc} {level}")


@needs_gcc
@pytest.mark.parametrize("flags", [NATIVE.flags, SCALAR, TARGETS["x86-64-v3"].flags], ids=["native", "scalar", "avx2"])
@pytest.mark.parametrize("name", ["mixed", "emnist"])
@pytest.mark.parametrize("int8", [False, True])
def test_sanitizers_find_nothing(name: str, int8: bool, flags: Sequence[str], tmp_path: Path) -> None:
    """In buffers of exactly the sizes that the header says; the outputs are those of the library."""
    if "-march=x86-64-v3" in flags and " avx2" not in CPU:
        pytest.skip("needs AVX2")
    run, batch = plain(tuple(flags))[name, int8], networks.images(name)[:3]
    for image, found in zip(batch, executable(run.program, tmp_path, [*SANITIZERS, *flags], images=batch), strict=True):
        for one, other in zip(found, run(image), strict=True):
            np.testing.assert_array_equal(one, other)


CALLER = """
#include "net.h"
#include <cstdio>
#include <thread>
#include <vector>
int main(int, char **argv) {
  std::vector<net_pixel> images(2 * NET_INPUT_SIZE);
  std::FILE *file = std::fopen(argv[1], "rb");
  if (!file || std::fread(images.data(), sizeof(net_pixel), images.size(), file) != images.size()) return 1;
  std::vector<float> outputs(2 * NET_OUTPUTS);
  struct alignas(64) Arena { unsigned char bytes[NET_ARENA_BYTES]; };
  static Arena arenas[2];
  auto run = [&](int which) {
    for (int i = 0; i < 300; i++) net_run(&images[which * NET_INPUT_SIZE], &outputs[which * NET_OUTPUTS], &arenas[which]);
  };
  std::thread one(run, 0), other(run, 1);
  one.join(); other.join();
  std::fwrite(outputs.data(), sizeof(float), outputs.size(), stdout);
  return std::fclose(file);
}
"""


@needs_gcc
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_two_threads_of_a_caller_in_cpp_do_not_disturb_each_other(tmp_path: Path) -> None:
    program, batch = generate(networks.model("mixed", int8=True), name="net", target=NATIVE), networks.images("mixed")[:2]
    run = mixed("gcc", "-O2")[True]
    write(program, tmp_path)
    (tmp_path / "caller.cpp").write_text(CALLER, encoding="utf-8")
    (tmp_path / "images").write_bytes(batch.tobytes())
    subprocess.run(["gcc", *WARNINGS, "-O2", *NATIVE.flags, "-c", "net.c", "-o", "net.o"], cwd=tmp_path, check=True)
    subprocess.run(
        ["g++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "caller.cpp", "net.o", "-pthread", "-o", "caller"],
        cwd=tmp_path,
        check=True,
    )
    done = subprocess.run([str(tmp_path / "caller"), str(tmp_path / "images")], check=True, capture_output=True)
    expected = np.concatenate([np.concatenate([part.ravel() for part in run(image)]) for image in batch])
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32), expected)


@needs_gcc
def test_nothing_is_written_but_outputs_and_arena(tmp_path: Path) -> None:
    """The object has no data that can be written, and needs from outside what string.h and math.h have."""
    program = generate(networks.model("mixed"), name="net", target=NATIVE)
    write(program, tmp_path)
    subprocess.run(["gcc", *WARNINGS, "-O2", *NATIVE.flags, "-c", "net.c", "-o", "net.o"], cwd=tmp_path, check=True)
    symbols = subprocess.run(["nm", "net.o"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split("\n")
    kinds = {line.split()[-2]: line.split()[-1] for line in symbols if line}
    needed = {line.split()[-1] for line in symbols if " U " in line}
    assert not kinds.keys() & set("bBdDC"), kinds
    assert needed <= {"memset", "memcpy", "sqrtf", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}, needed
    assert {line.split()[-1] for line in symbols if " T " in line} == {"net_run", "net_label"}


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")), reason="needs an aarch64 gcc and qemu-user"
)
@pytest.mark.parametrize(
    ("name", "target"),
    [
        *itertools.product(["emnist", "mixed", "k49"], ["aarch64", "aarch64+dotprod"]),
        *itertools.product(["mixed"], ["cortex-a53", "cortex-a72", "cortex-a76"]),
    ],
)
def test_aarch64_gives_the_same_integers(name: str, target: str, tmp_path: Path) -> None:
    program, batch = generate(networks.with_integers(name), name="net", target=TARGETS[target]), networks.images(name)[:10]
    same, expected = scalar(name)
    assert text_of(program) == text_of(same)
    flags, run = ["-O2", "-static", *TARGETS[target].flags], ("qemu-aarch64", "-cpu", "max")
    found = executable(program, tmp_path / "main", flags, "aarch64-linux-gnu-gcc", run, batch)
    for one, truth in zip(found, expected[: len(batch)], strict=True):
        for port, part, wanted in zip(program.outputs[1:], one[1:], truth[1:], strict=True):
            np.testing.assert_array_equal(part, wanted, err_msg=port.name)


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")), reason="needs an aarch64 gcc and qemu-user"
)
def test_aarch64_gives_the_same_float32_logits(tmp_path: Path) -> None:
    model, batch = networks.model("k49"), networks.images("k49")[:20]
    program = generate(model, name="net", target=TARGETS["aarch64"])
    found = executable(
        program, tmp_path / "main", ["-O2", "-static", *TARGETS["aarch64"].flags], "aarch64-linux-gnu-gcc", ("qemu-aarch64",), batch
    )
    for one, wanted in zip(found, networks.answers(model, batch), strict=True):
        np.testing.assert_allclose(one[0], wanted[0], rtol=0, atol=1e-5 * np.abs(wanted[0]).max())


# gcc 12.2 takes ``layer`` for pure where it is noinline, and deletes the call, at -O1 to -O3. One buffer of bytes that the caller hands in,
# read as bytes and written through a type that may alias: nothing in it is undefined, and clang keeps the call.
DELETED = """
#include <immintrin.h>
#include <stdint.h>
typedef float vf __attribute__((vector_size(64)));
typedef float vfu __attribute__((vector_size(64), aligned(4), may_alias));
static inline __attribute__((always_inline)) vf load(const uint8_t *p) {
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
static __attribute__((LAYER)) void layer(uint8_t *arena) {
  float *o = (float *)(void *)arena;
  const uint8_t *a = arena + 70000;
  for (int y = 0; y < 3; y++) for (int i = 0; i < 512; i += 16)
    *(vfu *)(o + i) = (vfu)((load(a + i) - 1.0f) * 2.0f + load(a + 1000 + i));
}
void run(uint8_t *arena);
void run(uint8_t *arena) { layer(arena); }
"""


@needs_gcc
@pytest.mark.skipif(" avx512bw" not in CPU, reason="needs AVX-512")
@pytest.mark.parametrize("level", ["-O1", "-O2", "-O3", "-Os"])
def test_an_opaque_layer_is_called(level: str, tmp_path: Path) -> None:
    """By hand: (7 - 1) * 2 + 7 = 19. With ``noinline`` gcc 12.2 gives what was there before; newer ones may not."""
    (tmp_path / "layer.c").write_text(DELETED, encoding="utf-8")
    flags = ["-std=gnu11", level, *TARGETS["x86-64-v4"].flags, "-DLAYER=noipa", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "layer.c", "-o", "layer.so"], cwd=tmp_path, check=True)
    arena = np.full(80000, 7, np.uint8)
    ctypes.CDLL(str(tmp_path / "layer.so")).run(ctypes.c_void_p(arena.ctypes.data))
    assert set(arena[:2048].view(np.float32).tolist()) == {19.0}
    assert "__attribute__((noipa))" in generate(networks.model("residual"), name="net", target=NATIVE).files["kernels.h"]
