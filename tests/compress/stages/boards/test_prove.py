"""`compress verify` of a folder of C: what it finds wrong, what it refuses, and that nothing of it stays.

Programs in place of compilers and emulators are scripts that a test writes, so that what they are called with is known.
"""

import hashlib
import json
import platform
import shutil
import tempfile
from pathlib import Path

import pytest
from c_folders import COMPILERS, net
from compiled_c import needs_gcc
from stand_ins import Commands


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Commands) -> Path:
    """C for the machine at hand; what is temporary goes to a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    net(Path("net.onnx"))
    run.done("export-c", "--onnx", "net.onnx", "--out", "c", "--target", "portable")
    return Path("c")


def for_target(run: Commands, target: str) -> str:
    return str(run.done("export-c", "--onnx", "net.onnx", "--target", target)["folder"])


def script(name: str, text: str) -> Path:
    """A program in ``bin``, which nothing but the shell has to be found for."""
    Path("bin").mkdir(exist_ok=True)
    made = Path("bin", name)
    made.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    made.chmod(0o755)
    return made.absolute()


@pytest.mark.parametrize("cc", COMPILERS or [pytest.param("gcc", marks=needs_gcc)])
def test_what_was_made_is_proved_and_nothing_is_left_behind(cc: str, folder: Path, run: Commands) -> None:
    before = sorted(Path().rglob("*"))
    code, out, _ = run("verify", "c", "--cc", cc)
    assert code == 0 and out.splitlines()[-1] == "c: proved"
    assert f"ok    compiles      {cc} for portable" in out and "ok    self-test     4 of 4 images; " in out
    assert sorted(Path().rglob("*")) == before


@pytest.mark.skipif(
    not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm")), reason="needs arm-none-eabi-gcc and qemu-system-arm"
)
@pytest.mark.parametrize(("target", "board"), [("cortex-m4", "mps2-an386"), ("cortex-m7", "mps2-an500")])
def test_microcontrollers_that_qemu_emulates_run_the_self_test(target: str, board: str, folder: Path, run: Commands) -> None:
    """As the guide says, with the start and the memory of ``docs/examples``."""
    examples = Path(__file__).parents[4] / "docs" / "examples" / "cortex-m"
    cc = f"arm-none-eabi-gcc --specs=rdimon.specs -T {examples / 'board.ld'} {examples / 'start.c'}"
    emulator = f"qemu-system-arm -M {board} -nographic -semihosting -kernel"
    code, out, _ = run("verify", for_target(run, target), "--cc", cc, "--run", emulator)
    assert code == 0 and "ok    self-test     4 of 4 images; " in out


@needs_gcc
def test_a_self_test_that_fails_is_exit_code_1(folder: Path, run: Commands) -> None:
    """The weights are others, and ``c.json`` is made to say so: only the test can tell."""
    source = (folder / "net.c").read_text(encoding="utf-8")
    changed = source.replace("  net_0(", "  if (outputs) return;\n  net_0(", 1)
    assert changed != source
    (folder / "net.c").write_text(changed, encoding="utf-8")
    about = json.loads((folder / "c.json").read_text(encoding="utf-8"))
    about["files"]["net.c"] = hashlib.sha256(changed.encode()).hexdigest()
    (folder / "c.json").write_text(json.dumps(about), encoding="utf-8")
    code, out, _ = run("verify", "c")
    assert code == 1 and "FAIL  self-test     0 of 4 images; " in out and "exit code 1" in out


def test_a_changed_file_is_named_and_not_compiled(folder: Path, run: Commands) -> None:
    with (folder / "kernels.h").open("a") as file:
        file.write("/* mine */\n")
    cc = script("cc", f"touch {Path('compiled').absolute()}; exit 1")
    code, out, _ = run("verify", "c", "--cc", str(cc))
    assert code == 1 and "FAIL  hash          kernels.h: changed, cut or missing, so nothing was compiled" in out
    assert "compiles" not in out and not Path("compiled").exists()


def test_without_a_compiler_one_line_says_so(folder: Path, run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    told = "there is no C compiler for portable here (looked for gcc, clang, cc); install one, or name it with --cc"
    assert run("verify", "c") == (2, "", f"compress: {told}\n")


def test_what_the_compiler_says_is_told(folder: Path, run: Commands) -> None:
    cc = script("cc", "echo 'net.c:3: error: no vectors' >&2; exit 1")
    code, out, _ = run("verify", "c", "--cc", str(cc))
    assert code == 1 and "FAIL  compiles      net.c:3: error: no vectors" in out


def test_the_compiler_gets_the_flags_of_the_target_and_the_runner_the_program(folder: Path, run: Commands) -> None:
    """Of another machine nothing is compiled for nothing: it is asked first what runs its programs."""
    other = "x86-64-v3" if platform.machine().lower() in ("aarch64", "arm64") else "aarch64+dotprod"
    target, log = for_target(run, other), Path("log").absolute()
    cc = script("cc", f'echo "$@" > {log}; while [ "$1" != -o ]; do shift; done; touch "$2"')
    runner = script("runner", f'echo "$1 $(basename "$2")" >> {log}; echo 3 of 4 images; exit 1')
    code, _, err = run("verify", target, "--cc", str(cc))
    assert code == 2 and f"compress: target (={other}) is not this machine; say with --run what runs its programs" in err
    assert not log.exists()
    code, out, _ = run("verify", target, "--cc", f"{cc} -static", "--run", f"{runner} -L")
    assert code == 1 and "FAIL  self-test     3 of 4 images; exit code 1" in out
    called, ran = log.read_text().splitlines()
    flag = "-march=x86-64-v3" if other.startswith("x86") else "-march=armv8.2-a+dotprod"
    assert called.startswith("-static -std=c11 -O3 ") and flag in called and ran == "-L test"


@needs_gcc
def test_over_ssh_the_program_is_sent_runs_there_and_is_removed(folder: Path, run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of ssh: a shell with a folder for temporary files of its own, which is told what comes last."""
    log, there = Path("log").absolute(), Path("there").absolute()
    there.mkdir()
    ssh = script("ssh", f'echo "$1 $2 $3" > {log}; shift 3; TMPDIR={there} exec sh -c "$1"')
    code, out, _ = run("verify", "c", "--run", f"{ssh} -p 2222 board")
    assert code == 0 and "ok    self-test     4 of 4 images; " in out
    assert log.read_text() == "-p 2222 board\n" and not list(there.iterdir())
    dead = script("ssh", "echo 'ssh: connect to host board port 22: Connection refused' >&2; exit 255")
    code, out, _ = run("verify", "c", "--run", f"{dead} board")
    assert code == 1 and "FAIL  self-test     ssh: connect to host board port 22: Connection refused; exit code 255" in out


