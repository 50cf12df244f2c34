"""``python -m compress``: the same as the console script, for hosts where ``compress`` is the old Unix file compressor."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
