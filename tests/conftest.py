"""One thread per test and per program that a test starts: set before torch reads it, and small tests gain nothing from more.

And Ctrl-C reaches what a test starts: a shell has what it runs in the background ignore it, and children inherit that.
"""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
