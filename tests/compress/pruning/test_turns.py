import threading

import pytest

from compress.pruning.turns import Abandoned, Turns


def test_each_goes_on_until_it_waits_one_at_a_time() -> None:
    said: list[str] = []

    def say(*words: str) -> None:
        for word in words[:-1]:
            said.append(f"{word}{turns.current}")
            turns.wait()
        said.append(f"{words[-1]}{turns.current}")

    turns = Turns([lambda: say("a", "b", "c"), lambda: say("a", "b")])
    with turns:
        assert [turns.round(), [*said]] == [True, ["a0", "a1"]]
        assert [turns.round(), said[2:]] == [True, ["b0", "b1"]]
        assert [turns.round(), said[4:]] == [False, ["c0"]]


def test_what_still_waits_at_the_end_is_abandoned_and_no_thread_is_left() -> None:
    ended: list[str] = []

    def endless() -> None:
        try:
            while True:
                turns.wait()
        except Abandoned:
            ended.append("abandoned")
            raise

    before = threading.active_count()
    turns = Turns([endless, endless])
    with turns:
        assert turns.round()
        assert turns.round()
    assert ended == ["abandoned", "abandoned"]
    assert threading.active_count() == before


def test_what_one_of_them_raises_is_raised_and_the_others_are_abandoned() -> None:
    def fails() -> None:
        turns.wait()
        raise ValueError("no")

    before = threading.active_count()
    turns = Turns([turns_wait := lambda: turns.wait(), fails, turns_wait])
    with pytest.raises(ValueError, match="no"), turns:
        turns.round()
        turns.round()
    assert threading.active_count() == before


def test_what_never_had_a_turn_does_not_begin() -> None:
    began: list[int] = []
    with Turns([lambda: began.append(1)]):
        pass
    assert began == []
