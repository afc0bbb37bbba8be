"""Events of a vLLM server become chunks: ids, differences of usage, entropies, and the end."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest

from app.engines.remote.entropy import interval
from app.engines.remote.tokens import Reading, stream
from app.errors import BadRequest, ContextOverflow, EngineError
from app.types import Chunk, Decoding, EntropyStop, Speculation, Token, Usage
from app.vllm_plugins.asks import Report, format_report
from tests.app.engines.remote.toy import (
    END,
    PIECES,
    ToyOrigin,
    answer,
    call,
    choice,
    collected,
    decode,
    event,
    usage,
)

ENTROPY = Decoding(entropy=True)
SPECULATION = Decoding(speculation=Speculation())
DONE = event("[DONE]")
LAST = [event({"choices": [], "usage": usage(3, 2)}), DONE]


async def read(pieces: Iterable[bytes], asked: Any = None, **reading: Any) -> list[Chunk]:
    async def toy_decode(ids: list[int]) -> str:
        return decode(ids)

    async def names(ids: Iterable[int]) -> dict[int, bytes]:
        return {id: PIECES[id] for id in ids}

    origin = ToyOrigin(plays=deque([list(pieces)]))
    found = Reading(**{"vocabulary": 15, "decode": toy_decode, "names": names, **reading})
    try:
        return await collected(stream(origin, {}, asked or call(), {}, found))
    finally:
        assert not origin.open


def tokens(chunks: list[Chunk]) -> list[Token]:
    return [token for chunk in chunks for token in chunk.tokens]


def scored(*likeliest: dict[int, float], drawn: Iterable[float] = ()) -> dict[str, Any]:
    named = [{f"token_id:{id}": logprob for id, logprob in each.items()} for each in likeliest]
    own = list(drawn) or [max(each.values()) for each in likeliest]
    return {"logprobs": {"top_logprobs": named, "token_logprobs": own}}


def one(*ids: int, text: str = "", done: int | None = None, **more: Any) -> bytes:
    found = {"choices": [choice(ids, text or decode(ids), **more)]}
    return event(found if done is None else {**found, "usage": usage(3, done)})


async def test_usage_is_told_as_differences_that_add_up() -> None:
    chunks = await read(answer((0, 1, 2), (0, 1, 0)))
    assert [chunk.usage for chunk in chunks] == [
        Usage(3, 0, 1),
        Usage(0, 0, 1),
        Usage(0, 0, 1),
        Usage(0, 0, 0),
    ]
    assert [token.id for token in tokens(chunks)] == [0, 1, 0]
    assert chunks[-1].finish == "length" and not chunks[-1].tokens


async def test_what_was_cached_may_come_with_the_last_usage() -> None:
    last = event({"choices": [], "usage": usage(3, 1, cached=2)})
    chunks = await read([one(0, done=1, finish_reason="length"), last, DONE])
    assert [chunk.usage for chunk in chunks] == [Usage(3, 0, 1), Usage(0, 2, 0)]


async def test_what_arrived_together_is_paid_with_the_first_of_it() -> None:
    """A reader that leaves after one chunk pays for what the server has written meanwhile."""
    together = one(0, done=1) + one(1, done=2) + one(0, done=3)
    chunks = await read([together, one(1, done=4, finish_reason="length"), DONE])
    assert [chunk.usage.completion for chunk in chunks] == [3, 0, 0, 1, 0]


async def test_without_usage_what_we_see_counts() -> None:
    chunks = await read([one(0), one(1, 2), one(0, finish_reason="length"), DONE])
    assert [chunk.usage.completion for chunk in chunks] == [1, 2, 1, 0]
    # What was read stays unknown: the meter takes what was counted.
    assert [chunk.usage.prompt > 10**6 for chunk in chunks] == [False, False, False, True]


@pytest.mark.parametrize(
    "lie",
    [
        usage(-3, -5),
        usage(2, 1, cached=99),
        {"prompt_tokens": "many", "completion_tokens": None},
        {"prompt_tokens_details": ["?"]},
        {"prompt_tokens_details": None, "prompt_tokens": 1.5},
        "none",
    ],
)
async def test_a_usage_that_lies_never_takes_back_what_was_told(lie: Any) -> None:
    start = event({"choices": [choice((0,), "a")], "usage": usage(2, 5)})
    then = event({"choices": [choice((1,), "b", finish_reason="length")], "usage": lie})
    chunks = await read([start, then, DONE])
    assert all(min(c.usage.prompt, c.usage.cached, c.usage.completion) >= 0 for c in chunks)
    total = sum((chunk.usage for chunk in chunks), Usage())
    assert (total.prompt, total.completion) == (2, 5)
    assert total.cached <= total.prompt


def guessed(drafted: Any, accepted: Any, passes: Any) -> dict[str, Any]:
    """A server's last event, with what it says of its guesses."""
    told = {"num_draft_tokens": drafted, "num_accepted_draft_tokens": accepted}
    metrics = {"speculative_decoding": {**told, "num_spec_steps": passes}}
    return {"choices": [], "usage": usage(3, 2), "metrics": metrics}


