"""Which of two answers is better, and by how much, as a model has it."""

import math

import pytest

from app.budget import Meter
from app.types import Candidate, Sampling, Token
from policies.answers.comparing import beside, log_odds, preference
from tests.policies.scripts import call, fleet
from tests.policies.talkers import FIRST, talker


async def test_what_the_model_never_says_is_as_unlikely_as_the_least_likely():
    top = (Candidate(1, b"A", -1.0), Candidate(2, b"x", -3.0))
    assert log_odds(Token(1, b"A", -1.0, top), "B", "A") == pytest.approx(-2.0)
    assert log_odds(Token(2, b"x", -3.0, top[1:]), "B", "A") == 0.0
    assert log_odds(Token(1, b"A", -1.0), "B", "A") == 0.0  # nothing to hold against it
    sure = (Candidate(1, b"A", 0.0), Candidate(2, b" B", -math.inf))
    assert log_odds(Token(1, b"A", 0.0, sure), "A", "B") == 30.0


async def test_a_preference_is_asked_in_both_orders_for_one_token():
    fake = talker(FIRST, likes={"x {y}": 0.0, "z": 1.0})
    async with Meter(fake, fleet().prices()) as meter:
        liked = await preference(call("small").messages, "x {y}", "z", call("small"), meter)
    assert liked == pytest.approx(1 / (1 + math.exp(-1)))
    assert [one.max_tokens for one in fake.calls] == [1, 1]
    assert [one.sampling for one in fake.calls] == [Sampling(temperature=0, logprobs=20)] * 2


def test_words_beside_a_conversation_keep_its_speakers_in_turn():
    said = ({"role": "user", "content": "a"},)
    assert beside(said, "b") == ({"role": "user", "content": "a\n\nb"},)
    answered = (*said, {"role": "assistant", "content": "c"})
    assert beside(answered, "b") == (*answered, {"role": "user", "content": "b"})
