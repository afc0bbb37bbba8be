"""Guessing is left off for sizes of batch in which it is measured to lose, and tried again."""

from __future__ import annotations

from dataclasses import replace

from app.engines.embedded.speculation.goodput import StepCost
from app.engines.embedded.speculation.speculator import Speculator, Step
from app.types import Speculation
from tests.app.engines.embedded.speculation.duo import DRAFT, Duo

ASKED = Speculation(lookup=True)
PROMPT = [1, 2, 3] * 10  # whose repetition look-up goes on with


def step(speculator: Speculator, sequences: int, written: int, times: float) -> None:
    """One with two guesses each, which took so many times as long as one without."""
    plain = speculator.cost.seconds(sequences, 0, 100)
    verifying = speculator.cost.seconds(sequences, 2 * sequences, 100)
    speculator.stepped(Step(sequences, 2 * sequences, 100, written, verifying, times * plain))


def test_a_size_in_which_guesses_lose_goes_without(int8_duo: Duo) -> None:
    speculator = int8_duo.speculator(None)
    weighed, told = (
        int8_duo.sequence(PROMPT, asked) for asked in (ASKED, replace(ASKED, adaptive=False))
    )

    def guesses(batch: int) -> list[int]:
        found = speculator.draft([weighed, told], batch)
        return [len(found[sequence].ids) for sequence in (weighed, told)]

    assert min(guesses(8)) > 0
    for _ in range(60):  # a token each, as without guesses, in twice the time
        step(speculator, 8, written=8, times=2.0)
    losing = guesses(8)
    assert losing[0] == 0 < losing[1]  # who wants no weighing has none
    assert guesses(5)[0] == 0  # a size like it
    assert guesses(1)[0] > 0  # and one that is not
    for _ in range(300):
        step(speculator, 1, written=3, times=1.1)  # some hundred tokens later
    assert guesses(8)[0] > 0, "it is not tried again"


def test_a_size_in_which_guesses_win_keeps_them(int8_duo: Duo) -> None:
    speculator = int8_duo.speculator(None)
    weighed = int8_duo.sequence(PROMPT, ASKED)
    for number in range(200):  # by turns they win and lose; they win more
        step(speculator, 8, written=8 if number % 2 else 16, times=1.3)
        assert speculator.draft([weighed], 8)[weighed].ids


def test_a_draft_model_begins_where_the_batch_stays_as_it_is(int8_duo: Duo) -> None:
    """To read a prompt for a size that passes is for nothing."""
    speculator = int8_duo.speculator(None)
    asking = int8_duo.sequence(PROMPT, Speculation(draft=DRAFT))

    def guessed(batch: int) -> bool:
        return bool(speculator.draft([asking], batch)[asking].ids)

    assert not any(guessed(batch) for batch in (8, 2, 8, 2, 8, 2, 8, 2, 8, 2, 8, 2))
    assert [guessed(8) for _ in range(9)] == [False] * 8 + [True]


def test_of_what_is_never_guessed_the_price_is_looked_up_again(int8_duo: Duo) -> None:
    """Rows that seemed too dear once are not so for ever."""
    speculator = int8_duo.speculator(None)
    speculator.cost = StepCost(1.0, 1.0, 100.0)
    asking = int8_duo.sequence(PROMPT, ASKED)
    for _ in range(256):
        assert not speculator.draft([asking], 1)[asking].ids
        speculator.stepped(Step(1, 0, 30, 1, 1.0, 1.0))
    speculator.stepped(Step(1, 0, 30, 1, 1.0, 1.0))
    assert len(speculator.draft([asking], 1)[asking].ids) == 1
    speculator.stepped(Step(1, 1, 60, 1, 1.0, 1.0))
    assert not speculator.draft([asking], 1)[asking].ids
