"""An engine that plays back scripts: for tests of everything that stands on an engine."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from app.engines import fields
from app.errors import BadRequest, ContextOverflow, EngineError, EngineUnsupported, UnknownModel
from app.types import (
    Call,
    Candidate,
    Capabilities,
    Chunk,
    Decoding,
    EntropyStop,
    Load,
    Speculates,
    Token,
    Tokens,
    Usage,
)


@dataclass(frozen=True)
class Script:
    """What one model says. The token at position i of an answer is word i, whoever wrote before."""

    words: Sequence[str]
    entropies: Sequence[float] = ()  # bits, by position; 0.1 beyond the end
    logprobs: Sequence[float] = ()  # natural, by position; -0.1 beyond the end
    family: str = "fake"
    context: int = 4096
    delay: float = 0.0  # seconds before each token
    fails_after: int | None = None  # tokens of a call, then EngineError
    stop_on_entropy: bool = True
    speculates: Speculates | None = None
    guesses: Sequence[
        tuple[int, int]
    ] = ()  # a pass: guessed, of which stay; no more beyond the end
    predictors: Mapping[str, float] = field(default_factory=dict)  # of KV, and their shares
    edits: bool = False
    vector: Sequence[float] = ()  # what it makes of every text; none: it does not embed
    structured: bool = False  # whether it takes tools and forms of answers; the words are its own
    native: bool = False  # whether it answers in its own words: one event, or the whole
    reading: float = 0.0  # seconds a token of a prompt, as it says
    surprisals: Mapping[str, float] = field(default_factory=dict)  # nats, of a prompt's words
    variants: Sequence[Script] = ()  # one of these plays instead: of several, the one of the call's
    # seed, else of how many calls to the model there were before


@dataclass
class Fake:
    """Every word of a prompt is a token, and so is every word of a script.

    The prompt's tokens count as cached where an earlier call to the same model read them.
    """

    scripts: Mapping[str, Script]
    calls: list[Call] = field(default_factory=list)
    running: dict[str, int] = field(default_factory=dict)  # calls under way, by model
    produced: dict[str, int] = field(default_factory=dict)  # tokens written, seen or not
    guessed: dict[str, Usage] = field(default_factory=dict)  # with guesses ahead, seen or not
    _words: list[str] = field(default_factory=list)
    _read: dict[str, list[tuple[object, ...]]] = field(default_factory=dict)

    def token_id(self, word: str) -> int:
        if word not in self._words:
            self._words.append(word)
        return self._words.index(word)

    @property
    def open(self) -> int:
        """Calls under way."""
        return sum(self.running.values())

    def capabilities(self, model: str) -> Capabilities:
        script = self._script(model)
        return Capabilities(
            family=script.family,
            context=script.context,
            entropy="exact",
            stop_on_entropy=script.stop_on_entropy,
            speculation=script.speculates,
            kv=script.predictors or None,
            edits=script.edits,
            embeds=bool(script.vector),
            structured=script.structured,
            native=script.native,
        )

    def load(self, model: str) -> Load:
        return Load(running=self.running.get(model, 0), reading=self._script(model).reading)

    async def count(self, call: Call) -> int:
        self._script(call.model)
        return len(self._prompt(call)) + len(call.written)

    async def tokenize(self, call: Call, names: bool) -> Tokens:
        self._script(call.model)
        words = list(map(str, self._prompt(call)))
        return Tokens(tuple(map(self.token_id, words)), tuple(words) if names else None)

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        self._script(model)
        try:
            return " ".join(self._words[id] for id in ids)
        except IndexError:
            raise BadRequest("tokens: no such token", param="tokens") from None

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        script = self._script(call.model)
        if not call.decoding.native:
            fields.check(call, structured=script.structured)
        prompt = self._prompt(call) + list(call.written)
        if len(prompt) >= script.context:
            raise ContextOverflow(
                f"The prompt has {len(prompt)} tokens, the context {script.context}",
                param="messages",
            )
        reads = call.embeds or call.decoding.scores
        if call.max_tokens is not None and call.max_tokens < 1 and not reads:
            raise BadRequest("max_tokens must be at least 1", param="max_tokens")
        stop = call.decoding.stop
        if stop is not None and not script.stop_on_entropy:
            raise EngineUnsupported("stop on entropy", param="policy")
        _check_guesses(call.decoding, script.speculates)
        if call.decoding.kv is not None and call.decoding.kv.predictor not in script.predictors:
            raise EngineUnsupported(f"KV predictor {call.decoding.kv.predictor}", param="policy")
        if call.embeds and not script.vector:
            raise EngineUnsupported(f"model: {call.model} does not embed", param="model")
        script = self._variant(call, script)
        self.calls.append(call)
        if call.embeds:
            read = sum(len(self._prompt(each)) for each in call.apart())
            vectors = (array("f", script.vector),) * (1 + len(call.beside))
            yield Chunk(model=call.model, usage=Usage(read), vectors=vectors, finish="stop")
            return
        if call.decoding.scores:
            words = [self._words[w] if isinstance(w, int) else str(w) for w in self._prompt(call)]
            scored = [
                Token(self.token_id(w), f"{w} ".encode(), -script.surprisals.get(w, 0.2))
                for w in words
            ]
            scored[0] = replace(scored[0], logprob=None)
            yield Chunk(tokens=tuple(scored), model=call.model, usage=Usage(len(words)))
            yield Chunk(model=call.model, finish="length")
            return
        self.running[call.model] = self.running.get(call.model, 0) + 1
        try:
            async with aclosing(self._play(call, script, prompt)) as chunks:
                async for chunk in _native(call, chunks) if call.decoding.native else chunks:
                    yield chunk
        finally:
            self.running[call.model] -= 1

    async def _play(
        self, call: Call, script: Script, prompt: list[object]
    ) -> AsyncGenerator[Chunk]:
        usage = self._reads(call, prompt)
        room = script.context - len(prompt)
        limit = room if call.max_tokens is None else min(room, call.max_tokens)
        start = len(call.said.split()) + len(call.written)
        end = min(start + limit, len(script.words))
        guesses = iter(script.guesses if call.decoding.speculation else ())
        position, entropies = start, list[float]()
        while position < end:
            await asyncio.sleep(script.delay)
            if script.fails_after is not None and position - start >= script.fails_after:
                raise EngineError("the script says: fail")
            made = self._pass(call, end - position, *next(guesses, (0, 0)))
            written = range(position, position + made.completion)
            position = written.stop
            text = "".join(f"{script.words[i]} " for i in written)
            tokens = tuple(self._token(call, script, i) for i in written)
            yield Chunk(text, tokens, model=call.model, usage=usage + made)
            usage = Usage()
            entropies += [self._entropy(script, i) for i in written]
            if call.decoding.stop and _crossed(call.decoding.stop, entropies):
                yield Chunk(model=call.model, finish="entropy")
                return
        over = position >= len(script.words)
        yield Chunk(model=call.model, usage=usage, finish="stop" if over else "length")

    def _reads(self, call: Call, prompt: list[object]) -> Usage:
        """What is predicted is never gone on from."""
        kv = call.decoding.kv
        cached = self._cached(call.model, prompt, keep=kv is None)
        usage = Usage(prompt=len(prompt), cached=cached)
        if kv is None:
            return usage
        predicted = len(prompt) - kv.last - max(kv.first, cached)
        return replace(usage, predicted=max(predicted, 0))

    def _pass(self, call: Call, room: int, drafted: int, accepted: int) -> Usage:
        """What one pass of the model makes of these guesses, where `room` tokens may be written."""
        made = Usage(completion=1)
        if call.decoding.speculation is not None:
            drafted = min(drafted, call.decoding.speculation.longest, room - 1)
            stay = min(accepted, drafted)
            made = Usage(completion=stay + 1, drafted=drafted, accepted=stay, passes=1)
            self.guessed[call.model] = self.guessed.get(call.model, Usage()) + made
        self.produced[call.model] = self.produced.get(call.model, 0) + made.completion
        return made

    def _token(self, call: Call, script: Script, position: int) -> Token:
        word = script.words[position]
        bits, likely = self._entropy(script, position), -0.1
        if position < len(script.logprobs):
            likely = script.logprobs[position]
        top: tuple[Candidate, ...] = ()
        if call.sampling.logprobs:
            top = (Candidate(self.token_id(word), f"{word} ".encode(), likely),)
        return Token(
            id=self.token_id(word),
            piece=f"{word} ".encode(),
            logprob=None if call.sampling.logprobs is None else likely,
            top=top,
            entropy=(bits, bits) if call.decoding.entropy else None,
        )

    def _entropy(self, script: Script, position: int) -> float:
        return script.entropies[position] if position < len(script.entropies) else 0.1

    def _script(self, model: str) -> Script:
        if model not in self.scripts:
            raise UnknownModel(f"The model {model!r} does not exist", param="model")
        return self.scripts[model]

    def _variant(self, call: Call, script: Script) -> Script:
        if not script.variants:
            return script
        before = sum(made.model == call.model for made in self.calls)
        number = before if call.sampling.seed is None else call.sampling.seed
        return script.variants[number % len(script.variants)]

    def _prompt(self, call: Call) -> list[object]:
        """The words before `written`: the prompt's, and what another family said."""
        if isinstance(call.prompt, tuple):
            return [*call.prompt, *call.said.split()]
        texts = [str(m["content"] or "") for m in call.messages]
        texts = texts if call.prompt is None else [call.prompt]
        return [word for text in (*texts, call.said) for word in text.split()]

    def _cached(self, model: str, prompt: list[object], keep: bool) -> int:
        seen = self._read.setdefault(model, [])
        best = 0
        for earlier in seen:
            shared = 0
            for a, b in zip(earlier, prompt, strict=False):
                if a != b:
                    break
                shared += 1
            best = max(best, shared)
        if keep and best < len(prompt):
            seen.append(tuple(prompt))
        return min(best, len(prompt) - 1)


