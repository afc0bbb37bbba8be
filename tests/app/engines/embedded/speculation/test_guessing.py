"""A draft model's cache follows the sequence, and each guess is drawn by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.engines.embedded.model import Span
from app.engines.embedded.sampling import Sampler, distribution
from app.engines.embedded.speculation.guessing import DraftModel, Pen, guess, kind
from app.types import Sampling
from tests.app.engines.embedded.speculation import chi_square
from tests.app.engines.embedded.speculation.chi_square import CHANCE
from tests.app.engines.embedded.speculation.duo import Duo

PROMPT = [10, 20, 30, 40, 50]
GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=2.0, top_p=0.9)


@pytest.fixture
def draft(int8_duo: Duo) -> DraftModel:
    return int8_duo.draft


def pen(draft: DraftModel, tokens: list[int], sampling: Sampling = GREEDY, start: int = 0) -> Pen:
    cache = draft.memory.acquire(tokens[start:], 100)
    assert cache is not None
    return Pen(cache, Sampler(sampling), sampling is not GREEDY, start, tokens)


def logits(draft: DraftModel, tokens: Sequence[int]) -> torch.Tensor:
    """Behind all of these, read at once in a cache of their own, `[vocabulary]`."""
    cache = draft.memory.acquire(tokens, len(tokens))
    assert cache is not None
    hidden = draft.decoder.forward(torch.tensor(tokens), [Span(cache, len(tokens))])
    draft.memory.release(cache, tokens, keep=False)
    return draft.decoder.draft_logits(hidden[-1:])[0]


def greedily(draft: DraftModel, tokens: Sequence[int], count: int) -> list[int]:
    found: list[int] = []
    for _ in range(count):
        found.append(int(logits(draft, [*tokens, *found]).argmax()))
    return found


def ids(pen: Pen) -> list[int]:
    return [made.id for made in pen.guesses]


def guesses(draft: DraftModel, *pens: Pen, count: int) -> None:
    for each in pens:
        each.begin()
    for _ in range(count):
        guess(draft, pens, told=True)


def test_guesses_are_what_the_draft_model_would_write(draft: DraftModel) -> None:
    """Of several sequences at once, each as if alone."""
    pens = [pen(draft, PROMPT), pen(draft, PROMPT[::-1]), pen(draft, [7])]
    guesses(draft, *pens, count=4)
    assert [ids(each) for each in pens] == [greedily(draft, each.tokens, 4) for each in pens]


@pytest.mark.parametrize("kept", range(5))
def test_it_goes_on_from_what_was_kept_of_its_guesses(draft: DraftModel, kept: int) -> None:
    """And from the token that the model wrote behind them: what was read of the others is gone."""
    tokens = list(PROMPT)
    one = pen(draft, tokens)
    for _ in range(5):
        guesses(draft, one, count=4)
        assert ids(one) == greedily(draft, tokens, 4)
        tokens += [*ids(one)[:kept], 99]
        one.settle(kept)
        assert one.cache.length <= len(tokens) - 1


def test_it_catches_up_with_what_others_have_written(draft: DraftModel) -> None:
    tokens = list(PROMPT)
    one = pen(draft, tokens)
    guesses(draft, one, count=2)
    tokens += range(60, 80)
    one.settle(0)
    assert one.pending == one.tokens[one.cache.length :]
    draft.read(one, 8)
    assert one.pending == one.tokens[one.cache.length :]
    guesses(draft, one, count=3)
    assert ids(one) == greedily(draft, one.tokens, 3)


def test_it_may_begin_in_the_middle(draft: DraftModel) -> None:
    one = pen(draft, list(range(60)), start=40)
    guesses(draft, one, count=2)
    assert ids(one) == greedily(draft, one.tokens[40:], 2)
    assert one.read == one.tokens[40:]


def test_it_has_room_for_what_the_cache_holds(draft: DraftModel) -> None:
    """The last guess is never read."""
    one = pen(draft, [1] * 96)
    assert one.room == 5
    guesses(draft, one, count=5)
    assert one.cache.length == one.cache.capacity
    one.settle(0)
    with pytest.raises(ValueError, match="do not fit"):
        guesses(draft, one, count=6)


def test_what_is_told_of_a_guess(draft: DraftModel) -> None:
    """Its probability, and the entropy in nats of what it came from."""
    one = pen(draft, PROMPT)
    guesses(draft, one, count=1)
    likely = torch.softmax(logits(draft, PROMPT).double(), -1)
    made = one.guesses[0]
    assert made.probability == pytest.approx(float(likely.max()), rel=1e-4)
    assert made.entropy == pytest.approx(float(-(likely * likely.log()).sum()), rel=1e-4)


def test_a_drawn_guess_comes_from_what_is_told_of_it(draft: DraftModel) -> None:
    """By the answer's own temperature and filters."""
    one, counts = pen(draft, PROMPT, DRAWN), Counter[int]()
    wanted = distribution(logits(draft, PROMPT).numpy().astype(np.float64), DRAWN)
    wanted /= wanted.sum()
    for _ in range(2000):
        guesses(draft, one, count=1)
        counts[ids(one)[0]] += 1
        q = one.drawn_from[0]
        assert q is not None
        np.testing.assert_allclose(q, wanted, atol=1e-6)
        assert one.guesses[0].probability == q[ids(one)[0]]
        one.cache.truncate(one.cache.length - 1)
    assert chi_square.of(counts, dict(enumerate(wanted.tolist()))) > CHANCE


def test_a_guess_in_place_of_a_refused_one_is_drawn_anew(draft: DraftModel) -> None:
    """With another number. A rule may go by what was guessed in vain; with the number known, how
    many guesses there are would tell which ones, and these would no longer be drawn from q."""
    one, found = pen(draft, PROMPT, replace(DRAWN, temperature=5.0)), set()
    for _ in range(20):
        guesses(draft, one, count=1)
        found.add(ids(one)[0])
        one.cache.truncate(one.cache.length - 1)
    assert len(found) > 1


def test_kinds_of_guesses(draft: DraftModel) -> None:
    """By tenths of what the draft model gives them; drawn ones apart."""
    for sampling, first in ((GREEDY, 0), (DRAWN, 10)):
        one = pen(draft, PROMPT, sampling)
        guesses(draft, one, count=3)
        for place, made in enumerate(one.guesses):
            assert kind(one, place) == first + min(int(made.probability * 10), 9)
