"""``compress board``: the machines that ``--on`` may name."""

import click

from ..benchmarks.boards import known as boards
from ..benchmarks.boards.remote import Machine
from ..benchmarks.formats import size
from ..errors import shown
from .tables import paragraphs, table
from .terminal import tell


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