async def _native(call: Call, chunks: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
    """The same in an engine's own words: as the events of one choice, or in one piece."""
    text, usage = "", Usage()
    async for chunk in chunks:
        text, usage = text + chunk.text, usage + chunk.usage
        choice: dict[str, object] = {"index": 0, "finish_reason": chunk.finish}
        if call.whole and chunk.finish is None:
            continue
        if call.whole:
            choice["message"] = {"role": "assistant", "content": text}
            raw = json.dumps({"choices": [choice]})
            yield Chunk(model=call.model, raw=raw.encode(), usage=usage, finish=chunk.finish)
        else:
            choice["delta"] = {"content": chunk.text}
            raw = f"data: {json.dumps({'choices': [choice]})}\n\n"
            yield replace(chunk, text="", tokens=(), raw=raw.encode())


def _check_guesses(decoding: Decoding, able: Speculates | None) -> None:
    """Raises EngineUnsupported for guesses that a script does not allow."""
    wanted = decoding.speculation
    if wanted is None:
        return
    if (
        able is None
        or decoding.stop is not None
        or wanted.draft not in ("", *able.drafts)
        or (wanted.lookup and not able.lookup)
        or wanted.rule not in able.rules
        or wanted.acceptance not in able.acceptance
        or wanted.longest > able.longest
    ):
        raise EngineUnsupported("speculation", param="policy")


def _crossed(stop: EntropyStop, entropies: Sequence[float]) -> bool:
    if len(entropies) < max(stop.window, stop.after):
        return False
    mean = sum(entropies[-stop.window :]) / stop.window
    return mean >= stop.level if stop.rising else mean <= stop.level
