"""The stage ``export-c``: a network as C for boards, and the proof that what was compiled computes the same."""
