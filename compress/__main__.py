"""``python -m compress``: the same as the console script, for hosts where ``compress`` is the old Unix file compressor."""

import sys


def main() -> int:
    """The command line, imported only here: processes that a benchmark starts import this file too, and need none of it."""
    from .cli import main as cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