async def test_what_was_guessed_ahead_comes_with_the_end() -> None:
    start = one(0, 1, done=2, finish_reason="length")
    pieces = [start, event(guessed(7, 1, 1)), DONE]
    chunks = await read(pieces, call(decoding=SPECULATION))
    assert [chunk.usage for chunk in chunks] == [Usage(3, 0, 2), Usage(0, 0, 0, 7, 1, 1)]
    assert sum((chunk.usage for chunk in chunks), Usage()).wasted == 6
    unasked = await read(pieces)  # the server does so for all; nobody holds money for it
    assert sum((chunk.usage for chunk in unasked), Usage()) == Usage(3, 0, 2)


@pytest.mark.parametrize(
    ("completion", "passes", "accepted"),
    [(9, 2, 5), (6, 2, 4), (2, 1, 1), (1, 1, 0), (1, 2, 0)],
)
@pytest.mark.parametrize("together", [True, False])
async def test_guesses_beyond_the_answer_s_end_are_not_in_it(
    completion: int, passes: int, accepted: int, together: bool
) -> None:
    """The server accepted five, before it cut."""
    text = one(*[0] * completion, finish_reason="length")
    last = event(guessed(8, 5, passes) | {"usage": usage(3, completion)})
    pieces = [text + last + DONE] if together else [text, last, DONE]
    chunks = await read(pieces, call(decoding=SPECULATION))
    total = sum((chunk.usage for chunk in chunks), Usage())
    assert total == Usage(3, 0, completion, 8, accepted, passes)
    assert total.accepted + total.wasted == 8


@pytest.mark.parametrize(
    "metrics",
    [
        None, [], {}, {"speculative_decoding": None}, {"speculative_decoding": []},
        guessed("7", -1, 1.5)["metrics"],
        {"speculative_decoding": {"num_accepted_draft_tokens": 3}},
    ],
)  # fmt: skip
async def test_guesses_that_are_not_told_are_none(metrics: Any) -> None:
    last = event({"choices": [], "usage": usage(3, 2), "metrics": metrics})
    pieces = [one(0, 1, done=2, finish_reason="length"), last, DONE]
    chunks = await read(pieces, call(decoding=SPECULATION))
    assert sum((chunk.usage for chunk in chunks), Usage()) == Usage(3, 0, 2)


async def test_entropies_that_the_plugin_reports_are_exact() -> None:
    report = format_report(Report(0, (1.5, 0.25)))
    events = [report, one(0, done=1), one(1, done=2, finish_reason="length"), DONE]
    chunks = await read(events, call(decoding=ENTROPY))
    assert [token.entropy for token in tokens(chunks)] == [(1.5, 1.5), (0.25, 0.25)]


async def test_a_report_that_comes_late_or_never_leaves_its_token_without() -> None:
    events = [
        one(0, done=1),
        format_report(Report(0, (1.5,))),  # after its token has gone on
        format_report(Report(2, (0.5,))),
        one(1, done=2),
        one(0, done=3, finish_reason="length"),
        DONE,
    ]
    chunks = await read(events, call(decoding=ENTROPY))
    assert [token.entropy for token in tokens(chunks)] == [None, None, (0.5, 0.5)]


