"""Confidence: from tokens to signals, from signals to the chance of being right."""

from __future__ import annotations

import math
import timeit
from typing import Any

import pytest
from pydantic import ValidationError

from app.confidence import Calibration, Score, Signals, approval, checking, signals
from app.types import Candidate, Token

SIGNALS = Signals(-0.5, -2.0, 1.0, 3.0, 12)


def token(logprob: float | None, entropy: tuple[float, float] | None = None) -> Token:
    return Token(1, logprob=logprob, entropy=entropy)


def score(**changes: Any) -> Score:
    fields: dict[str, Any] = {
        "features": ("mean_logprob", "log_tokens"),
        "means": (-1.0, math.log(12)),
        "scales": (0.5, 1.0),
        "weights": (2.0, 7.0),
        "bias": 0.5,
        "seen": (-4.0, 4.0),
        "answers": 100,
        "right": 40,
    }
    return Score(**(fields | changes))


def calibration(**changes: Any) -> Calibration:
    fields: dict[str, Any] = {
        "model": "small",
        "tasks": ("squad",),
        "prompts_sha256": "0" * 64,
        "seed": 0,
        "max_tokens": 64,
        "whole": score(),
    }
    return Calibration(**(fields | changes))


def test_signals_are_means_and_extremes() -> None:
    found = signals([token(-0.5, (1.0, 1.5)), token(-2.5, (3.0, 3.0))], self_check=0.25)
    assert found == Signals(-1.5, -2.5, 2.0, 3.0, 2, 0.25)
    assert found.raw == pytest.approx(math.exp(-1.5))


def test_a_token_without_a_log_probability_tells_nothing() -> None:
    assert signals([]) is None
    assert signals([token(-1.0), token(None)]) is None


def test_an_entropy_that_some_lack_is_none() -> None:
    found = signals([token(-1.0, (1.0, 1.0)), token(-1.0)])
    assert found is not None and found.mean_entropy is None and found.max_entropy is None


def test_what_is_infinite_is_bounded() -> None:
    found = signals([token(-math.inf, (math.inf, math.inf)), token(-1.0, (1.0, 1.0))])
    assert found == Signals(-100.0, -100.0, 64.0, 64.0, 2)


def test_the_chance_is_the_logit_s_by_temperature() -> None:
    logit = 0.5 + 2.0 * (-0.5 + 1.0) / 0.5
    assert score().probability(SIGNALS) == pytest.approx(1 / (1 + math.exp(-logit)))
    assert score(temperature=2.0).probability(SIGNALS) == pytest.approx(
        1 / (1 + math.exp(-logit / 2))
    )


def test_no_answer_is_promised_more_than_those_seen() -> None:
    sure, lost = Signals(0.0, 0.0, 0.0, 0.0, 900), Signals(-100.0, -100.0, 60.0, 60.0, 1)
    assert score().probability(sure) == pytest.approx(1 / (1 + math.exp(-4)))
    assert score().probability(lost) == pytest.approx(1 / (1 + math.exp(4)))


@pytest.mark.parametrize(
    ("mean", "chance"),
    [(-2.0, 0.1), (-1.5, 0.1), (-1.125, 0.2), (-1.0, 0.3), (-0.75, 0.5), (-0.5, 0.7), (0, 0.7)],
)
def test_isotonic_steps_are_joined_by_lines(mean: float, chance: float) -> None:
    # The logit is 4 * mean + 4.5 of answers of 12 tokens.
    steps = ((-0.5, 0.1), (0.5, 0.3), (2.5, 0.7))
    found = score(steps=steps).probability(Signals(mean, mean, None, None, 12))
    assert found == pytest.approx(chance)


def test_a_missing_feature_is_named() -> None:
    with pytest.raises(ValueError, match="without mean_entropy"):
        score(features=("mean_entropy", "log_tokens")).probability(Signals(-1, -1, None, None, 3))


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": (1.0,)},
        {"features": ("log_tokens", "log_tokens")},
        {"scales": (0.0, 1.0)},
        {"temperature": 0.0},
        {"bias": math.nan},
        {"seen": (1.0, -1.0)},
        {"right": 101},
        {"steps": ((0.0, 0.5), (1.0, 0.4))},
        {"steps": ((1.0, 0.5), (1.0, 0.6))},
        {"steps": ((0.0, 1.5),)},
        {"features": ("mean_logprob", "weather")},
        {"odd": 1},
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        score(**changes)


