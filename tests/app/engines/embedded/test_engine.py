"""The engine as policies see it: the protocol, its refusals, and that no stream hangs or leaks."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engines.embedded.engine import EmbeddedEngine
from app.engines.embedded.model import Decoder
from app.engines.embedded.weights import ModelConfig, Weights, load
from app.errors import (
    BadRequest,
    ConfigError,
    EngineError,
    EngineUnavailable,
    Overloaded,
)
from app.trail import CallRecord
from app.types import Call, Chunk, Decoding, Engine, EntropyStop, Sampling, Usage
from tests.app.engines.embedded.tiny import CONTEXT, EOS
from tests.app.engines.embedded.tiny_engine import (
    CALL,
    CARDS,
    OUTBOX,
    Start,
    card,
    collect,
    idle,
    ids,
    text,
    total,
)


async def test_it_is_an_engine(start: Start) -> None:
    engine: Engine = await start()
    chunks = await collect(engine.generate(CALL))
    prompt = await engine.count(CALL)
    assert chunks[0].usage.prompt == prompt > 0
    assert total(chunks) == Usage(prompt=prompt, completion=12)
    assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1].finish, chunks[-1].tokens) == ("length", ())
    assert {chunk.model for chunk in chunks} == {"tiny"}
    assert all(len(chunk.tokens) <= 1 for chunk in chunks)


async def test_a_form_that_takes_too_much_work_in_mid_answer_ends_it_alone(start: Start) -> None:
    engine = await start()
    worse = {"guided_grammar": 'start: (("a"|"b"|"ab")*){50}'}
    stream = engine.generate(replace(CALL, max_tokens=400, extra=worse))
    chunks, other = list[Chunk](), asyncio.create_task(collect(engine.generate(CALL)))
    with pytest.raises(BadRequest) as caught:
        async with aclosing(stream):
            async for chunk in stream:
                chunks.append(chunk)
    assert caught.value.param == "guided_grammar"
    assert caught.value.message.startswith("guided_grammar: ")
    assert "<" not in caught.value.message
    assert 0 < total(chunks).completion == len(ids(chunks)) < 400
    assert set(text(chunks)) <= {"a", "b"}
    assert (await other)[-1].finish == "length"
    await idle(engine)


async def test_capabilities_and_load(start: Start) -> None:
    engine = await start()
    able = engine.capabilities("tiny-int8")
    assert (able.family, able.context, able.entropy) == ("tiny", CONTEXT, "exact")
    assert able.stop_on_entropy and able.overrun == OUTBOX + 1
    assert engine.capabilities("short").context == 64
    assert engine.load("tiny").healthy
    stream = engine.generate(CALL)
    await anext(stream)
    assert engine.load("tiny").running == 1
    await stream.aclose()


async def test_a_file_is_read_once_for_all_its_models(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []

    def counting(source: Path) -> tuple[ModelConfig, Weights]:
        read.append(source)
        return load(source)

    monkeypatch.setattr("app.engines.embedded.engine.load", counting)
    engine = await start()
    assert len(read) == 1
    assert engine.models["tiny"].tokenizer is engine.models["tiny-int8"].tokenizer


async def test_how_long_a_call_waited_for_its_turn_is_told(start: Start) -> None:
    engine = await start(max_running=1)
    first, second = (CallRecord("tiny", 5) for _ in range(2))
    begun = asyncio.Event()

    async def hold() -> None:
        async with aclosing(engine.generate(replace(CALL, watch=first))) as stream:
            async for chunk in stream:
                if chunk.tokens:
                    begun.set()

    holding = asyncio.create_task(hold())
    await begun.wait()
    asked = time.monotonic()
    await collect(engine.generate(replace(CALL, watch=second)))
    await holding
    took = time.monotonic() - asked
    assert 0 <= first.queued < second.queued < took


async def test_an_answer_handed_from_model_to_model_goes_on(start: Start) -> None:
    """Cut after any token and continued, the answer is the same, and so is its text."""
    engine = await start()
    whole = await collect(engine.generate(CALL))
    answer = tuple(ids(whole))
    for at in (1, 5, 11):
        rest = await collect(engine.generate(CALL.after(answer[:at])))
        assert ids(rest) == list(answer[at:])
        shown = text([c for c in whole if c.tokens][:at])
        assert shown + text(rest) == text(whole)
        assert rest[0].usage.prompt == whole[0].usage.prompt + at
        assert rest[0].usage.cached == rest[0].usage.prompt - 1


async def test_a_seed_survives_a_hand_over(start: Start) -> None:
    engine = await start()
    call = replace(CALL, sampling=Sampling(seed=9, ignore_eos=True))
    answer = tuple(ids(await collect(engine.generate(call))))
    assert ids(await collect(engine.generate(call.after(answer[:5])))) == list(answer[5:])


async def test_an_answer_that_is_over_is_not_continued(start: Start) -> None:
    engine = await start()
    call = replace(CALL, sampling=Sampling(stop=("bc",)), written=(97, 98, 99))
    assert await collect(engine.generate(call)) == [
        Chunk(model="tiny", finish="stop", stopped_by="bc")
    ]


async def test_eos_ends_an_answer(start: Start) -> None:
    engine = await start()
    bias = {EOS: 100.0}
    chunks = await collect(engine.generate(replace(CALL, sampling=Sampling(logit_bias=bias))))
    assert ids(chunks) == [EOS]
    assert (chunks[1].text, chunks[1].tokens[0].piece, chunks[-1].finish) == ("", b"", "stop")
    assert total(chunks).completion == 1


async def test_it_stops_on_entropy(start: Start) -> None:
    engine = await start()
    rule = EntropyStop(0.5, rising=True, window=3, after=6)
    chunks = await collect(engine.generate(CALL.decoded(Decoding(entropy=True, stop=rule))))
    entropies = [t.entropy[0] for chunk in chunks for t in chunk.tokens if t.entropy]
    assert len(entropies) == 6
    assert sum(entropies[-3:]) / 3 >= 0.5
    assert chunks[-1].finish == "entropy"


async def test_without_max_tokens_it_writes_to_the_end_of_the_context(start: Start) -> None:
    engine = await start()
    call = replace(CALL, model="short", max_tokens=None)
    chunks = await collect(engine.generate(call))
    assert total(chunks).prompt + total(chunks).completion == 64
    assert chunks[-1].finish == "length"


async def test_what_never_fits_the_kv_memory_is_refused(start: Start) -> None:
    engine = await start(CARDS[:1], kv_memory=100 * 1024)
    with pytest.raises(BadRequest, match="512 tokens, more than the KV memory"):
        await anext(engine.generate(replace(CALL, max_tokens=None)))


async def test_a_full_queue_is_told_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await start(CARDS[:1], max_running=1, max_waiting=1)
    forward, go_on = Decoder.forward, threading.Event()

    def held_up(self: Decoder, *given: Any) -> torch.Tensor:
        assert go_on.wait(10)
        return forward(self, *given)

    monkeypatch.setattr(Decoder, "forward", held_up)
    first = asyncio.ensure_future(collect(engine.generate(CALL)))
    while not engine.load("tiny").running:
        await asyncio.sleep(0.001)
    second = asyncio.ensure_future(collect(engine.generate(CALL)))
    await asyncio.sleep(0)
    assert engine.load("tiny").waiting == 1
    with pytest.raises(Overloaded) as caught:
        await anext(engine.generate(CALL))
    assert caught.value.retry_after is not None
    go_on.set()
    assert ids(await first) == ids(await second)


async def test_fifty_streams_half_of_them_dropped(start: Start) -> None:
    """The rest complete, nothing leaks, and the KV memory returns to its start."""
    engine = await start(CARDS[:2])
    alone = ids(await collect(engine.generate(replace(CALL, model="tiny-int8", max_tokens=40))))

    async def one(n: int) -> list[int] | None:
        call = replace(CALL, model=("tiny", "tiny-int8")[n // 2 % 2], max_tokens=40)
        stream = engine.generate(call)
        if n % 2:
            return ids(await collect(stream))
        async with aclosing(stream):
            async for chunk in stream:
                if total([chunk]).completion and n % 4 == 0:
                    break
        return None

    answers = await asyncio.gather(*(one(n) for n in range(50)))
    complete = [answer for answer in answers if answer is not None]
    assert len(complete) == 25
    assert all(len(answer) == 40 for answer in complete)
    assert all(answers[n] == alone for n in range(3, 50, 4))
    await idle(engine)


async def test_a_cancelled_reader_gives_back_what_it_holds(start: Start) -> None:
    """In the queue, before the first chunk, and in mid-stream."""
    engine = await start(CARDS[:1], max_running=1)

    async def read() -> None:
        await collect(engine.generate(replace(CALL, max_tokens=400)))

    readers = [asyncio.ensure_future(read()) for _ in range(3)]
    await asyncio.sleep(0.05)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await idle(engine)


async def test_a_slow_reader_stalls_nobody_and_is_bounded(start: Start) -> None:
    engine = await start(CARDS[:1], max_running=1)
    slow = engine.generate(replace(CALL, max_tokens=100))
    first = await anext(slow)
    assert len(ids(await collect(engine.generate(replace(CALL, max_tokens=60))))) == 60
    scheduler = engine.models["tiny"].scheduler
    assert len(scheduler._running[0].outbox) == OUTBOX
    assert len(ids([first, *await collect(slow)])) == 100


async def test_a_broken_step_ends_its_streams_and_no_others(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start(CARDS[:2])
    forward = Decoder.forward
    broken = engine.models["tiny"].scheduler._model

    def breaks(self: Decoder, *given: Any) -> torch.Tensor:
        if self is broken:
            raise RuntimeError("out of luck")
        return forward(self, *given)

    other = engine.generate(replace(CALL, model="tiny-int8", max_tokens=200))
    await anext(other)
    stream = engine.generate(replace(CALL, max_tokens=400))
    await anext(stream)
    monkeypatch.setattr(Decoder, "forward", breaks)
    with caplog.at_level(logging.ERROR), pytest.raises(EngineError):
        await collect(stream)
    assert "out of luck" in caplog.text
    monkeypatch.undo()
    assert len(ids(await collect(other))) == 200
    assert len(ids(await collect(engine.generate(CALL)))) == 12


async def test_aclose_ends_open_streams(start: Start) -> None:
    engine = await start(CARDS[:1], max_running=1)
    streams = [engine.generate(replace(CALL, max_tokens=400)) for _ in range(2)]
    readers = [asyncio.ensure_future(collect(stream)) for stream in streams]
    await asyncio.sleep(0.02)
    await engine.aclose()
    ended = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), 5)
    assert all(isinstance(end, EngineError) for end in ended)
    with pytest.raises(EngineUnavailable):
        await anext(engine.generate(CALL))
    assert not engine.load("tiny").healthy
    await engine.aclose()


async def test_before_start_there_is_no_engine(tiny_folder: Path) -> None:
    engine = EmbeddedEngine(CARDS[:1], {"tiny": tiny_folder})
    with pytest.raises(EngineUnavailable):
        await anext(engine.generate(CALL))
    await engine.aclose()


async def test_weights_that_cannot_be_read_end_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but no more")
    for path in (tmp_path / "bad.gguf", tmp_path / "none.gguf"):
        engine = EmbeddedEngine(CARDS[:1], {"tiny": path})
        with pytest.raises(ConfigError, match=r"\[models.tiny\]: weights: "):
            await engine.start()


@pytest.mark.model
async def test_the_real_model_answers(smollm2_gguf: Path) -> None:
    cards = [card("fp32"), card("int8", precision="int8")]
    engine = EmbeddedEngine(cards, {made.name: smollm2_gguf for made in cards})
    await engine.start()
    question = ({"role": "user", "content": "What is the capital of France?"},)
    for name in ("fp32", "int8"):
        call = Call(name, question, max_tokens=30, sampling=Sampling(temperature=0))
        chunks = await collect(engine.generate(call))
        # int8 is near fp32, but a close call may fall otherwise and lead elsewhere.
        assert name == "int8" or text(chunks) == "The capital of France is Paris."
        assert text(chunks).strip() and chunks[-1].finish in ("stop", "length")
        assert b"".join(t.piece for c in chunks for t in c.tokens).decode() == text(chunks)
    await engine.aclose()
