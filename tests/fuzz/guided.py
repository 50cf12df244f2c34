"""One reader, fed by atheris, which keeps what reaches code that no input reached before; the other half of ``make fuzz``.

::

    make fuzz-guided READER=IDX INPUTS=20000       READER: one of those in test_readers.py; needs atheris (Linux and macOS)

What must hold is what ``test_readers`` holds. An input that fails is left in the current folder as ``crash-...``.
"""

import itertools
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["compress"]):
    import test_readers

    from compress.cli.main import USER_ERRORS

READER = sys.argv.pop(1)
FILE, MAKE, READ = test_readers.READERS[READER]


def main() -> None:
    with tempfile.TemporaryDirectory() as base:
        numbers, corpus = itertools.count(), Path(base) / "corpus"
        corpus.mkdir()
        (corpus / "valid").write_bytes(MAKE(corpus))
        for beside in corpus.iterdir():  # what was made on the way
            if beside.name != "valid":
                beside.unlink()

        def holds(content: bytes) -> None:
            (folder := Path(base) / f"{next(numbers)}").mkdir()
            (folder / FILE).write_bytes(content)
            try:
                READ(folder / FILE)
            except USER_ERRORS as error:
                assert str(error) and "\n" not in str(error).strip()

        limits = [f"-timeout={test_readers.LONGEST:.0f}", f"-rss_limit_mb={3 * test_readers.MOST >> 20}"]
        atheris.Setup([*sys.argv, *limits, str(corpus)], holds)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