def test_each_checkpoint_has_its_own_score() -> None:
    early, checked = score(bias=-1.0), score(features=("mean_logprob", "self_check"))
    known = calibration(at={16: score(bias=3.0), 8: early}, checked=checked)
    assert known.checkpoints == (8, 16)
    assert known.probability(SIGNALS, 8) == early.probability(SIGNALS)
    assert known.probability(SIGNALS) == score().probability(SIGNALS)
    judged = Signals(-0.5, -2.0, 1.0, 3.0, 12, self_check=0.9)
    assert known.probability(judged) == checked.probability(judged)
    assert calibration().probability(judged) == score().probability(judged)
    with pytest.raises(ValueError, match="12 tokens are no checkpoint of small; there are: 8, 16"):
        known.probability(SIGNALS, 12)


def test_it_says_whether_it_wants_entropy() -> None:
    wants = score(features=("mean_logprob", "max_entropy"))
    assert not calibration(at={8: score()}).entropy
    assert calibration(at={8: wants}).entropy
    assert calibration(checked=wants).entropy


def test_a_self_check_is_a_feature_of_checked_alone() -> None:
    judged = score(features=("mean_logprob", "self_check"))
    with pytest.raises(ValidationError, match="self_check"):
        calibration(whole=judged)
    with pytest.raises(ValidationError, match="self_check"):
        calibration(at={8: judged})


def test_a_verdict_is_the_chance_of_yes_beside_no() -> None:
    said = {b"Yes": 0.3, b" yes": 0.1, b"No": 0.1, b"Maybe": 0.5}
    top = tuple(Candidate(n, piece, math.log(p)) for n, (piece, p) in enumerate(said.items()))
    assert approval(Token(0, top=top)) == pytest.approx(0.8)
    assert approval(Token(0, top=top[3:])) is None


def test_a_model_is_asked_about_its_own_answer() -> None:
    asked = {"role": "user", "content": "2 + 2?"}
    first, answer, question = checking([asked], "4")
    assert (first, answer) == (asked, {"role": "assistant", "content": "4"})
    assert question["role"] == "user" and "Yes or No" in question["content"]


def test_it_lasts_on_disk() -> None:
    known = calibration(at={8: score(steps=((0.0, 0.2), (1.0, 0.4)))}, held_out={"ece": 0.03})
    assert Calibration.model_validate_json(known.model_dump_json()) == known


def test_a_check_is_cheap() -> None:
    tokens = [token(-0.1 * (n % 7), (0.5, 0.5)) for n in range(64)]
    steps = tuple((n / 50 - 2, n / 200) for n in range(200))
    features = ("mean_logprob", "min_logprob", "mean_entropy", "max_entropy", "log_tokens")
    five = {"means": (0.0,) * 5, "scales": (1.0,) * 5, "weights": (0.1,) * 5}
    known = calibration(at={64: score(features=features, steps=steps, **five)})

    def check() -> None:
        found = signals(tokens)
        assert found is not None
        known.probability(found, 64)

    # Its best of many, since others use the machine too.
    assert min(timeit.repeat(check, number=10, repeat=50)) / 10 < 100e-6


def test_caution_lowers_what_is_said_of_unfinished_answers_alone() -> None:
    plain = calibration(at={8: score(features=("mean_logprob",), **ONE)})
    careful = plain.model_copy(update={"caution": 0.7})
    before, after = (known.probability(SIGNALS, 8) for known in (plain, careful))
    assert math.log(after / (1 - after)) == pytest.approx(math.log(before / (1 - before)) - 0.7)
    assert plain.probability(SIGNALS) == careful.probability(SIGNALS)
    with pytest.raises(ValidationError, match="caution"):
        calibration(caution=-0.1)


ONE = {"means": (-1.0,), "scales": (0.5,), "weights": (2.0,)}
