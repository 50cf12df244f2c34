"""How much is zeroed: a sparsity in steps, or a pattern. Loads no torch.

Refused: a sparsity outside (0, 1), fewer steps than one, a pattern that is none.

Sources: Zhu and Gupta 2017, arXiv:1710.01878 (the cubic schedule); Mishra et al. 2021, arXiv:2104.08378 (the 2:4 pattern).
"""

import re

from ..errors import CompressError


def parse_pattern(text: str) -> tuple[int, int]:
    """How many of how many weights stay: ``"2:4"`` is (2, 4)."""
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text, re.ASCII)
    keep, of = map(int, found.groups()) if found else (0, 0)
    if not 0 < keep < of:
        raise CompressError(f'pattern (="{text}") must be two numbers KEEP:OF with 0 < KEEP < OF; "2:4" keeps the 2 largest of every 4')
    return keep, of


def cubic_sparsities(sparsity: float, steps: int) -> tuple[float, ...]:
    """The sparsity after each of ``steps`` steps of gradual pruning: much at first, when little is lost, and less and less.

    ``sparsity * (1 - (1 - k / steps) ** 3)`` for k = 1 to ``steps``: 0.8 in 4 steps is 0.4625, 0.7, 0.7875, 0.8; one step is one-shot.
    Zeros stay zeros: once ``apply_masks`` has run, ``weight_masks`` at a higher sparsity and the same scope takes the zeros first.
    """
    if not 0 < sparsity < 1:
        raise CompressError(f"sparsity (={sparsity}) must lie in (0, 1); 0.8 zeroes 80% of the weights")
    if steps < 1:
        raise CompressError(f"steps (={steps}) must be at least 1; 1 zeroes all at once")
    return tuple(sparsity * (1 - (1 - k / steps) ** 3) for k in range(1, steps + 1))
