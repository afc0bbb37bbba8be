"""Who computes when: nobody stalls another, nothing leaks, and results do not depend on load."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.engines.embedded.scheduler import Scheduler
from app.engines.embedded.sequence import RunningSequence
from app.errors import EngineError, Overloaded
from app.types import Chunk, Sampling
from tests.app.engines.embedded.rig import GREEDY, Rig, rig


def finish(scheduler: Scheduler, *sequences: RunningSequence) -> None:
    for _ in range(10_000):
        if all(sequence.finished for sequence in sequences):
            return
        assert scheduler.step(), "nothing moves"
    raise AssertionError("does not end")


def written(sequence: RunningSequence) -> list[int]:
    return sequence.tokens[sequence.prompt_length :]


def text(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def first(sequence: RunningSequence) -> Chunk:
    return sequence.outbox[0]


def test_a_prompt_is_read_in_pieces_and_answered(fp32: Rig) -> None:
    scheduler = fp32.scheduler(prefill_chunk=16)
    one = fp32.sequence(40, limit=3)
    scheduler.submit(one)
    assert (scheduler.running, scheduler.waiting) == (0, 1)
    finish(scheduler, one)
    assert fp32.passes == [[16], [16], [8], [1], [1]]
    assert [chunk.usage.prompt for chunk in one.outbox] == [40, 0, 0, 0, 0]
    assert sum(chunk.usage.completion for chunk in one.outbox) == 3
    assert one.outbox[-1].finish == "length"
    assert (scheduler.running, scheduler.waiting, scheduler.memory.running_bytes) == (0, 0, 0)
    assert not scheduler.step()


def test_a_long_prompt_does_not_stall_others(fp32: Rig) -> None:
    """While 25 pieces of a long prompt are read, another sequence writes 25 tokens."""
    scheduler = fp32.scheduler(prefill_chunk=16)
    writer, reader = fp32.sequence(4, limit=100), fp32.sequence(400)
    scheduler.submit(writer)
    scheduler.step()
    scheduler.submit(reader)
    before = writer.written
    while reader.reading:
        scheduler.step()
    assert writer.written - before == 400 // 16
    assert max(map(sum, fp32.passes)) <= 1 + 16


def test_a_long_prompt_does_not_starve_a_short_one_nor_the_reverse(fp32: Rig) -> None:
    scheduler = fp32.scheduler(prefill_chunk=16, max_running=4)
    long = fp32.sequence(400)
    scheduler.submit(long)
    scheduler.step()
    short = fp32.sequence(8)
    scheduler.submit(short)
    scheduler.step()
    scheduler.step()
    assert not short.reading
    # Among short prompts without end, its turn comes round.
    steps = 0
    while long.reading:
        scheduler.submit(fp32.sequence(8, limit=1))
        scheduler.step()
        steps += 1
    assert steps <= 4 * 400 // 16


def test_what_waits_is_admitted_in_order(fp32: Rig) -> None:
    """A call that needs much memory is not overtaken for ever by those that need little."""
    scheduler = fp32.scheduler(tokens=100)
    running, large, small = fp32.sequence(40, 20), fp32.sequence(40, 40), fp32.sequence(4, 4)
    for sequence in (running, large, small):
        scheduler.submit(sequence)
    scheduler.step()
    assert (scheduler.running, scheduler.waiting) == (1, 2)
    finish(scheduler, running)
    scheduler.step()
    assert large.cache is not None
    finish(scheduler, large, small)


def test_no_more_run_than_allowed(fp32: Rig) -> None:
    scheduler = fp32.scheduler(max_running=2)
    several = [fp32.sequence(4, limit=10) for _ in range(5)]
    for sequence in several:
        scheduler.submit(sequence)
    finish(scheduler, *several)
    assert max(map(len, fp32.passes)) == 2


def test_the_queue_is_bounded(fp32: Rig) -> None:
    scheduler = fp32.scheduler(max_running=1, max_waiting=2)
    several = [fp32.sequence(4) for _ in range(3)]
    for sequence in several:
        scheduler.submit(sequence)  # one of the three will run at once
    with pytest.raises(Overloaded) as caught:
        scheduler.submit(fp32.sequence(4))
    assert caught.value.retry_after is not None and caught.value.retry_after >= 1
    finish(scheduler, *several)
    scheduler.submit(fp32.sequence(4))


def test_a_slow_reader_stalls_nobody(fp32: Rig) -> None:
    """Its sequence pauses when its outbox is full, gives up its place, and goes on later."""
    scheduler = fp32.scheduler(max_running=1)
    slow, fast = fp32.sequence(4, limit=20, outbox=3), fp32.sequence(4, limit=20)
    scheduler.submit(slow)
    scheduler.submit(fast)
    finish(scheduler, fast)
    assert len(slow.outbox) == 3
    assert not scheduler.step()
    got: list[Chunk] = []
    while not slow.finished or slow.outbox:
        got.append(slow.outbox.popleft())
        scheduler.step()
    assert [t for chunk in got for t in [token.id for token in chunk.tokens]] == written(slow)
    assert slow.written == 20


def test_paused_sequences_that_wake_together_share_the_batch(fp32: Rig) -> None:
    scheduler = fp32.scheduler(max_running=2)
    several = [fp32.sequence(4, limit=12, outbox=2) for _ in range(6)]
    for sequence in several:
        scheduler.submit(sequence)
    while scheduler.step():
        pass
    assert scheduler.running == 6
    fp32.passes.clear()
    while not all(sequence.finished for sequence in several):
        for sequence in several:
            sequence.outbox.clear()
        before = [sequence.written for sequence in several]
        for _ in range(3):
            scheduler.step()
        gained = [s.written - n for s, n in zip(several, before, strict=True)]
        assert max(gained) - min(gained) <= 1
    assert max(map(len, fp32.passes)) == 2


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_cancelled_sequence_is_gone_at_the_next_step(fp32: Rig, steps: int) -> None:
    """Whether it waits, reads its prompt or writes."""
    scheduler = fp32.scheduler(prefill_chunk=16)
    one = fp32.sequence(30, limit=100)
    scheduler.submit(one)
    for _ in range(steps):
        scheduler.step()
    scheduler.cancel(one)
    fp32.passes.clear()
    assert scheduler.step()
    assert fp32.passes == []
    assert (scheduler.running, scheduler.waiting, scheduler.memory.running_bytes) == (0, 0, 0)


def test_a_prefix_is_reused_and_reported(fp32: Rig) -> None:
    scheduler = fp32.scheduler()
    one = fp32.sequence(40, limit=10)
    scheduler.submit(one)
    finish(scheduler, one)
    assert first(one).usage.cached == 0
    # A hand-over: prompt and answer so far, then one more token than was computed.
    prompt, answer = one.tokens[:40], tuple(written(one))
    two = fp32.sequence(prompt, written=answer)
    scheduler.submit(two)
    finish(scheduler, two)
    assert (first(two).usage.prompt, first(two).usage.cached) == (50, 49)


def test_a_cancelled_prefix_is_reused_too(fp32: Rig) -> None:
    scheduler = fp32.scheduler(prefill_chunk=16)
    one = fp32.sequence(40)
    scheduler.submit(one)
    scheduler.step()
    scheduler.step()
    scheduler.cancel(one)
    two = fp32.sequence(one.tokens)
    scheduler.submit(two)
    finish(scheduler, two)
    assert first(two).usage.cached == 32


def test_greedy_answers_are_the_same_with_and_without_prefixes(fp32: Rig) -> None:
    prompts = [[random.randrange(256) for _ in range(n)] for n in (3, 17, 40, 70)]
    prompts += [prompt + [65, 66] for prompt in prompts]
    answers = []
    for prefixes in (True, False):
        scheduler = fp32.scheduler(prefixes=prefixes, prefill_chunk=16)
        ended = []
        for prompt in prompts:
            ended.append(fp32.sequence(prompt, limit=20))
            scheduler.submit(ended[-1])
            finish(scheduler, ended[-1])
        answers.append([written(one) for one in ended])
        assert any(first(one).usage.cached for one in ended) is prefixes
    assert answers[0] == answers[1]


def alone_and_beside(
    made: Rig, prompt: Sequence[int], limit: int, **asked: Any
) -> list[list[Chunk]]:
    """The same call answered alone, and while seven others read and write."""
    answers = []
    for crowded in (False, True):
        scheduler = made.scheduler(prefill_chunk=16)
        if crowded:
            for n in range(7):
                sampling = Sampling(ignore_eos=True, seed=n)
                scheduler.submit(made.sequence(5 + 15 * n, limit=60, sampling=sampling))
            for _ in range(9):
                scheduler.step()
        one = made.sequence(prompt, limit=limit, **asked)
        scheduler.submit(one)
        finish(scheduler, one)
        answers.append(list(one.outbox))
    return answers


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(ignore_eos=True, seed=3, logprobs=5)])
def test_int8_is_bitwise_the_same_alone_and_in_a_batch(int8: Rig, sampling: Sampling) -> None:
    """Tokens, text and log-probabilities, with neighbours that read and write beside it."""
    prompt = [random.randrange(256) for _ in range(45)]
    alone, beside = alone_and_beside(int8, prompt, 30, sampling=sampling)
    assert alone == beside


@pytest.mark.model
def test_a_seed_gives_the_same_text_alone_and_in_a_batch(smollm2_gguf: Path) -> None:
    """The real model in int8, sampled, with seven neighbours: bitwise the same chunks."""
    random.seed(0)
    real = rig(smollm2_gguf, "int8")
    prompt = real.tokenizer.chat([{"role": "user", "content": "Tell me about the sea."}])
    sampling = Sampling(seed=11, logprobs=2, top_p=0.9)
    alone, beside = alone_and_beside(real, prompt, 16, sampling=sampling)
    assert alone == beside
    assert len(text(alone)) > 40


def test_an_error_ends_those_it_hits_and_no_others(fp32: Rig) -> None:
    scheduler = fp32.scheduler(max_running=2)
    several = [fp32.sequence(4, limit=10) for _ in range(3)]
    for sequence in several:
        scheduler.submit(sequence)
    fp32.fail_at = 4
    with pytest.raises(RuntimeError, match="broken"):
        finish(scheduler, *several)
    scheduler.take_news()
    scheduler.fail("no luck")
    assert scheduler.take_news() == several[:2]
    assert all(isinstance(sequence.error, EngineError) for sequence in several[:2])
    assert (scheduler.running, scheduler.waiting, scheduler.memory.running_bytes) == (0, 1, 0)
    finish(scheduler, several[2])
    assert several[2].error is None


def test_an_error_of_one_row_spares_those_written_before(fp32: Rig) -> None:
    """What breaks in taking a token hits this sequence and those whose logits are lost."""
    scheduler = fp32.scheduler()
    several = [fp32.sequence(4, limit=10) for _ in range(3)]
    for sequence in several:
        scheduler.submit(sequence)
    for _ in range(4):
        scheduler.step()
    several[1].accept = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        scheduler.step()
    scheduler.fail("no luck")
    assert [sequence.error is None for sequence in several] == [True, False, False]
    finish(scheduler, several[0])
    assert scheduler.memory.running_bytes == 0


def test_what_can_never_be_admitted_is_refused_not_forgotten(fp32: Rig) -> None:
    scheduler = fp32.scheduler(tokens=10)
    large, small = fp32.sequence(20), fp32.sequence(4, limit=2)
    scheduler.submit(large)
    scheduler.submit(small)
    finish(scheduler, small)
    assert isinstance(large.error, EngineError)


def test_close_ends_all(fp32: Rig) -> None:
    scheduler = fp32.scheduler(max_running=1)
    several = [fp32.sequence(4) for _ in range(3)]
    scheduler.submit(several[0])
    scheduler.submit(several[1])
    scheduler.step()
    scheduler.submit(several[2])
    scheduler.close("bye")
    assert all(isinstance(sequence.error, EngineError) for sequence in several)
    assert set(scheduler.take_news()) == set(several)
    assert (scheduler.running, scheduler.waiting, scheduler.memory.running_bytes) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_leaks_whatever_happens(fp32: Rig, seed: int) -> None:
    """Calls come, end, are read slowly, cancelled and broken at random; all is given back."""
    rng = random.Random(seed)
    scheduler = fp32.scheduler(tokens=300, max_running=4, max_waiting=8, prefill_chunk=16)
    live: list[RunningSequence] = []
    for _ in range(300):
        if rng.random() < 0.3:
            one = fp32.sequence(rng.randrange(1, 60), rng.randrange(1, 30), outbox=4)
            try:
                scheduler.submit(one)
            except Overloaded:
                continue
            live.append(one)
        for one in rng.sample(live, min(len(live), 3)):
            if rng.random() < 0.1:
                scheduler.cancel(one)
            elif one.outbox:
                one.outbox.popleft()
        fp32.fail_at = len(fp32.passes) + 1 if rng.random() < 0.05 else None
        try:
            scheduler.step()
        except RuntimeError:
            scheduler.fail("no luck")
    fp32.fail_at = None
    while scheduler.running or scheduler.waiting:
        for one in live:
            one.outbox.clear()
        scheduler.step()
    assert scheduler.memory.running_bytes == 0
    assert all(one.cache is None for one in live)
    assert all(one.finished or one.cancelled or one.error for one in live)