def test_a_program_that_a_signal_ends_is_a_failure(folder: Path, run: Commands) -> None:
    cc = script("cc", 'while [ "$1" != -o ]; do shift; done; printf "#!/bin/sh\\nkill -ILL \\$\\$\\n" > "$2"; chmod +x "$2"')
    code, out, _ = run("verify", "c", "--cc", str(cc))
    assert code == 1 and "FAIL  self-test     it says nothing; ended by SIGILL" in out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--cc", "nothing-such -O1"), "cc (=nothing-such -O1) must be a program that is installed here, with its options; "),
        (("--cc", "'gcc"), "cc (='gcc) must be a command: No closing quotation"),
        (("--run", ""), "run (=) must be a program that is installed here, with its options; "),
    ],
)
def test_a_wrong_command_is_refused(given: tuple[str, ...], told: str, folder: Path, run: Commands) -> None:
    cc = () if "--cc" in given else ("--cc", str(script("cc", "exit 1")))
    code, out, err = run("verify", "c", *given, *cc)
    assert code == 2 and not out and err.startswith(f"compress: {told}") and err.count("\n") == 1


def test_a_damaged_record_is_refused(folder: Path, run: Commands) -> None:
    about = json.loads((folder / "c.json").read_text(encoding="utf-8"))
    for changes, told in (
        ({"name": "a; b"}, "c.json is damaged: name "),
        ({"target": "z80"}, "c.json is damaged: "),
        ({"files": {}}, "c.json is damaged: files (=kernels.h) do not fit; run `compress export-c` again"),
        ({"files": about["files"] | {"../x": "0"}}, "c.json is damaged: files (=../x) do not fit"),
        ({"flags": ["-fplugin=x.so"]}, "c.json is damaged: flags is unknown"),
    ):
        (folder / "c.json").write_text(json.dumps(about | changes), encoding="utf-8")
        code, _, err = run("verify", "c")
        assert code == 2 and told in err and err.count("\n") == 1, err


def test_commands_for_c_are_refused_for_other_folders(folder: Path, run: Commands) -> None:
    code, _, err = run("verify", "net.onnx", "--cc", "gcc")
    assert code == 2 and "cc (=gcc) is for a folder of C, and net.onnx has no c.json; leave it out, or name one of export-c" in err
