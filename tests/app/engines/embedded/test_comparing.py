"""What policies compare answers by, of an engine's own numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.types import Sampling
from policies.answers.asking import read
from policies.answers.comparing import likelihood, preference
from tests.app.engines.embedded.tiny_engine import CALL, Start


async def test_an_answer_is_as_likely_when_it_is_read_as_when_it_was_written(start: Start) -> None:
    engine = await start()
    asked = replace(CALL, sampling=Sampling(temperature=0, logprobs=0))
    reply = await read(asked, engine)
    assert await likelihood(reply, asked, engine) == pytest.approx(reply.mean_logprob, abs=1e-3)
    other = replace(asked, messages=({"role": "user", "content": "Count from one to ten."},))
    assert await likelihood(reply, other, engine) != pytest.approx(reply.mean_logprob, abs=1e-2)


async def test_a_preference_is_the_other_way_round_for_answers_that_change_places(
    start: Start,
) -> None:
    engine = await start()
    there = await preference(CALL.messages, "the sea", "a hill", CALL, engine)
    back = await preference(CALL.messages, "a hill", "the sea", CALL, engine)
    assert 0 < there < 1 and there + back == pytest.approx(1)