async def test_reports_are_not_shown_to_who_did_not_ask() -> None:
    events = [format_report(Report(0, (1.5,))), one(0, finish_reason="length"), DONE]
    assert tokens(await read(events))[0].entropy is None


@pytest.mark.parametrize("comment", [b": ping", b": farthing {", b": farthing []", b":"])
@pytest.mark.parametrize("end", [b"\n\n", b"\n"])
async def test_other_comments_are_nothing_and_hide_nothing(comment: bytes, end: bytes) -> None:
    """Also right before an event's data, where a proxy may put it."""
    chunks = await read([comment + end + one(0, finish_reason="length"), DONE])
    assert [token.id for token in tokens(chunks)] == [0]


async def test_without_reports_the_likeliest_tokens_give_bounds() -> None:
    seen = {0: math.log(0.5), 1: math.log(0.25)}
    events = [one(0, done=1, finish_reason="length", **scored(seen)), *LAST]
    (token,) = tokens(await read(events, call(decoding=ENTROPY), top=2))
    assert token.entropy == interval(seen.values(), 15)
    assert (token.logprob, token.top) == (None, ())  # nobody asked for them


async def test_a_drawn_token_that_is_not_among_the_likeliest_does_not_count_as_one() -> None:
    seen = {0: math.log(0.5), 1: math.log(0.25)}
    drawn = {5: math.log(0.01)}
    fields = scored({**drawn, **seen}, drawn=drawn.values())
    events = [one(5, text="x", done=1, finish_reason="length", **fields), *LAST]
    (token,) = tokens(await read(events, call(decoding=ENTROPY), top=2))
    assert token.entropy == interval(seen.values(), 15)


async def test_a_report_counts_more_than_the_likeliest_tokens() -> None:
    fields = scored({0: -0.5})
    first = format_report(Report(0, (1.25,)))
    events = [first, one(0, **fields), one(0, finish_reason="length", **fields), DONE]
    chunks = await read(events, call(decoding=ENTROPY), top=1)
    assert [t.entropy for t in tokens(chunks)] == [(1.25, 1.25), interval([-0.5], 15)]


async def test_logprobs_come_with_names_likeliest_first_and_as_many_as_were_asked_for() -> None:
    fields = scored({1: -2.0, 0: -0.5, 2: -1.0}, drawn=[-2.0])
    events = [one(1, done=1, finish_reason="length", **fields), *LAST]
    asked = call(sampling={"logprobs": 2}, decoding=ENTROPY)
    (token,) = tokens(await read(events, asked, top=3))
    assert (token.id, token.piece, token.logprob) == (1, b"b", -2.0)
    assert [(c.id, c.piece, c.logprob) for c in token.top] == [(0, b"a", -0.5), (2, b" the", -1.0)]
    assert token.entropy == interval([-0.5, -1.0, -2.0], 15)


async def test_the_sentinel_ends_it_and_is_no_token_of_the_answer_but_paid_for() -> None:
    stop = EntropyStop(level=2.0, rising=True)
    events = [
        one(0, done=1),
        format_report(Report(1, (3.5,), mean=2.25)),
        one(END, text="", done=2, finish_reason="stop", stop_reason=END),
        *LAST,
    ]
    asked = call(decoding=Decoding(entropy=True, stop=stop))
    chunks = await read(events, asked, sentinel=END)
    assert [token.id for token in tokens(chunks)] == [0]
    assert "".join(chunk.text for chunk in chunks) == "a"
    assert sum(chunk.usage.completion for chunk in chunks) == 2
    end = chunks[-1]
    assert (end.finish, end.mean, end.stopped_by) == ("entropy", 2.25, None)


async def test_the_sentinel_in_one_event_with_others() -> None:
    stop = EntropyStop(level=2.0, rising=True)
    events = [one(0, 1, END, text="ab", done=3, finish_reason="stop", stop_reason=END), *LAST]
    asked = call(decoding=Decoding(entropy=True, stop=stop))
    chunks = await read(events, asked, sentinel=END)
    assert [(chunk.text, *chunk.tokens) for chunk in chunks[:-1]] == [
        ("a", Token(0)),
        ("b", Token(1)),
    ]
    assert chunks[-1].finish == "entropy"
    assert sum(chunk.usage.completion for chunk in chunks) == 3


