"""What a request may ask of its prompt, what is promised of it, and in which pieces it comes."""

from __future__ import annotations

from typing import Any

import pytest

from app.nets.route import Route
from app.vllm_plugins import asks
from app.vllm_plugins.predictions import LEAST, Ask, Cost, Desk, Job, Piece, Span, span

ABLE = asks.Predicting({"layers-20": 0.7, "layers-10": 0.4})
COST = Cost(run=0.5, share=0.6)


def shown(id: int) -> bytes:
    return b" %d" % id if id else b"\n\n"


@pytest.mark.parametrize(
    ("given", "ask"),
    [
        (None, None),
        ({}, None),
        ({"theirs": 1}, None),
        ({asks.KV: "layers-10"}, Ask("layers-10")),
        (
            {
                asks.KV: "x",
                asks.KV_LAST: 3,
                asks.KV_FIRST: 2,
                asks.KV_RELEVANT: 1,
                asks.KV_CALL: "c",
            },
            Ask("x", 3, 2, 1.0, "c"),
        ),
    ],
)
def test_asks_are_read(given: dict[str, Any] | None, ask: Ask | None) -> None:
    assert Ask.read(given) == ask


@pytest.mark.parametrize(
    "given",
    [
        {asks.KV: 3},
        {asks.KV_LAST: 3},
        {asks.KV: "x", asks.KV_LAST: 0},
        {asks.KV: "x", asks.KV_LAST: True},
        {asks.KV: "x", asks.KV_LAST: 1.5},
        {asks.KV: "x", asks.KV_FIRST: -1},
        {asks.KV: "x", asks.KV_FIRST: 2**31},
        {asks.KV: "x", asks.KV_RELEVANT: True},
        {asks.KV: "x", asks.KV_RELEVANT: "0.1"},
        {asks.KV: "x", asks.KV_RELEVANT: 1.1},
        {asks.KV: "x", asks.KV_RELEVANT: -0.1},
        {asks.KV: "x", asks.KV_CALL: ""},
        {asks.KV: "x", asks.KV_CALL: "c" * 129},
    ],
    ids=str,
)
def test_malformed_asks_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="farthing_kv"):
        Ask.read(given)


@pytest.mark.parametrize("salt", [None, "", 3, "other", "kvp", "kvp:", " kvp:x"])
def test_there_is_no_prediction_without_a_salt_of_its_own(salt: object) -> None:
    """Else whoever has the same prompt would go on from what was predicted."""
    for predictor in ("layers-10", asks.EXACT):
        assert "cache_salt" in (Ask(predictor).problem(ABLE, salt) or "")
    assert Desk(ABLE, {}, 99, shown).ask({asks.KV: "layers-10"}, salt) is None


def test_only_predictors_that_are_there() -> None:
    assert Ask("layers-10").problem(ABLE, "kvp:x") is None
    assert Ask(asks.EXACT).problem(ABLE, "kvp:x") is None
    assert "layers-20, layers-10, exact" in (Ask("layers-3").problem(ABLE, "kvp:x") or "")
    desk = Desk(ABLE, {}, 99, shown)
    assert desk.ask({asks.KV: "layers-10"}, "kvp:x") == Ask("layers-10")
    assert desk.ask({asks.KV: "layers-3"}, "kvp:x") is None
    assert desk.ask({asks.KV: 1}, "kvp:x") is None


@pytest.mark.parametrize(
    ("ask", "prompt", "cached", "found"),
    [
        (Ask("p"), 200, 0, Span(0, 199, 199)),
        (Ask("p", last=50), 200, 0, Span(0, 150, 150)),
        (Ask("p", first=20), 200, 0, Span(0, 199, 179)),
        (Ask("p", first=20, relevant=0.1), 200, 0, Span(0, 199, 162)),
        (Ask("p"), 200, 64, Span(64, 199, 135)),
        (Ask("p", first=20), 200, 64, Span(64, 199, 135)),
        (Ask("p", last=200), 200, 0, None),
        (Ask("p", last=999), 200, 0, None),
        (Ask("p"), LEAST, 0, None),
        (Ask("p"), LEAST + 1, 0, Span(0, LEAST, LEAST)),
        # The first layers read all of the prompt: to compute the rest is less work.
        (Ask("p"), 200, 96, None),
        # Nothing would be left to predict, or hardly anything be saved.
        (Ask("p", first=199), 200, 0, None),
        (Ask("p", relevant=1.0), 200, 0, None),
        (Ask("p", first=180), 200, 0, Span(0, 199, 19)),
        (Ask("p", first=180), 200, 32, None),
    ],
)
def test_what_is_put_in_place(ask: Ask, prompt: int, cached: int, found: Span | None) -> None:
    assert span(ask, prompt, cached, COST) == found


def test_all_layers_are_run_wherever_they_are_asked_for() -> None:
    assert span(Ask(asks.EXACT), 200, 160, None) == Span(160, 199, 0)
    assert span(Ask(asks.EXACT), 200, 192, None) is None


