"""One answer: how it is cut into chunks, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from app.engines.embedded.kv_cache import SequenceCache
from app.engines.embedded.sampling import Drawn
from app.engines.embedded.sequence import EntropyWatch, RunningSequence
from app.types import Call, Candidate, Chunk, Decoding, EntropyStop, Sampling, Token, Usage

EOS = 0
PLAIN = Sampling()
LETTERS = {1: b"a", 2: b"b", 3: b"c", 4: b"\xe2\x82", 5: b"\xac"}


class Letters:
    eos_ids = frozenset({EOS})

    def piece(self, id: int) -> bytes:
        return LETTERS.get(id, b"")


def sequence(
    sampling: Sampling = PLAIN, *, limit: int = 100, stop: EntropyStop | None = None
) -> RunningSequence:
    decoding = Decoding(entropy=True, stop=stop)
    call = Call("m", prompt=(9, 9), sampling=sampling, decoding=decoding)
    return RunningSequence(call, [9, 9], limit, Letters(), outbox_size=3)


def write(one: RunningSequence, ids: Sequence[int], entropy: float | None = None) -> list[Chunk]:
    for id in ids:
        one.accept(Drawn(id, entropy=entropy))
    return list(one.outbox)


def text(chunks: Sequence[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


def test_each_token_is_a_chunk_and_the_end_is_one_more() -> None:
    chunks = write(sequence(limit=2), [1, 2])
    assert chunks == [
        Chunk("a", (Token(1, b"a"),), "m", usage=Usage(completion=1)),
        Chunk("b", (Token(2, b"b"),), "m", usage=Usage(completion=1)),
        Chunk(model="m", finish="length"),
    ]


def test_eos_counts_and_is_not_shown() -> None:
    chunks = write(sequence(), [1, EOS])
    assert chunks[1] == Chunk("", (Token(EOS),), "m", usage=Usage(completion=1))
    assert chunks[2] == Chunk(model="m", finish="stop")


def test_eos_may_be_ignored() -> None:
    one = sequence(Sampling(ignore_eos=True))
    write(one, [EOS, 1])
    assert not one.finished


def test_a_stop_token_id_is_named_and_not_shown() -> None:
    chunks = write(sequence(Sampling(stop_token_ids=(3,))), [1, 3])
    assert text(chunks) == ["a", "", ""]
    assert (chunks[-1].finish, chunks[-1].stopped_by) == ("stop", 3)


def test_a_stop_string_across_tokens_ends_the_answer_before_it() -> None:
    chunks = write(stopping(["bc"], limit=4), [1, 2, 3])
    assert text(chunks) == ["a", "", "", ""]
    assert (chunks[-1].finish, chunks[-1].stopped_by) == ("stop", "bc")


def stopping(
    stops: Sequence[str], limit: int = 100, written: Sequence[int] = ()
) -> RunningSequence:
    call = Call("m", prompt=(9,), sampling=Sampling(stop=tuple(stops)), written=tuple(written))
    return RunningSequence(call, [9], limit, Letters())


def test_a_stop_string_wins_over_the_last_token_that_was_allowed() -> None:
    assert write(stopping(["bc"], limit=2), [2, 3])[-1].finish == "stop"


def test_a_stop_string_across_a_hand_over_is_found() -> None:
    """What another model has written holds the beginning of the stop string back, and is not
    shown again."""
    chunks = write(stopping(["abc"], written=[3, 1, 2]), [3])
    assert text(chunks) == ["", ""]
    assert chunks[-1].stopped_by == "abc"


def test_text_continues_exactly_where_a_hand_over_cuts_a_character() -> None:
    first = write(stopping([], limit=2), [1, 4])
    assert text(first)[:-1] == ["a", ""]  # the finish chunk's rest is dropped at a hand-over
    assert text(write(stopping([], written=[1, 4]), [5, 1])) == ["€", "a"]


def test_what_was_held_back_comes_with_the_finish_chunk() -> None:
    chunks = write(stopping(["bc"], limit=2), [1, 2])
    assert chunks[-1] == Chunk("b", model="m", finish="length")
    assert text(write(stopping([]), [4, EOS])) == ["", "", "\ufffd"]


def test_a_full_outbox_pauses() -> None:
    one = sequence()
    write(one, [1, 1])
    assert not one.paused
    write(one, [1])
    assert one.paused
    one.outbox.popleft()
    assert not one.paused


def test_logprobs_become_candidates_with_their_bytes() -> None:
    one = sequence()
    one.accept(Drawn(2, logprob=-1.5, top=((1, -0.5), (2, -1.5)), entropy=0.75))
    (chunk,) = one.outbox
    top = (Candidate(1, b"a", -0.5), Candidate(2, b"b", -1.5))
    assert chunk.tokens == (Token(2, b"b", -1.5, top, (0.75, 0.75)),)


def test_pieces_of_the_prompt_end_at_fixed_places() -> None:
    """Wherever reading starts, it meets the same boundaries; what was written is read too."""

    call = Call("m", prompt=(0,), written=(7, 8))
    one = RunningSequence(call, list(range(8)), 5, Letters())
    one.cache = cache = SequenceCache(torch.empty(0), capacity=15)
    assert one.upcoming(4) == [0, 1, 2, 3]
    cache.length = 3
    assert one.upcoming(4) == [3]
    cache.length = 4
    assert one.upcoming(4) == [4, 5, 6, 7]
    cache.length = 8
    assert one.reading
    assert one.upcoming(4) == [7, 8]
    cache.length = 10
    assert not one.reading
    write(one, [1])
    assert one.upcoming(4) == [1]


def crossing(rule: EntropyStop, entropies: Sequence[float]) -> int | None:
    """How many tokens are written when the rule stops."""
    watch = EntropyWatch(rule)
    return next((n for n, h in enumerate(entropies, 1) if watch.crossed(h)), None)


@pytest.mark.parametrize(
    ("rule", "entropies", "stops"),
    [
        # the mean of the last three, over a full window only
        (EntropyStop(2.0, rising=True, window=3), [9, 9, 9], 3),
        (EntropyStop(2.0, rising=True, window=3), [0, 0, 0, 3, 3], 5),
        (EntropyStop(2.0, rising=True, window=3), [0, 0, 5, 0, 0, 0], None),
        (EntropyStop(2.0, rising=True, window=1), [1.9, 2.0], 2),  # the level itself crosses
        (EntropyStop(1.0, rising=False, window=2), [3, 1, 1], 3),
        (EntropyStop(1.0, rising=False, window=2), [3, 3, 3], None),
        # `after`: not before so many tokens, then at once
        (EntropyStop(2.0, rising=True, window=2, after=4), [9] * 6, 4),
        (EntropyStop(2.0, rising=True, window=2, after=4), [9, 9, 0, 0, 0], None),
        (EntropyStop(2.0, rising=True, window=5, after=2), [9] * 6, 5),
    ],
)
def test_the_rolling_mean_stops_the_answer(
    rule: EntropyStop, entropies: Sequence[float], stops: int | None
) -> None:
    assert crossing(rule, entropies) == stops


def test_the_token_that_crosses_is_reported_before_the_end() -> None:
    one = sequence(stop=EntropyStop(1.0, rising=True, window=2))
    chunks = write(one, [1, 2], entropy=1.5)
    assert [c.tokens[0].id for c in chunks[:2]] == [1, 2]
    assert chunks[2] == Chunk(model="m", finish="entropy")
    assert one.finished


def test_a_crossing_is_told_even_where_the_answer_would_end() -> None:
    """Who asked for it discards this token, so its end is not the answer's."""
    rule = EntropyStop(1.0, rising=True, window=1)
    assert write(sequence(stop=rule), [EOS], entropy=2.0)[-1].finish == "entropy"
    assert write(sequence(stop=rule, limit=1), [1], entropy=2.0)[-1].finish == "entropy"


def test_entropy_is_reported_only_when_asked() -> None:
    call = Call("m", decoding=Decoding(stop=EntropyStop(9.0, rising=True)))
    one = RunningSequence(call, [9], 5, Letters())
    assert write(one, [1], entropy=1.0)[0].tokens[0].entropy is None