async def test_where_the_mean_is_not_told_the_level_is_what_is_known_of_it() -> None:
    stop = EntropyStop(level=2.0, rising=True)
    events = [one(END, text="", done=1, finish_reason="stop", stop_reason=END), *LAST]
    asked = call(decoding=Decoding(entropy=True, stop=stop))
    assert (await read(events, asked, sentinel=END))[-1].mean == 2.0


@pytest.mark.parametrize(
    ("fields", "finish", "stopped_by"),
    [
        ({"finish_reason": "stop", "stop_reason": None}, "stop", None),
        ({"finish_reason": "stop"}, "stop", None),
        ({"finish_reason": "stop", "stop_reason": 7}, "stop", 7),
        ({"finish_reason": "stop", "stop_reason": END}, "stop", END),  # nobody asked the plugin
        ({"finish_reason": "length"}, "length", None),
    ],
)
async def test_how_it_ended(fields: Any, finish: str, stopped_by: Any) -> None:
    end = (await read([one(0, **fields), *LAST]))[-1]
    assert (end.finish, end.stopped_by, end.mean) == (finish, stopped_by, None)


async def test_a_stop_string_closes_the_stream_before_its_end() -> None:
    events = answer((0,), (0, 1, 0, 1, 0, 1))
    chunks = await read(events, call(sampling={"stop": ("ba",)}))
    assert "".join(chunk.text for chunk in chunks) == "a"
    assert (chunks[-1].finish, chunks[-1].stopped_by) == ("stop", "ba")
    assert sum(chunk.usage.completion for chunk in chunks) == 3


async def test_what_might_have_become_a_stop_string_comes_with_the_end() -> None:
    chunks = await read(answer((0,), (0, 1)), call(sampling={"stop": ("ba",)}))
    assert [chunk.text for chunk in chunks] == ["a", "", "b"]


@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_a_server_that_gives_up_has_not_ended_the_answer(reason: str) -> None:
    with pytest.raises(EngineError, match=f"gave up .{reason}"):
        await read([one(0, finish_reason=reason), DONE])


@pytest.mark.parametrize(
    "pieces", [[], [DONE], [one(0)], [one(0), DONE], [one(0), b"data: {"], [event("[DO")[:8]]]
)
async def test_an_answer_without_an_end_is_an_error(pieces: list[bytes]) -> None:
    with pytest.raises(EngineError, match="broke off"):
        await read(pieces)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        {"choices": [5]},
        {"choices": [{}]},
        {"choices": [choice((0,), finish_reason="length") | {"token_ids": 5}]},
        {"choices": [choice((0,), logprobs={})]},
        {"choices": [choice((0,), **scored()) | {"logprobs": {"top_logprobs": []}}]},
        {"choices": [choice((0,), logprobs={"top_logprobs": [{"a": -1}], "token_logprobs": [0]})]},
        {
            "choices": [
                choice((0,), **scored({0: 10**400})),
            ]
        },
    ],
)
async def test_what_cannot_be_read_is_an_error_of_the_engine(content: Any) -> None:
    data = event(content) if isinstance(content, str) else event(json.dumps(content))
    with pytest.raises(EngineError, match="malformed") as raised:
        await read([data, DONE], call(decoding=ENTROPY), top=1)
    assert not isinstance(raised.value, BadRequest)


async def test_what_the_server_refuses_in_its_first_event_is_the_clients_to_mend() -> None:
    error = {"error": {"message": "top_k is odd", "param": "top_k", "code": 400}}
    with pytest.raises(BadRequest, match="top_k is odd") as raised:
        await read([event(error), DONE])
    assert raised.value.param == "top_k"
    long = {"error": {"message": "maximum context length is 5", "code": 400}}
    with pytest.raises(ContextOverflow):
        await read([event(long), DONE])


async def test_an_error_in_mid_answer_says_nothing_of_the_servers_words() -> None:
    error = {"error": {"message": "secret 10.0.0.1", "code": 400}}
    with pytest.raises(EngineError, match="mid-answer") as raised:
        await read([one(0, done=1), event(error), DONE])
    assert "secret" not in raised.value.message
