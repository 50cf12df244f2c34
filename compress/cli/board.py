"""``compress board``: the machines that ``--on`` may name, and latency tables."""

import json
from pathlib import Path

import click

from ..benchmarks.boards import known as boards
from ..benchmarks.boards.remote import Machine
from ..benchmarks.formats import milliseconds, size
from ..errors import CompressError, shown
from .tables import paragraphs, table
from .terminal import Terminal, tell


@click.group()
def board() -> None:
    """Machines that may time and ask files for --on: add them, list them, look at them, remove them.

    \b
    Example:  compress board add pi4 ssh://pi@192.168.1.20
              compress quantize --onnx net.onnx --data path/to/folder --on pi4
    """


@board.command()
@click.argument("name")
@click.argument("address", metavar="ssh://USER@HOST[:PORT][/FOLDER]")
@click.option("--offline", is_flag=True, help="Fetch the wheels here and carry them over, where that machine reaches no package index.")
def add(name: str, address: str, offline: bool) -> None:
    """Look at a machine, give it what it lacks in a folder of its own, and remember it.

    It is reached by ssh, with your keys and your check of its own; nothing is installed outside of FOLDER (.compress-edge in its home).

    \b
    Example:  compress board add pi4 ssh://pi@192.168.1.20
              compress board add pi4 ssh://pi@192.168.1.20:2222/data/compress --offline
    """
    _show(name, boards.add(name, address, offline), f"next: compress benchmark net.onnx --on {name}")


@board.command(name="list")
def list_() -> None:
    """The machines that are known.

    \b
    Example:  compress board list
    """
    rows = [{"name": name, "address": address} for name, address in boards.known().items()]
    tell(table(rows) if rows else "no board; compress board add NAME ssh://user@host")


@board.command()
@click.argument("name")
def check(name: str) -> None:
    """Look at a machine: Python, libraries, free space, clock.

    \b
    Example:  compress board check pi4
    """
    _show(name, boards.check(name), f"{name}: ready")


@board.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget a machine, and remove what was put there.

    \b
    Example:  compress board remove pi4
    """
    told = boards.remove(name)
    tell(f"{name} is forgotten" + (f"; what lies there stays: {told}" if told else ", and its folder is gone"))


@board.command()
@click.argument("name")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the table here too, to pass it on.")
def profile(name: str, out: Path | None) -> None:
    """Measure how long layers of each kind take on a machine, once, in some minutes: its latency table.

    NAME is of `compress board add`, or "here" for this machine. remove-channels --max-latency then begins with what the table says;
    `compress board foretell` asks it for whole networks, float32, one image on one thread.

    \b
    Example:  compress board profile pi4
              compress board profile here --out here.json
    """
    from ..artifacts.records import write_record
    from ..stages.boards.latency_table import measured

    if out is not None and not out.parent.is_dir():
        raise CompressError(f"out (={shown(str(out), 160)}) lies in a folder that does not exist; make it first")
    if name not in (boards.THIS, *boards.known()):
        there = ", ".join(boards.known()) or "none"
        raise CompressError(
            f"name (={shown(name)}) is no board that is known ({there}), nor here; `compress board add NAME ssh://user@host`"
        )
    terminal = Terminal()
    try:
        found = measured(boards.place_named(None if name == boards.THIS else name, terminal.progress), terminal.progress)
    finally:
        terminal.close()
    for path in filter(None, (boards.latency_file(name), out)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, found)
    rows = [{"kind": kind, "layers": str(sum(one.kind == kind for one in found.layers))} for kind in found.figures]
    told = f"a layer that is not in it is foretold within {100 * found.error:.0f}%, half of them"
    tell(paragraphs(table(rows), f"{boards.latency_file(name)}: {told}; next: compress board foretell {name} net.onnx"))


@board.command()
@click.argument("name", metavar="NAME|TABLE.json")
@click.argument("files", metavar="NET.onnx...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def foretell(name: str, files: tuple[Path, ...], as_json: bool) -> None:
    """How long networks probably take on a machine, by its latency table; nothing is measured, and the machine need not be there.

    \b
    Example:  compress board foretell pi4 net.onnx small.onnx
              compress board foretell pi4.json net.onnx --json
    """
    from ..stages.boards.latency_table import read_table

    path = Path(name) if name.endswith(".json") else boards.latency_file(name)
    if not path.is_file():
        how = (
            f"`compress board profile {shown(name)}` makes it" if path != Path(name) else "name a file that `compress board profile` wrote"
        )
        raise CompressError(f"table (={shown(str(path), 160)}) does not exist; {how}")
    known = read_table(path)
    seconds = {str(file): known.of_graph(file) for file in files}
    if as_json:
        tell(json.dumps({"table": str(path), "machine": known.machine, "seconds": seconds}, indent=1, ensure_ascii=False))
        return
    first = next(iter(seconds.values()))
    rows = [
        {"file": shown(file, 160), "foretold": milliseconds(one), "of the first": f"{one / first:.2f}x"} for file, one in seconds.items()
    ]
    tell(paragraphs(table(rows), f"On {shown(str(known.machine.get('cpu', name)))}: foretold from layers, not measured."))


def _show(name: str, machine: Machine, last: str) -> None:
    about = {
        "board": name,
        "processor": machine.machine,
        "Python": machine.python,
        "libraries": ", ".join(f"{one} {version}" for one, version in machine.packages.items()),
        "folder": f"{machine.folder}, {size(machine.free)} free",
        "clock": "as here" if abs(machine.skew) < 60 else f"{machine.skew:+.0f} s",
    }
    tell(paragraphs("\n".join(f"{key.ljust(10)}  {shown(value, 200)}" for key, value in about.items()), last))
