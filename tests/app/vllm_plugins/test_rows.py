"""Entropies, and stopping by them, agree with what the embedded engine does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engines.embedded.sequence import EntropyWatch
from app.types import EntropyStop
from app.vllm_plugins import asks
from app.vllm_plugins.rows import Ask, EntropyRows, Row, entropies

VOCABULARY = 64
STOP = 60

ONE_WAY, SWAP = SimpleNamespace(name="UNIDIRECTIONAL"), SimpleNamespace(name="SWAP")


@dataclass
class Change:
    removed: Sequence[int] = ()
    added: Sequence[tuple[int, Any, Any, Sequence[int]]] = ()
    moved: Sequence[tuple[int, int, Any]] = ()


def batch(*given: tuple[Ask | None, list[int]]) -> EntropyRows:
    """Rows of these asks and answers; an ask is its own parameters."""
    rows = EntropyRows()
    update(rows, added=[(row, ask, None, answer) for row, (ask, answer) in enumerate(given)])
    return rows


def update(rows: EntropyRows, **change: Any) -> None:
    rows.update(Change(**change), lambda ask: ask)


def logits(height: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(height, VOCABULARY, generator=generator) * spread


def sure(*bits: float) -> torch.Tensor:
    """Rows of exactly these entropies: that many bits of equally likely tokens."""
    made = torch.full((len(bits), VOCABULARY), -math.inf)
    for row, amount in enumerate(bits):
        made[row, : round(2**amount)] = 1.0
    return made


def stop(level: float, **keys: Any) -> Ask:
    return Ask(call=keys.pop("call", "c"), level=level, stop_id=STOP, **keys)


def exact(row: torch.Tensor) -> float:
    p = torch.softmax(row.double(), -1)
    return float(-(p * p.log2()).nansum())


def test_entropies_are_exact_and_in_bits() -> None:
    rows = torch.cat([logits(20, spread=s) for s in (0.1, 1.0, 10.0, 50.0)])
    assert entropies(rows).tolist() == pytest.approx([exact(row) for row in rows], abs=2e-6)
    assert entropies(sure(0, 1, 2, 5)).tolist() == pytest.approx([0, 1, 2, 5], abs=1e-6)


def test_entropies_of_half_precision_are_computed_in_full() -> None:
    rows = logits(4).half()
    assert entropies(rows).tolist() == pytest.approx([exact(row) for row in rows], abs=2e-6)


def test_who_asks_is_reported_and_nobody_else() -> None:
    rows = batch((Ask("a"), []), (None, []), (Ask("b"), [5, 6]), (stop(99.0, call=None), []))
    table = logits(4)
    before = table.clone()
    assert len(rows) == 3
    told = rows.apply(table)
    assert [(seen.call, seen.token, seen.mean) for seen in told] == [("a", 0, None), ("b", 2, None)]
    expected = [exact(before[0]), exact(before[2])]
    assert [seen.bits for seen in told] == pytest.approx(expected, abs=2e-6)
    assert torch.equal(table[:3], before[:3])


def test_an_asked_row_cannot_write_the_stop_token_by_itself() -> None:
    rows = batch((stop(99.0), []), (None, []))
    table = torch.zeros(2, VOCABULARY)
    rows.apply(table)
    assert table[0, STOP] == -math.inf
    assert table[0].isfinite().sum() == VOCABULARY - 1
    assert torch.equal(table[1], torch.zeros(VOCABULARY))


def test_at_the_crossing_only_the_stop_token_is_left() -> None:
    rows = batch((stop(4.0, window=1), []), (stop(4.0, window=1, call="d"), []), (None, []))
    table = torch.cat([sure(3, 5), torch.zeros(1, VOCABULARY)])
    told = rows.apply(table)
    assert [(seen.call, round(seen.bits, 4), seen.mean) for seen in told] == [
        ("c", 3.0, None),
        ("d", 5.0, pytest.approx(5.0)),
    ]
    assert table.argmax(-1).tolist() == [0, STOP, 0]
    assert table[1].isfinite().nonzero().flatten().tolist() == [STOP]
    assert torch.softmax(table[1], -1)[STOP] == 1


rules = st.builds(
    EntropyStop,
    level=st.integers(0, 6).map(float),
    rising=st.booleans(),
    window=st.integers(1, 5),
    after=st.integers(0, 9),
)


@given(rules, st.lists(st.integers(0, 5).map(float), min_size=1, max_size=25))
def test_it_stops_where_the_embedded_engine_does(rule: EntropyStop, bits: list[float]) -> None:
    watch = EntropyWatch(rule)
    expected = next((i for i, amount in enumerate(bits) if watch.crossed(amount)), None)
    answer: list[int] = []
    ask = stop(rule.level, rising=rule.rising, window=rule.window, after=rule.after)
    row = Row(ask, answer)
    means = [row.see(token, amount) for token, amount in enumerate(bits)]
    assert next((i for i, mean in enumerate(means) if mean is not None), None) == expected
    if expected is not None:
        mean = sum(bits[expected + 1 - rule.window : expected + 1]) / rule.window
        assert means[expected] == mean


@given(st.lists(st.integers(0, 5).map(float), min_size=3, max_size=20), st.data())
def test_a_step_whose_draw_was_thrown_away_counts_once(bits: list[float], data: Any) -> None:
    again = data.draw(st.integers(0, len(bits) - 1))
    ask = stop(2.5, window=3)
    plain, twice = Row(ask, []), Row(ask, [])
    expected = [plain.see(token, amount) for token, amount in enumerate(bits)]
    told = []
    for token, amount in enumerate(bits):
        if token == again:
            twice.see(token, 5.0)
            twice.see(token, 0.0)
        told.append(twice.see(token, amount))
    assert told == expected


def test_a_call_that_comes_back_begins_its_window_anew() -> None:
    ask = stop(4.0, window=2, after=4)
    row = Row(ask, [])
    assert [row.see(token, 9.0) for token in (0, 1)] == [None, None]
    resumed = Row(ask, [1, 2, 3])  # preempted, and put into the batch again
    assert [resumed.see(token, 9.0) for token in (3, 4)] == [None, 9.0]
    assert [row.see(token, 9.0) for token in (5, 6)] == [None, 9.0]  # steps were missed
    assert [row.see(token, 9.0) for token in (4, 5)] == [None, 9.0]  # tokens were taken back


def test_rows_follow_the_batch() -> None:
    rows = batch((Ask("a"), []), (Ask("b"), []), (Ask("c"), []), (None, []))

    def told(height: int) -> list[str]:
        order = rows.apply(logits(height))
        return [seen.call for seen in order]

    assert told(4) == ["a", "b", "c"]
    update(rows, moved=[(0, 2, SWAP)])
    assert told(4) == ["c", "b", "a"]
    update(rows, moved=[(1, 3, SWAP)])
    assert told(4) == ["c", "a", "b"]
    update(rows, removed=[0], moved=[(3, 0, ONE_WAY)])
    assert told(3) == ["b", "a"]
    update(rows, added=[(0, None, None, []), (1, Ask("d"), None, [])])
    assert told(3) == ["d", "a"]
    update(rows, removed=[1, 2])
    assert len(rows) == 0
    rows.update(None, lambda ask: ask)


def test_a_window_moves_with_its_row() -> None:
    rows = batch((stop(4.0, window=2), answer := []), (None, []))
    assert rows.apply(sure(5, 0))[0].mean is None
    answer.append(1)
    update(rows, moved=[(0, 1, SWAP)])
    assert rows.apply(sure(0, 5))[0].mean == pytest.approx(5.0)


def test_the_whole_batch_and_a_part_of_it_are_seen_alike() -> None:
    table = logits(3)
    whole = batch((Ask("a"), []), (Ask("b"), []), (Ask("c"), [])).apply(table.clone())
    part = batch((Ask("a"), []), (None, []), (Ask("c"), [])).apply(table.clone())
    assert [whole[0], whole[2]] == part


def test_a_stop_token_outside_the_vocabulary_never_stops() -> None:
    rows = batch((Ask("c", 0.0, True, 1, 0, VOCABULARY), []))
    table = torch.zeros(1, VOCABULARY)
    (seen,) = rows.apply(table)
    assert seen.bits == pytest.approx(6.0)
    assert seen.mean is None
    assert torch.equal(table, torch.zeros(1, VOCABULARY))


def test_rows_that_are_not_in_the_logits_are_left_out() -> None:
    rows = batch((Ask("a"), []), (Ask("b"), []))
    assert [seen.call for seen in rows.apply(logits(1))] == ["a"]
    assert [seen.call for seen in rows.apply(logits(2))] == ["a", "b"]


def test_a_row_without_a_distribution_is_not_reported() -> None:
    rows = batch((stop(0.0, window=1), []), (Ask("b"), []))
    table = logits(2)
    table[0, 3] = math.nan
    assert [seen.call for seen in rows.apply(table)] == ["b"]


GIVEN = {
    asks.CALL: "c",
    asks.LEVEL: 2.5,
    asks.RISING: 0,
    asks.WINDOW: 5,
    asks.AFTER: 3,
    asks.STOP_ID: 7,
}


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in GIVEN.items() if name not in names}


@pytest.mark.parametrize(
    ("given_", "ask"),
    [
        (None, None),
        ({}, None),
        ({"spec_k": 3}, None),
        ({asks.CALL: "c"}, Ask("c")),
        (GIVEN, Ask("c", 2.5, False, 5, 3, 7)),
        (without(asks.CALL, asks.AFTER) | {asks.LEVEL: 2}, Ask(None, 2.0, False, 5, 0, 7)),
    ],
)
def test_asks_are_read(given_: dict[str, Any] | None, ask: Ask | None) -> None:
    assert Ask.read(given_) == ask


@pytest.mark.parametrize(
    "wrong",
    [
        GIVEN | {asks.CALL: 7},
        GIVEN | {asks.CALL: ""},
        GIVEN | {asks.CALL: "c" * 129},
        GIVEN | {asks.LEVEL: math.nan},
        GIVEN | {asks.LEVEL: math.inf},
        GIVEN | {asks.LEVEL: "2.5"},
        GIVEN | {asks.LEVEL: True},
        GIVEN | {asks.RISING: 2},
        GIVEN | {asks.WINDOW: 0},
        GIVEN | {asks.WINDOW: 2.0},
        GIVEN | {asks.WINDOW: True},
        GIVEN | {asks.WINDOW: 2**31},
        GIVEN | {asks.AFTER: -1},
        GIVEN | {asks.STOP_ID: -1},
        GIVEN | {asks.STOP_ID: [7]},
        without(asks.STOP_ID),
        without(asks.WINDOW),
        without(asks.RISING),
        without(asks.LEVEL),
        {asks.STOP_ID: 7},
        {asks.CALL: "c", asks.AFTER: 7},
    ],
)
def test_malformed_asks_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="farthing_"):
        Ask.read(wrong)
