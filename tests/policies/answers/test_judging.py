"""How sure an answer makes its model to be right: when that is asked, and of which tokens."""

import math

import pytest

from app.types import Chunk, Token, Usage
from policies.answers.asking import Reply
from policies.answers.judging import Stage, Trial, checking_reads
from tests.policies.cascades import calibration
from tests.policies.scripts import call, price


def trial(*checkpoints: int) -> Trial:
    stage = Stage("small", price(1, 2), calibration(*checkpoints) if checkpoints else None)
    return Trial(stage, Reply(call("small")))


def tokens(*logprobs: float | None) -> Chunk:
    found = tuple(Token(number, logprob=each) for number, each in enumerate(logprobs))
    return Chunk(tokens=found, model="small", usage=Usage(completion=len(found)))


def test_each_checkpoint_comes_once():
    one, due = trial(2, 4), []
    for _ in range(5):
        one.add(tokens(-1.0))
        due.append(one.due())
        if one.due() is not None:
            one.judge(one.due())
    assert due == [None, 2, None, 4, None]


def test_of_several_that_come_together_the_last_counts_and_no_token_behind_it():
    one = trial(2, 4)
    one.add(tokens(-0.5, -0.5, -0.5, -0.5, -2.0))
    assert one.due() == 4
    one.judge(4)
    assert one.confidence == pytest.approx(0.75) and one.how == "after 4 tokens"
    one.judge(None)
    assert one.confidence == pytest.approx(1 - 4 / 5 / 2) and one.how == "by its whole answer"


@pytest.mark.parametrize(
    ("check", "chance"), [(None, math.exp(-1)), (0.5, (math.exp(-1) + 0.5) / 2)]
)
def test_without_a_calibration_a_whole_answer_alone_is_judged(check, chance):
    one = trial()
    one.add(tokens(-1.0, -1.0))
    one.judge(2)
    assert one.confidence is None
    one.judge(None, check)
    assert one.confidence == pytest.approx(chance) and "uncalibrated" in one.how


def test_without_log_probabilities_nothing_is_known():
    one = trial(2)
    one.add(tokens(-1.0, None))
    one.judge(None)
    assert one.confidence is None and one.how == "without log-probabilities"


def test_what_was_read_and_written_is_counted():
    one = trial()
    one.add(Chunk(usage=Usage(prompt=7)))
    one.add(tokens(-1.0, -1.0))
    one.add(Chunk(finish="stop"))
    assert (one.used, one.tokens, one.over, len(one.chunks)) == (9, 2, True, 3)


def test_a_self_check_reads_prompt_answer_and_question():
    assert checking_reads(100, 40) > 100 + 40 + 2 * 64
