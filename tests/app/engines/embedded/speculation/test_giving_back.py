"""Whatever happens to a sequence that is guessed for, nothing leaks and nobody else is hit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.engines.embedded.model import Decoder
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.weights import load
from app.errors import EngineError, Overloaded
from app.types import Sampling, Speculation, Usage
from tests.app.engines.embedded.rig import GREEDY
from tests.app.engines.embedded.speculation.duo import (
    DRAFT,
    DRAFTERS,
    Duo,
    acceptance_head,
    adds_up,
    chunks,
    duo,
    finish,
    prompts,
    run,
    usage,
    written,
)
from tests.app.engines.embedded.tiny import write_model

TOLD = Speculation(draft=DRAFT, adaptive=False)
BOTH = replace(TOLD, lookup=True)
REPORTING = replace(GREEDY, logprobs=2)
PROMPTS = prompts(8)
ASKED: dict[str, Any] = {"limit": 40, "sampling": REPORTING}


@pytest.fixture
def pair(tiny_folder: Path) -> Duo:
    """One of its own for each test, which may break it."""
    random.seed(0)
    return duo(tiny_folder, "int8", memory_of=0.1, head=acceptance_head())


@contextmanager
def failing(decoder: Decoder, method: str, at: int = 1) -> Iterator[None]:
    """This method of the decoder raises at its n-th call, and after it."""
    calls, real = 0, getattr(decoder, method)

    def broken(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= at:
            raise RuntimeError("broken")
        return real(*args)

    setattr(decoder, method, broken)
    try:
        yield
    finally:
        delattr(decoder, method)


@pytest.mark.parametrize("asked", [TOLD, BOTH, DRAFTERS["look-up"]])
def test_what_is_kept_afterwards_is_right(pair: Duo, asked: Speculation) -> None:
    """A second call goes on from the first, whose refused guesses have left no trace: it finds as
    much as after a plain one, and writes the same to the last bit."""
    both = []
    for speculation in (None, asked):
        scheduler = pair.scheduler(prefill_chunk=16)
        told = []
        for prompt in PROMPTS[:4]:
            first = pair.sequence(prompt, speculation, **ASKED)
            run(scheduler, first)
            second = pair.sequence([*first.tokens, 65, 66], speculation, **ASKED)
            run(scheduler, second)
            told.append((chunks(second), usage(second).cached))
        both.append(told)
    assert both[0] == both[1]
    assert all(cached > len(prompt) for (_, cached), prompt in zip(both[1], PROMPTS, strict=False))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_a_cancelled_sequence_gives_back_all(pair: Duo, steps: int) -> None:
    """Of both models; and what stays of it is right."""
    scheduler = pair.scheduler(prefill_chunk=16)
    one = pair.sequence(PROMPTS[2], BOTH, limit=200, sampling=REPORTING)
    scheduler.submit(one)
    for _ in range(steps + 5):
        scheduler.step()
    assert not one.finished and min(pair.held(scheduler)) > 0
    scheduler.cancel(one)
    scheduler.step()
    assert pair.held(scheduler) == (0, 0)
    again = pair.sequence(one.tokens, BOTH, **ASKED)
    run(scheduler, again)
    assert usage(again).cached > 0
    assert written(again) == written(pair.answers([one.tokens], None, **ASKED)[0])


def test_close_gives_back_all(pair: Duo) -> None:
    scheduler = pair.scheduler()
    for prompt in PROMPTS:
        scheduler.submit(pair.sequence(prompt, BOTH, **ASKED))
    for _ in range(20):
        scheduler.step()
    scheduler.close("bye")
    assert pair.held(scheduler) == (0, 0)


def test_where_the_draft_has_no_memory_the_answer_is_plain(tiny_folder: Path) -> None:
    pair = duo(tiny_folder, "int8", memory_of=0.1, memory=1000)
    found = pair.answers(PROMPTS, TOLD, together=4, **ASKED)
    for one, plain in zip(found, pair.answers(PROMPTS, None, **ASKED), strict=True):
        assert chunks(one) == chunks(plain)
        assert usage(one).drafted == 0 and usage(one).passes == one.written
    looked_up = pair.answers(PROMPTS, BOTH, together=4, **ASKED)
    assert sum(usage(one).accepted for one in looked_up) > 0


def test_where_it_has_memory_for_some_the_others_are_plain(tiny_folder: Path) -> None:
    """And have their turn at it once it is free."""
    room = duo(tiny_folder, "int8", memory_of=0.1).draft.memory.bytes_per_token
    pair = duo(tiny_folder, "int8", memory_of=0.1, memory=150 * room)
    some = [prompt[:20] for prompt in PROMPTS[:6]]
    found = pair.answers(some, TOLD, together=6, **ASKED)
    for one, plain in zip(found, pair.answers(some, None, **ASKED), strict=True):
        assert chunks(one) == chunks(plain)
    drafted = [usage(one).drafted for one in found]
    assert max(drafted) > 0 and min(drafted) < max(drafted) / 2


def test_those_who_guess_and_those_who_do_not_write_side_by_side(pair: Duo) -> None:
    """Greedy, seeded and speculating ones of all kinds, while a long prompt is read beside them:
    each writes what it would alone, and nobody waits for the long one."""
    samplings = [REPORTING, Sampling(seed=3, logprobs=1, ignore_eos=True), REPORTING, GREEDY]
    asked = [TOLD, None, BOTH, None, DRAFTERS["look-up"], TOLD, BOTH, None]
    scheduler = pair.scheduler(prefill_chunk=16)
    sequences = [
        pair.sequence(prompt, each, limit=40, sampling=samplings[n % 4])
        for n, (prompt, each) in enumerate(zip(PROMPTS, asked, strict=True))
    ]
    for sequence in sequences:
        scheduler.submit(sequence)
    for _ in range(30):
        scheduler.step()
    long = pair.sequence((PROMPTS[0] * 99)[:400], TOLD, limit=30, sampling=REPORTING)
    before = [sequence.written for sequence in sequences]
    scheduler.submit(long)
    for _ in range(10):
        scheduler.step()
    assert long.reading
    for sequence, written_before in zip(sequences, before, strict=True):
        assert sequence.finished or sequence.written >= written_before + 10
    finish(scheduler, *sequences, long)
    assert pair.held(scheduler) == (0, 0)
    for one in [*sequences, long]:
        prompt = one.tokens[: one.prompt_length]
        (alone,) = pair.answers([prompt], None, limit=one.written, sampling=one.call.sampling)
        assert chunks(alone) == chunks(one)
        if one.speculates:
            adds_up(one)
        else:
            assert usage(one) == Usage(one.prompt_length, 0, one.written)


@pytest.mark.parametrize("method", ["forward", "draft_logits", "trained_states"])
@pytest.mark.parametrize("at", [1, 2, 4, 9])
def test_a_failing_draft_model_ends_those_in_the_batch_only(
    pair: Duo, method: str, at: int
) -> None:
    """Wherever it breaks, before or after it has read a guess; what waits is answered."""
    scheduler = pair.scheduler(max_running=2)
    asked = replace(TOLD, rule="head")  # which looks at all there is
    hit = [pair.sequence(prompt, asked, **ASKED) for prompt in PROMPTS[:2]]
    waiting = pair.sequence(PROMPTS[2], asked, **ASKED)
    for sequence in [*hit, waiting]:
        scheduler.submit(sequence)
    with failing(pair.draft.decoder, method, at), pytest.raises(RuntimeError, match="broken"):
        while True:
            assert scheduler.step()
    scheduler.fail("no luck")
    assert all(isinstance(one.error, EngineError) for one in hit)
    assert pair.held(scheduler) == (0, 0)
    finish(scheduler, waiting)
    assert waiting.error is None
    assert pair.held(scheduler) == (0, 0)


@pytest.mark.parametrize("method", ["forward", "logits"])
def test_a_model_that_fails_on_guesses_leaks_nothing(pair: Duo, method: str) -> None:
    """Before it has read them, or after: then its cache has more than was ever written."""
    scheduler = pair.scheduler()
    several = [pair.sequence(prompt, BOTH, **ASKED) for prompt in PROMPTS]
    for sequence in several:
        scheduler.submit(sequence)
    while not all(sequence.written > 2 for sequence in several):
        scheduler.step()
    with failing(pair.target.decoder, method), pytest.raises(RuntimeError, match="broken"):
        scheduler.step()
    scheduler.fail("no luck")
    running = [sequence for sequence in several if not sequence.finished]
    assert running and all(isinstance(one.error, EngineError) for one in running)
    assert pair.held(scheduler) == (0, 0)
    assert all(sequence.cache is None for sequence in several)


def test_an_error_in_mid_verification_spares_those_that_were_written(pair: Duo) -> None:
    scheduler = pair.scheduler()
    several = [pair.sequence(prompt, TOLD, **ASKED) for prompt in PROMPTS[:3]]
    for sequence in several:
        scheduler.submit(sequence)
    while not all(sequence.written for sequence in several):
        scheduler.step()
    several[1].accept = None  # type: ignore[method-assign, assignment]  # whatever breaks there
    with pytest.raises(TypeError):
        scheduler.step()
    scheduler.fail("no luck")
    assert [sequence.error is None for sequence in several] == [True, False, False]
    finish(scheduler, several[0])
    assert pair.held(scheduler) == (0, 0)
    (alone,) = pair.answers(PROMPTS[:1], None, **ASKED)
    assert chunks(alone) == chunks(several[0])


def test_a_draft_of_a_shorter_context_guesses_as_far_as_it_reads(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """A long answer outgrows it, and a long prompt is too much for it from the start."""
    pair = duo(tiny_folder, "int8", memory_of=0.1)
    short = Decoder(*load(write_model(tmp_path / "short", context=48)), "int8")
    draft = replace(pair.draft, decoder=short, memory=short.kv_memory(2**26, 0))
    pair = Duo(pair.target, draft)
    some = [PROMPTS[0], (PROMPTS[0] * 30)[:100]]
    found = pair.answers(some, TOLD, together=2, limit=80, sampling=REPORTING)
    for one, plain in zip(
        found, pair.answers(some, None, limit=80, sampling=REPORTING), strict=True
    ):
        assert chunks(one) == chunks(plain)
    assert usage(found[0]).drafted > 0


@pytest.mark.parametrize("seed", range(4))
def test_nothing_leaks_whatever_happens(pair: Duo, seed: int) -> None:
    """Calls come, end, are read slowly, cancelled and broken at random; all is given back."""
    rng = random.Random(seed)
    scheduler = pair.scheduler(tokens=400, max_running=4, max_waiting=8, prefill_chunk=16)
    live: list[RunningSequence] = []
    kinds = [None, TOLD, BOTH, replace(BOTH, rule="head"), DRAFTERS["look-up"]]
    for _ in range(250):
        if rng.random() < 0.3:
            sampling = rng.choice([GREEDY, Sampling(ignore_eos=True)])
            size, limit = rng.randrange(1, 60), rng.randrange(1, 30)
            one = pair.sequence(size, rng.choice(kinds), limit=limit, outbox=4, sampling=sampling)
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
        _step(pair, scheduler, rng)
    while scheduler.running or scheduler.waiting:
        for one in live:
            one.outbox.clear()
        scheduler.step()
    assert pair.held(scheduler) == (0, 0)
    assert all(one.cache is None for one in live)
    assert all(one.finished or one.cancelled or one.error for one in live)


def _step(pair: Duo, scheduler: Any, rng: random.Random) -> None:
    """A step, in which now and then a model breaks."""
    if rng.random() > 0.1:
        scheduler.step()
        return
    decoder, method = rng.choice(
        [
            (pair.draft.decoder, "forward"),
            (pair.draft.decoder, "draft_logits"),
            (pair.target.decoder, "forward"),
            (pair.target.decoder, "logits"),
        ]
    )
    with failing(decoder, method, rng.randrange(1, 4)):
        try:
            scheduler.step()
        except RuntimeError:
            scheduler.fail("no luck")
