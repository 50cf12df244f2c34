"""What a user can get wrong about a measurement."""

from pathlib import Path


class BenchmarkError(ValueError):
    """An unusable file, setting or result; the message says the name, the value, the rule and the next step."""


class MissingError(BenchmarkError):
    """A library that a file or setting needs is not installed here, which says nothing of the file."""


def refuse_odd_name(path: Path) -> None:
    """Raise BenchmarkError for a path that is no Unicode, which runtimes do not take."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise BenchmarkError(f"path (={path}) is no text in Unicode, which no runtime opens; rename it") from None
