"""When a draft ends, what is malformed, and which guesses pass leniently."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.vllm_plugins import asks
from app.vllm_plugins.drafts import Ask, Drafting, entropies, favour, softened

VOCABULARY = 8


class Head:
    """Says what a state's first number is; of the extras it remembers what it was told."""

    def __init__(self, sees: str = "before") -> None:
        self.sees = sees
        self.extras: list[Any] = []

    def __call__(self, states: torch.Tensor, extras: torch.Tensor) -> torch.Tensor:
        self.extras.append(extras.tolist())
        return states[:, 0]

    def probability(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


def distribution(chance: float) -> torch.Tensor:
    """Log-probabilities: of token 0 this one, the others share the rest."""
    rest = (1 - chance) / (VOCABULARY - 1)
    return torch.tensor([chance] + [rest] * (VOCABULARY - 1)).log()


def lengths(
    given: Sequence[Ask],
    chances: Sequence[Sequence[float]],
    longest: int = 4,
    head: Head | None = None,
) -> list[int]:
    """How many guesses each row gets, of which these are the chances: by step, then row."""
    drafting = Drafting(given, longest, torch.ones(len(given), dtype=torch.bool), head)
    for step, row in enumerate(chances):
        logs = torch.stack([distribution(chance) for chance in row])
        states = torch.tensor(row).unsqueeze(1)
        guesses = torch.zeros(len(given), dtype=torch.int32)
        if not drafting.take(states, guesses, logs):
            assert step < longest
            break
    found = drafting.drafts()
    assert all(set(draft) <= {0} for draft in found)
    return [len(draft) for draft in found]


def test_a_request_without_asks_gets_as_many_as_the_server_makes() -> None:
    assert Ask.read(None) == Ask.read({}) == Ask.read({"other": "x"}) == Ask()
    assert lengths([Ask()], [[0.01]] * 9) == [4]


def test_no_row_gets_more_than_it_asks_and_some_get_none() -> None:
    given = [Ask(longest=2), Ask(longest=0), Ask(longest=99), Ask()]
    assert Drafting(given, 4, torch.ones(4, dtype=torch.bool)).longest == 4
    assert lengths(given, [[0.5] * 4] * 9) == [2, 0, 4, 4]
    none = Drafting([Ask(longest=0)], 4, torch.ones(1, dtype=torch.bool))
    assert (none.longest, none.drafts()) == (0, [[]])


def test_it_stops_where_some_guess_is_probably_refused() -> None:
    """The guess at which the level is passed is part of the draft; the product runs."""
    given = [Ask(stop=0.7), Ask(stop=0.3), Ask(stop=1.0), Ask(stop=0.0)]
    assert lengths(given, [[0.6] * 4] * 9) == [3, 1, 4, 1]  # .6, .36, .216
    assert lengths([Ask(stop=0.7)], [[0.99], [0.99], [0.1], [0.99]]) == [3]


def test_a_guess_less_likely_than_the_level_ends_a_draft() -> None:
    given = [Ask(confidence=0.5), Ask(confidence=0.5, longest=1)]
    assert lengths(given, [[0.6, 0.6], [0.6, 0.9], [0.4, 0.9], [0.9, 0.9]]) == [3, 1]


def test_rows_that_go_on_are_not_held_up() -> None:
    given = [Ask(stop=0.3), Ask(stop=0.3)]
    assert lengths(given, [[0.5, 1.0], [1.0, 1.0], [1.0, 0.5], [1.0, 1.0]]) == [1, 3]


def test_the_head_is_asked_for_the_state_that_the_guess_came_from() -> None:
    head = Head()
    states = [[0.9], [0.9], [0.2], [0.9]]  # the head's word, and the draft's own too
    assert lengths([Ask(stop=0.7)], states, head=head) == [3]
    ((log_q, entropy, greedy),) = head.extras[0]
    assert log_q == pytest.approx(math.log(0.9))
    expected = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1 / 7))
    assert (entropy, greedy) == (pytest.approx(expected), 1.0)


def test_a_head_that_sees_the_state_after_is_one_guess_behind() -> None:
    """SpecDec++: the first state belongs to a token of the answer; the newest guess counts 1."""
    head = Head("after")
    states = [[0.1], [0.9], [0.2], [0.9], [0.9]]
    assert lengths([Ask(stop=0.7)], states, longest=5, head=head) == [3]
    assert len(head.extras) == 2
    assert head.extras[0][0][0] == pytest.approx(math.log(0.1))  # of the guess that is judged


def test_without_levels_nothing_is_weighed() -> None:
    head = Head()
    drafting = Drafting([Ask()], 3, torch.ones(1, dtype=torch.bool), head)
    assert not drafting.weighs
    guesses = torch.tensor([3])
    assert drafting.take(torch.zeros(1, 1), guesses, None)
    assert (head.extras, drafting.drafts()) == ([], [[3]])


@pytest.mark.parametrize(
    "wrong",
    [
        *({asks.SPEC_K: value} for value in (-1, 1.0, "3", True, 10**9, [3])),
        *({asks.SPEC_STOP: value} for value in (-0.1, 1.1, "0.5", True, math.nan, math.inf)),
        *({asks.SPEC_CONFIDENCE: value} for value in (2, "x")),
        *({asks.SPEC_LENIENCE: value} for value in (0, 0.0, 0.0009, -0.5, 1.01, "1")),
    ],
    ids=str,
)
def test_what_is_malformed_is_named_and_where_it_slips_in_is_nothing(wrong: dict[str, Any]) -> None:
    ((name, _),) = wrong.items()
    with pytest.raises(ValueError, match=name):
        Ask.read(wrong)
    assert Ask.lenient_read(wrong) == Ask()


def test_asks_are_read() -> None:
    given = {asks.SPEC_K: 0, asks.SPEC_STOP: 1, asks.SPEC_CONFIDENCE: 0, asks.SPEC_LENIENCE: 0.5}
    assert Ask.read(given) == Ask(0, 1.0, 0.0, 0.5)


def test_entropies_are_in_nats_and_know_impossible_tokens() -> None:
    rows = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]).log()
    assert entropies(rows).tolist() == pytest.approx([math.log(2), 0.0])


def test_drawn_guesses_pass_by_p_over_epsilon_q() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    kept = probs.clone()
    guesses = torch.tensor([1, 2], dtype=torch.int32)
    found = softened(probs, guesses, torch.tensor([0.5, 1.0]), 3)
    assert found.tolist() == [pytest.approx([0.5, 0.15, 0.2]), pytest.approx([0.1, 0.1, 0.8])]
    assert torch.equal(probs, kept)
    sure = softened(None, guesses, torch.tensor([0.5, 1.0]), 3)
    assert sure.tolist() == [[0.0, 0.5, 0.0], [0.0, 0.0, 1.0]]


@given(
    st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    st.integers(0, 2),
    st.floats(0.01, 1.0),
    st.booleans(),
)
def test_greedily_a_guess_passes_with_a_probability_near_enough_the_best(
    row: list[float], guess: int, lenience: float, greedy: bool
) -> None:
    logits = torch.tensor([row])
    probs = logits.double().softmax(-1)[0]
    best, own = float(probs.max()), float(probs[guess])
    changed = favour(
        logits.clone(), torch.tensor([guess]), torch.tensor([lenience]), torch.tensor([greedy])
    )
    if abs(own - lenience * best) < 1e-6 * best:
        return  # in float32 it may fall to either side
    passes = greedy and lenience < 1 and own >= lenience * best
    assert (int(changed.argmax()) == guess) == (passes or int(logits.argmax()) == guess)
    if not passes:
        assert torch.equal(changed, logits)
