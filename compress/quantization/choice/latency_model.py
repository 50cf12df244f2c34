"""How long a file with some groups of nodes in int8 takes, foretold from the files that were measured, so that most need not be.

The latency, as a fraction of float32's, is taken to be 1, and what each group in int8 adds, and what each border adds on whose two sides
one group is in int8 and the other is not, since a conversion lies there. By hand: of two neighbours each takes 1.05 alone in int8 and both
take 0.6; then each adds -0.2, and the border between them 0.25. Three figures, found from three files.

The figures are a Bayesian linear regression with a normal prior, so that they are defined before there are as many files, and each comes
with its doubt: of n groups each takes about 1/n of the latency, which it may lose or take once more, and a border costs a quarter of that.
What to measure next is what is foretold to be fast or doubtful: the smallest of what is foretold, less its standard deviation. Where no set
promises a gain, the search is over.

Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, section 2.1; Srinivas et al. 2010, arXiv:0912.3995.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# Mean and standard deviation of what a group and a border add before anything is measured, in units of float32's latency per group.
GROUP, BORDER = (0.0, 1.5), (0.25, 0.3)

Groups = frozenset[str]


class LatencyModel:
    """Foretells the latency of sets of ``groups``; ``borders`` are pairs of groups of which one reads what the other makes."""

    def __init__(self, groups: Sequence[str], borders: Iterable[tuple[str, str]]) -> None:
        self.groups = tuple(groups)
        place = {name: at for at, name in enumerate(self.groups)}
        self.borders = np.array([(place[one], place[other]) for one, other in borders], int).reshape(-1, 2)
        mean, deviation = np.array([GROUP] * len(self.groups) + [BORDER] * len(self.borders)).T / len(self.groups)
        self._precision, self._weighted = np.diag(deviation**-2), mean / deviation**2
        self._flips = np.eye(len(self.groups), dtype=bool)
        self._flips = np.concatenate([self._flips, self._flips[self.borders[:, 0]] | self._flips[self.borders[:, 1]]])

    def learn(self, sets: Sequence[Groups], ratios: NDArray[np.float64], noise: float) -> None:
        """Take in measured latencies, as fractions of float32's, of which each has the standard deviation ``noise``."""
        known = self._features(self._chosen(sets))
        self._precision = self._precision + known.T @ known / noise**2
        self._weighted = self._weighted + known.T @ (ratios - 1) / noise**2

    def foretold(self, sets: Sequence[Groups]) -> NDArray[np.float64]:
        """The latency of each set as a fraction of float32's."""
        return self._foretold(self._chosen(sets))[0]

    def promised(self, sets: Sequence[Groups]) -> NDArray[np.float64]:
        """As ``foretold``, less its standard deviation: what it may well be."""
        return self._promised(self._chosen(sets))

    def promising(self, starts: Sequence[Groups], seen: Collection[Groups], count: int, below: float) -> list[Groups]:
        """At most ``count`` sets that were not ``seen``, those that promise most first, each less than ``below``.

        Looked for around ``starts``: one group, or two with a border between them, change sides as long as that promises more.
        """
        found: dict[Groups, float] = {}
        for current in self._chosen(starts):
            best = np.inf
            while True:
                near = current ^ self._flips
                promised = self._promised(near)
                found |= zip(map(self._named, near), promised, strict=True)
                if promised.min() >= best - 1e-9:
                    break
                best, current = promised.min(), near[promised.argmin()]
        wanted = sorted((one for one in found if one and one not in seen and found[one] < below), key=found.__getitem__)
        return wanted[:count]

    def _promised(self, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        mean, deviation = self._foretold(chosen)
        return mean - deviation

    def _foretold(self, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        features = self._features(chosen)
        covariance = np.linalg.inv(self._precision)
        return 1 + features @ covariance @ self._weighted, np.sqrt(np.einsum("ij,jk,ik->i", features, covariance, features))

    def _features(self, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        crossed = chosen[:, self.borders[:, 0]] != chosen[:, self.borders[:, 1]]
        return np.concatenate([chosen, crossed], axis=1).astype(np.float64)

    def _chosen(self, sets: Sequence[Groups]) -> NDArray[np.bool_]:
        return np.array([[name in one for name in self.groups] for one in sets]).reshape(len(sets), len(self.groups))

    def _named(self, row: NDArray[np.bool_]) -> Groups:
        return frozenset(name for name, taken in zip(self.groups, row, strict=True) if taken)
