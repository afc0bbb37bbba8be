"""The embedded engine's face: calls in, chunks out, on the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, cast

import torch

from app.catalog import ModelCard
from app.engines import fields
from app.engines.embedded import limits, predictors
from app.engines.embedded.gguf_file import GGUFFile
from app.engines.embedded.gists import Gist, Scores, Vector
from app.engines.embedded.grammar import Grammars
from app.engines.embedded.linear import Precision
from app.engines.embedded.model import Decoder
from app.engines.embedded.predictors import AnyPredictor
from app.engines.embedded.prompts import Prompts
from app.engines.embedded.scheduler import Scheduler
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.speculation.joining import abilities, check, join
from app.engines.embedded.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_metadata
from app.engines.embedded.weights import ModelConfig, Weights, load
from app.engines.embedded.worker import Worker, spare_threads
from app.errors import (
    BadRequest,
    ConfigError,
    EngineUnavailable,
    EngineUnsupported,
    UnknownModel,
)
from app.types import Call, Capabilities, Chunk, Load, Tokens

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """One model, ready to run."""

    card: ModelCard
    context: int
    vocabulary: int
    tokenizer: Tokenizer
    prompts: Prompts  # of all models of the same file, as the grammars are
    grammars: Grammars
    decoder: Decoder
    scheduler: Scheduler
    predictors: Mapping[str, AnyPredictor]


@dataclass(frozen=True, slots=True)
class _Language:
    """What all models of one file share."""

    tokenizer: Tokenizer
    prompts: Prompts
    grammars: Grammars


_Read: TypeAlias = tuple[ModelConfig, Weights, _Language]


class EmbeddedEngine:
    """An Engine that runs its models in this process. Call `start`, and `aclose` at the end."""

    def __init__(
        self,
        cards: Sequence[ModelCard],
        paths: Mapping[str, Path],
        *,
        kv_memory: int = 4 * 2**30,
        prefix_memory: int = 2**30,
        max_running: int = 16,
        max_waiting: int = 256,
        prefill_chunk: int = 64,
        threads: int | None = None,
        outbox: int = 8,
    ) -> None:
        """`paths`: by model name, the GGUF file or folder of its weights; `kv_memory`: bytes of
        each model; `threads`: torch's; `outbox`: chunks of a call that may wait for its reader."""
        self._cards = cards
        self._paths = paths
        self._kv_memory = kv_memory
        self._prefix_memory = prefix_memory
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._prefill_chunk = prefill_chunk
        self._threads = threads
        self._outbox = outbox
        self.models: dict[str, Served] = {}
        self._worker: Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Load every model and begin to serve. Raises ConfigError for unreadable weights."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._load)
        schedulers = [served.scheduler for served in self.models.values()]
        self._worker = Worker(schedulers, self._tell, self._threads)
        self._worker.start()

    async def aclose(self) -> None:
        """Stop after the current step; streams that are still open end with EngineError."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.stop)

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        """Answer a call, as `Engine` says. Its first chunk comes when its turn does."""
        worker = self._running_worker()
        served = self._served(call.model)
        limits.check(call, served.vocabulary)
        if call.embeds or call.decoding.scores:
            read = self._embed if call.embeds else self._score
            async with aclosing(read(call, served, worker)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        check(call, served.scheduler)
        predictor = predictors.chosen(call, served.predictors)
        prompt = await served.prompts.ids(call)
        length = len(prompt) + len(call.written)
        limit = limits.room(call, length, served.context)
        constraint = await served.grammars.constraint(call)
        news = asyncio.Event()
        sequence = RunningSequence(
            call,
            prompt,
            limit,
            served.tokenizer,
            outbox_size=self._outbox,
            on_news=news.set,
            predictor=predictor,
            constraint=constraint,
        )
        if sequence.over:  # the answer was over before it came to us
            yield Chunk(model=call.model, finish="stop", stopped_by=sequence.stopped_by)
            return
        async with aclosing(self._run(sequence, served, news, worker)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _embed(self, call: Call, served: Served, worker: Worker) -> AsyncGenerator[Chunk]:
        """One prompt after the other: side by side they would take as long."""
        pooling = served.card.embeds
        if pooling is None or pooling == "only":
            raise EngineUnsupported(f"model: {call.model} does not embed", param="model")
        vectors: list[array[float]] = []
        for one in call.apart():
            prompt = await served.prompts.ids(one)
            async with aclosing(self._read(one, prompt, Vector(pooling), served, worker)) as chunks:
                async for chunk in chunks:
                    if chunk.finish is None:
                        yield chunk
                    vectors += chunk.vectors
        yield Chunk(model=call.model, vectors=tuple(vectors), finish="stop")

    async def _score(self, call: Call, served: Served, worker: Worker) -> AsyncGenerator[Chunk]:
        prompt = await served.prompts.ids(call)
        scores = Scores(prompt, call.sampling.logprobs or 0, served.tokenizer.piece)
        async with aclosing(self._read(call, prompt, scores, served, worker)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _read(
        self, call: Call, prompt: Sequence[int], gist: Gist, served: Served, worker: Worker
    ) -> AsyncGenerator[Chunk]:
        """The prompt is read, and nothing written."""
        limits.room(call, len(prompt), served.context)
        news = asyncio.Event()
        sequence = RunningSequence(call, prompt, 0, served.tokenizer, on_news=news.set, gist=gist)
        return self._run(sequence, served, news, worker)

    async def _run(
        self, sequence: RunningSequence, served: Served, news: asyncio.Event, worker: Worker
    ) -> AsyncGenerator[Chunk]:
        _check_memory(served, sequence)
        served.scheduler.submit(sequence)
        asked = time.monotonic()
        worker.wake()
        try:
            while True:
                chunk = await self._next(sequence, news, worker)
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            if not sequence.finished:
                served.scheduler.cancel(sequence)
                worker.wake()
            if sequence.call.watch is not None:
                began = sequence.admitted or time.monotonic()
                sequence.call.watch.waited(max(began - asked, 0.0))

    async def count(self, call: Call) -> int:
        """Prompt tokens that this call reads: template applied, `written` included.

        Raises UnknownModel, and BadRequest as `generate` does for messages and prompt.
        """
        served = self._served(call.model)
        return len(await served.prompts.ids(call)) + len(call.written)

    async def tokenize(self, call: Call, names: bool) -> Tokens:
        """The prompt of this call. Raises as `count`."""
        served = self._served(call.model)
        fields.check(call, structured=True)
        ids = tuple(await served.prompts.ids(call))
        return Tokens(ids, tuple(served.tokenizer.names(ids)) if names else None)

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """The text of these ids. Raises UnknownModel, and BadRequest for unknown ones."""
        served = self._served(model)
        limits.check_ids(ids, served.vocabulary, "tokens")
        return served.tokenizer.text(ids)

    def capabilities(self, model: str) -> Capabilities:
        """What this model can do. Raises UnknownModel."""
        served = self._served(model)
        return Capabilities(
            family=served.card.family,
            context=served.context,
            entropy="exact",
            stop_on_entropy=True,
            # What waits in the outbox, and the token of a step that was under way.
            overrun=self._outbox + 1,
            speculation=abilities(served.scheduler),
            kv={name: each.share for name, each in served.predictors.items()} or None,
            embeds=served.card.embeds is not None,
            edits=True,
            structured=True,
        )

    def load(self, model: str) -> Load:
        """How busy this model is. Raises UnknownModel."""
        scheduler = self._served(model).scheduler
        healthy = self._worker is not None and self._worker.alive
        return Load(
            healthy=healthy,
            running=scheduler.running,
            waiting=scheduler.waiting,
            kv_bytes=scheduler.memory.running_bytes,
            reading=scheduler.reading,
        )

    async def _next(self, sequence: RunningSequence, news: asyncio.Event, worker: Worker) -> Chunk:
        while not sequence.outbox:
            if sequence.error is not None:
                raise sequence.error
            if not worker.alive:
                raise EngineUnavailable("the engine has shut down")
            # Clear, look, wait: news comes in on this thread, so none is lost in between.
            news.clear()
            if not sequence.outbox and sequence.error is None:
                await news.wait()
        held_up = sequence.paused
        chunk = sequence.outbox.popleft()
        if held_up:
            worker.wake()
        return chunk

    def _served(self, model: str) -> Served:
        served = self.models.get(model)
        if served is None:
            raise UnknownModel(f"the embedded engine has no model {model!r}", param="model")
        return served

    def _running_worker(self) -> Worker:
        if self._worker is None or not self._worker.alive:
            raise EngineUnavailable("the embedded engine is not running")
        return self._worker

    def _tell(self, sequences: list[RunningSequence]) -> None:
        """Wake the readers of these sequences; called on the worker's thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(_wake_readers, sequences)

    def _load(self) -> None:
        read: dict[Path, _Read] = {}
        built: dict[tuple[Path, str], Decoder] = {}
        for card in sorted(self._cards, key=lambda card: bool(card.base)):  # bases go first
            path, began = self._paths[card.name], time.monotonic()
            base = self._paths[card.base] if card.base else None
            try:
                if path not in read:
                    _log.info("reading %s", path)
                    read[path] = _read(path) if base is None else _draft(path, base, read[base])
                config, weights, language = read[path]
                precision = cast(Precision, card.precision)  # the catalog has no other for us
                beside = None if base is None else built.get((base, precision))
                decoder = Decoder(config, weights, precision, _device(), beside)
                built.setdefault((path, precision), decoder)
            except (OSError, ValueError) as error:
                raise ConfigError(f"[models.{card.name}]: weights: {error}") from error
            context = min(config.context, card.context or config.context)
            scheduler = Scheduler(
                decoder,
                decoder.kv_memory(self._kv_memory, self._prefix_memory),
                max_running=self._max_running,
                max_waiting=self._max_waiting,
                prefill_chunk=self._prefill_chunk,
            )
            self.models[card.name] = Served(
                card=card,
                context=context,
                vocabulary=config.vocabulary,
                tokenizer=language.tokenizer,
                prompts=language.prompts,
                grammars=language.grammars,
                decoder=decoder,
                scheduler=scheduler,
                predictors={},
            )
            took = time.monotonic() - began
            _log.info("model %s (%s) is ready after %.1f s", card.name, card.precision, took)
        for name, served in self.models.items():  # some are told by another model
            told = predictors.load(served, self.models, self._paths)
            self.models[name] = replace(served, predictors=told)
        join(self.models.values(), self._paths, self._threads or spare_threads())


def _read(path: Path) -> _Read:
    if path.is_dir():
        tokenizer = load_tokenizer(path)
        config, weights = load(path)
    else:
        file = GGUFFile(path)
        tokenizer = tokenizer_from_metadata(file.metadata)
        config, weights = load(file)
    prompts = Prompts(tokenizer, longest=config.context)
    return config, weights, _Language(tokenizer, prompts, Grammars(tokenizer))


def _draft(path: Path, base: Path, read: _Read) -> _Read:
    """A draft, with what it shares with its base, read already."""
    config, weights = load(path, base)
    _, shared, language = read
    weights = replace(weights, embedding=shared.embedding, head=shared.head)
    return config, weights, language


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_memory(served: Served, sequence: RunningSequence) -> None:
    if not served.scheduler.memory.can_ever_fit(sequence.capacity):
        raise BadRequest(
            f"prompt and answer may take {sequence.capacity} tokens, more than the KV memory of "
            "this model holds; ask for fewer max_tokens",
            param="max_tokens",
        )


def _wake_readers(sequences: list[RunningSequence]) -> None:
    for sequence in sequences:
        if sequence.on_news is not None:
            sequence.on_news()
