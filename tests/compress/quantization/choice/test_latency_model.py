"""What is foretold of sets of groups, against machines whose latency is known by hand, and against the best of all sets."""

import itertools

import numpy as np
import pytest

from compress.quantization.choice.latency_model import Groups, LatencyModel


def sets(*names: str) -> list[Groups]:
    return [frozenset(name) for name in names]


def test_a_group_and_the_border_beside_it_are_told_apart() -> None:
    """Each of two neighbours takes 1.05 alone, both take 0.6; a third one, two borders away, adds 0.1 wherever it is."""
    model = LatencyModel("abxc", itertools.pairwise("abxc"))
    known = {"a": 1.05, "b": 1.05, "ab": 0.6, "c": 1.1}
    model.learn(sets(*known), np.array(list(known.values())), 1e-4)
    assert model.foretold(sets(*known)) == pytest.approx(list(known.values()), abs=2e-3)
    assert model.foretold(sets("abc", "")) == pytest.approx([0.7, 1.0], abs=2e-3)


def test_what_was_not_measured_is_doubted() -> None:
    model = LatencyModel("ab", [("a", "b")])
    before = model.promised(sets("a"))[0]
    model.learn(sets("a"), np.array([0.9]), 1e-4)
    assert before < 0.5 and model.promised(sets("a"))[0] == pytest.approx(0.9, abs=1e-3)
    assert model.promised(sets("b"))[0] < model.foretold(sets("b"))[0] - 0.5


def test_only_what_promises_a_gain_and_was_not_seen_is_named_the_best_first() -> None:
    model = LatencyModel("abcd", [])
    model.learn(sets("a", "b", "c", "d"), np.array([0.9, 0.8, 1.2, 0.99]), 1e-4)
    wanted = model.promising(sets("", "b"), sets("a", "b", "ab"), 9, below=0.95)
    assert wanted[:2] == sets("abd", "bd") and set(wanted[2:]) == set(sets("abcd", "ad", "abc"))
    assert model.promising(sets("", "b"), sets("a", "b", "ab"), 1, below=0.95) == wanted[:1]
    assert model.promising(sets("b"), [], 2, below=0.5) == []
    assert frozenset() not in model.promising(sets("a"), [], 99, below=2.0)


def test_one_group_without_borders_is_enough() -> None:
    model = LatencyModel(["only"], [])
    model.learn([frozenset(["only"])], np.array([0.5]), 0.01)
    assert model.foretold([frozenset(["only"])]) == pytest.approx([0.5], abs=0.01)


def test_the_best_of_256_sets_is_nearly_found_from_two_dozen() -> None:
    """Groups that gain or lose, borders that cost; noise of 0.3%. The best of all sets is found by trying all."""
    found = []
    for seed in range(20):
        generator, names = np.random.default_rng(seed), "abcdefgh"
        adds = dict(
            zip(names, np.where(generator.random(8) < 0.5, generator.normal(-0.07, 0.03, 8), generator.normal(0.03, 0.03, 8)), strict=True)
        )
        borders = [*itertools.pairwise(names), ("a", "e"), ("b", "g")]
        costs = dict(zip(borders, np.abs(generator.normal(0.03, 0.02, len(borders))), strict=True))

        def latency(one: Groups, adds: dict = adds, costs: dict = costs) -> float:  # type: ignore[type-arg]
            return float(1 + sum(adds[name] for name in one) + sum(cost for (a, b), cost in costs.items() if (a in one) != (b in one)))

        every = [frozenset(some) for size in range(9) for some in itertools.combinations(names, size)]
        model, seen = LatencyModel(names, borders), list[Groups]()
        wanted = [frozenset(names), *(frozenset(name) for name in names)]
        while wanted and len(seen) < 24:
            model.learn(wanted, np.array([latency(one) * generator.normal(1, 0.003) for one in wanted]), 0.005)
            seen += wanted
            best = seen[int(model.foretold(seen).argmin())]
            wanted = model.promising([best, frozenset()], seen, 4, below=0.99 * min(1.0, float(model.foretold([best])[0])))
        found.append(min(1.0, latency(best)) / min(map(latency, every)))
    assert np.mean(found) < 1.005 and max(found) < 1.03
