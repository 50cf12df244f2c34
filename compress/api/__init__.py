"""What can be called from Python, and with which options; the command line calls it too."""