def pieces(found: Span, budget: int, turns: tuple[int, ...]) -> list[Piece]:
    job = Job("r", range(found.end), [], found, "p", Route(turns))
    made = []
    while not job.done:
        made.append(job.piece(budget))
        job.at = made[-1].end
    return made


def test_a_prompt_comes_in_pieces_of_a_step_each() -> None:
    whole = [Piece(0, 4, False), Piece(4, 8, False), Piece(8, 10, False)]
    assert pieces(Span(0, 10, 10), 4, (0, 10)) == whole
    # The layers have no cache of their own: what is cached is run all the same.
    assert pieces(Span(5, 10, 5), 4, (0, 10)) == whole
    assert pieces(Span(5, 10, 5), 4, (3, 10)) == whole  # of true ones that are cached none is left
    assert pieces(Span(0, 10, 5), 4, (5, 10)) == [
        Piece(0, 4, True),
        Piece(4, 5, True),
        Piece(5, 9, False),
        Piece(9, 10, False),
    ]
    assert pieces(Span(2, 10, 0), 99, ()) == [Piece(0, 10, True)]


def test_what_is_computed_in_the_midst_is_a_piece_of_its_own() -> None:
    assert pieces(Span(0, 10, 7), 4, (1, 5, 7, 10)) == [
        Piece(0, 1, True),
        Piece(1, 5, False),
        Piece(5, 7, True),
        Piece(7, 10, False),
    ]
    # Where it is cached it is run as what is predicted is, but for the beginning.
    assert pieces(Span(8, 10, 2), 99, (1, 5, 7, 10)) == [Piece(0, 10, False)]
    assert pieces(Span(6, 10, 3), 99, (1, 5, 7, 10)) == [
        Piece(0, 1, True),
        Piece(1, 6, False),
        Piece(6, 7, True),
        Piece(7, 10, False),
    ]


@pytest.mark.parametrize(
    ("turns", "start", "at", "seen"),
    [
        ((0, 10), 0, 0, False),
        ((3, 10), 0, 3, False),
        ((3, 5, 7, 10), 0, 3, True),
        ((3, 5, 7, 10), 0, 7, False),
        ((3, 5, 7, 10), 7, 0, False),  # what is computed is cached
        ((3, 8), 0, 3, True),
    ],
)
def test_all_layers_are_kept_for_what_looks_back_at_them(
    turns: tuple[int, ...], start: int, at: int, seen: bool
) -> None:
    job = Job("r", range(10), [], Span(start, 10, 0), "p", Route(turns), at)
    assert job.looked_at is seen


def test_tokens_are_where_their_blocks_are() -> None:
    job = Job("r", range(10), [7, 2, 5], Span(0, 10, 10), "p")
    assert job.slots(2, 9, 4) == [30, 31, 8, 9, 10, 11, 20]


def desk() -> Desk:
    return Desk(ABLE, {"layers-10": COST}, 256, shown)


def test_what_was_promised_is_ordered_once() -> None:
    ours, ask = desk(), Ask("layers-10", last=2, first=8)
    promised = ours.promise("r", ask, 100, 32)
    assert promised == ours.promise("r", ask, 100, 32) == Span(32, 98, 66)
    prompt = list(range(100))
    assert ours.order("r", ask, prompt, [4, 5, 6, 7], 98 - 32) == promised
    found = ours.orders({"over"}, 100)
    assert (found.over, found.budget) == ({"over"}, 156)
    job = Job("r", prompt[:98], [4, 5, 6, 7], promised, "layers-10", Route((8, 98)))
    assert found.new == [job]
    assert ours.orders(set(), 0).new == []
    exact = Ask(asks.EXACT)
    assert ours.order("s", exact, prompt, [], 99) == ours.promise("s", exact, 100, 0)


def test_what_the_end_asks_about_is_computed() -> None:
    """The last paragraph's words stand in one of the four blocks before it."""
    ours, prompt = desk(), [*range(5, 130), 0, 70, 71, *range(200, 208)]
    ask = Ask("layers-10", last=4, first=2, relevant=0.25)
    found = ours.order("r", ask, prompt, [], 132)
    (job,) = ours.orders(set(), 0).new
    assert job.route == Route((2, 64, 96, 126)) and found.predicted == 92


def test_a_full_step_leaves_room_to_get_on() -> None:
    assert desk().orders(set(), 0).budget == 256
    assert desk().orders(set(), 256).budget == 64
    assert Desk(ABLE, {}, 64, shown).orders(set(), 60).budget == LEAST


def test_what_failed_is_computed_until_it_is_over() -> None:
    ours, ask = desk(), Ask("layers-10")
    assert ours.promise("r", ask, 100, 0) is not None
    ours.fail({"r"})
    assert ours.promise("r", ask, 100, 0) is None
    assert ours.promise("s", ask, 100, 0) is not None
    ours.forget("r")
    assert ours.promise("r", ask, 100, 0) is not None
    assert ours.promise("r", None, 100, 0) is None
