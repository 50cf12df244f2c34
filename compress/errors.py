"""What a user can get wrong. The command line catches these once: one line, exit code 2, no traceback.

::

    CompressError          stages, settings, files                     (this module)
    ├── ArtifactError      a damaged, foreign or unsuitable artifact   (this module)
    ├── NetworkError       a factory or weights that do not fit        (this module)
    └── CodegenError       a graph that cannot be written as C         (compress.codegen.read)
    TrainError             data and training settings                  (compress.train.errors)
    ModelError             configuration of a reference network        (compress.models.errors)
    BenchmarkError         measurements and their files                (compress.benchmarks.errors)

The last three do not derive from the first because their packages stand alone; ``USER_ERRORS`` in ``compress.cli`` unites them.
"""

import difflib
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class CompressError(ValueError):
    """Something the user can put right; the message says the name, the value, the rule and the next step."""


class ArtifactError(CompressError):
    """An artifact that is missing, damaged, of another kind, or from elsewhere."""


class NetworkError(CompressError):
    """A model reference, factory or weights file that cannot be used."""


def onnxruntime_errors() -> tuple[Any, ...]:
    """What ONNX Runtime raises of a file that it cannot load or run; these share no base class below Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
        state.RuntimeException,
    )


def first_line(error: BaseException) -> str:
    """Class and first line of a foreign error, short enough to be quoted in a message of one line."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first if len(first) <= 160 else first[:157] + '...'}"


def need_file(path: Path, told: str, hint: str = "", error: type[CompressError] = CompressError) -> None:
    """Raise ``error`` where ``path`` is a folder, a pipe, a device or nothing; ``told`` is what messages call it."""
    if not path.is_file():
        raise error(f"{told}{' is not a file' if path.exists() else ': there is no such file'}{hint}")


def processes(names: Iterable[str] = ()) -> int:
    """How many processes torchrun started, 1 without it.

    Raises CompressError where that, or the variable ``names`` that go with it, is not as torchrun sets it.
    """
    for name in ("WORLD_SIZE", *names):
        value = os.environ.get(name, "1" if name == "WORLD_SIZE" else "")
        if not (value.isascii() and value.isdigit() and len(value) < 9 and int(value) >= (name == "WORLD_SIZE")):
            raise CompressError(f"{name} (={shown(value)}) must be a whole number, as torchrun sets it; unset WORLD_SIZE for one process")
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_torchrun(told: str) -> None:
    """Raise CompressError where torchrun started several processes of something that one alone may do."""
    if processes() != 1:
        raise CompressError(told)


def neutral(text: str) -> str:
    """Text that may hold names from outside as a terminal may show it: control characters and halves of surrogate pairs as escapes."""
    plain = (one.isprintable() or one == "\n" or unicodedata.category(one) == "Zs" for one in text)
    return "".join(one if fine else one.encode("unicode_escape").decode() for one, fine in zip(text, plain, strict=True))


def shown(value: object, most: int = 80) -> str:
    """A value from outside as a message may show it: one line, no control characters, no half surrogate pairs, at most ``most`` long."""
    try:
        text = str(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    text = "".join(one if one.isprintable() else "?" for one in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """The next step where a name is not known: ``did you mean epochs?``, or all that there are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
