"""The keys and values of a long prompt are predicted, so that the answer begins sooner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from pydantic import Field

from app.catalog import Catalog
from app.errors import BadRequest, EngineUnsupported, FarthingError, Unaffordable
from app.types import (
    Alternative,
    Call,
    Chunk,
    Decision,
    Decoding,
    Fidelity,
    KVPrediction,
    MeteredEngine,
    Usage,
)
from policies.base import Policy

_MARGIN_S = 1e-6  # of sums that must come out even


@dataclass(slots=True)
class _Answer:
    """An answer that goes on from a predicted prompt."""

    written: list[int] = field(default_factory=list)
    over: bool = False


class KvPrediction(Policy):
    """KV Prediction (Horton et al. 2024, arXiv 2410.08391): the same model, sooner, less exactly.

    The prompt's keys and values come from the model's own first layers and maps from these (or
    from a smaller model), all but those of its end and of what this asks about, as far as words
    tell; the answer is the model's own from there on. Prompts that are too short are read
    exactly, and so is one that is read soon enough: where the client says by when the answer should
    begin (`X-Budget-Ttft-Ms`), the most exact way that is expected to keep it is taken: a better
    predictor, or more of the prompt read exactly.

    With `repair` the prompt is read exactly in the background once the answer has begun, and the
    answer goes on from that.
    """

    fidelity: ClassVar[Fidelity] = "approximate"

    target: str = Field("", description="model that answers where the client names none")
    predictor: str | None = Field(
        None, description="like layers-18; default: the most exact that begins in time"
    )
    least: int = Field(
        384, ge=2, description="tokens: shorter prompts are read exactly, as they gain little"
    )
    last: int = Field(24, ge=1, description="tokens at the prompt's end that are read exactly")
    first: int = Field(4, ge=0, description="and at its beginning")
    relevant: float = Field(
        0.2,
        ge=0,
        le=1,
        description="of the rest the share that is read exactly too: what the end asks about; where"
        " the client says by when the answer should begin, as much as there is time for",
    )
    conversation: str = Field(
        "",
        max_length=64,
        repr=False,  # a client's own words
        description="its later turns, which name it too, go on from what was predicted",
    )
    edited: bool = Field(
        False,
        description="nothing is predicted; where the prompt was read before but for an edit, what"
        " follows the edit is moved, not read again",
    )
    repair: bool = Field(
        False, description="read the prompt exactly too, in the background, and go on from that"
    )

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        target = model or self.target
        if not target:
            raise BadRequest("policy kv_prediction: `target` is missing", param="policy")
        return self.model_copy(update={"target": catalog.model(target).name})

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        if not self.repair:
            return {self.target: Usage(prompt=prompt, completion=completion)}
        # Read twice, and with what is written then once more, to go on; the second reading
        # writes a token.
        read = 3 * prompt + completion
        return {self.target: Usage(prompt=read, completion=completion + 1)}

    def relays(self, call: Call, engine: MeteredEngine) -> bool:
        able = engine.capabilities(self.target)
        return able.native and not self.edited and not self._shares(engine)

    async def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        call = call.to(self.target)
        if self.edited:
            answer = self._moved(call, engine)
        else:
            answer = await self._read(call, engine)
        async with aclosing(answer) as stream:
            async for chunk in stream:
                yield chunk

    def _moved(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        """From a prompt that was read before (PIE, He et al. 2024, arXiv 2407.03157): of this
        conversation, or by an exact answer."""
        if not engine.capabilities(self.target).edits:
            raise EngineUnsupported(
                f"policy kv_prediction: edited: {self.target} cannot", param="policy"
            )
        return engine.generate(call.decoded(Decoding(edited=self.conversation)))

    async def _read(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        shares = self._shares(engine)
        kv, ways = await self._chosen(call, engine, shares) if shares else (None, ())
        if kv is None:
            native = engine.capabilities(self.target).native
            plain = engine.generate(call.decoded(Decoding(native=native)))
            return _told(Decision("plain", self.target, len(call.written)), plain, ways)
        asked = call.decoded(Decoding(kv=kv))
        # What one token less to read is worth.
        saved = engine.load(self.target).reading * (1 - shares[kv.predictor])
        # Not every engine knows in its next call which tokens are to be penalised.
        whole = call.sampling.presence_penalty or call.sampling.frequency_penalty
        answer = self._repaired(asked, engine) if self.repair and not whole else None
        return _told(None, _predicted(saved, answer or engine.generate(asked)), ways)

    def _shares(self, engine: MeteredEngine) -> Mapping[str, float]:
        """The predictors that may be used, and the share of a prefill that each takes.

        Raises EngineUnsupported where one was named that the engine does not have.
        """
        there = engine.capabilities(self.target).kv or {}
        if self.predictor is None:
            return there
        if self.predictor not in there:
            names = ", ".join(there) or "none"
            raise EngineUnsupported(
                f"policy kv_prediction: predictor: {self.target} has no {self.predictor!r};"
                f" there is: {names}",
                param="policy",
            )
        return {self.predictor: there[self.predictor]}

    async def _chosen(
        self, call: Call, engine: MeteredEngine, shares: Mapping[str, float]
    ) -> tuple[KVPrediction | None, tuple[Alternative, ...]]:
        """How the prompt is read, None: exactly; and what ways there were."""
        prompt = await engine.count(call)
        exactly, least = self.first + self.last, max(self.least, self.first + self.last + 1)
        best_first = sorted(shares, key=lambda name: -shares[name])
        if prompt < least:
            return None, (_exactly(f"a prompt of {prompt} tokens is below {least}", chosen=True),)
        reading = engine.load(self.target).reading
        if call.goals.first_token is None or not reading:
            kv = self._by(best_first[0], self.relevant)
            why = "it is the most exact" if self.predictor is None else "it was named"
            return kv, (
                _exactly("nobody says by when the answer should begin"),
                _by_predictor(kv, why),
            )
        left = call.goals.first_token - time.monotonic()
        if prompt * reading <= left:
            why = "it is expected to begin in time"
            return None, (_exactly(why, prompt * reading, left, chosen=True),)
        room = (left / reading - exactly) / (prompt - exactly)  # by what reading it exactly takes
        ways = [_exactly("it is expected to begin too late", prompt * reading, left)]

        def seconds(name: str, relevant: float) -> float:
            share = shares[name] + (1 - shares[name]) * relevant
            return reading * (exactly + (prompt - exactly) * share)

        for name in best_first:
            fits = (room - shares[name]) / max(1 - shares[name], 1e-9)
            if fits >= self.relevant:
                kv = self._by(name, fits)
                why = "the most exact that is expected to begin in time"
                return kv, (*ways, _by_predictor(kv, why, seconds(name, kv.relevant), left))
            kv = self._by(name, self.relevant)
            why = "it is expected to begin too late"
            ways.append(_by_predictor(kv, why, seconds(name, self.relevant), left, chosen=False))
        kv = self._by(best_first[-1], max(fits, 0.0))
        why = "the quickest, with less of the prompt read exactly"
        return kv, (*ways[:-1], _by_predictor(kv, why, seconds(kv.predictor, kv.relevant), left))

    def _by(self, predictor: str, relevant: float) -> KVPrediction:
        return KVPrediction(predictor, self.last, self.first, relevant, self.conversation)

    async def _repaired(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        """The predicted answer, and from where the prompt has been read exactly the exact one."""
        answer = _Answer()
        exact = call.decoded(Decoding())
        reading: asyncio.Task[bool] | None = None
        try:
            async with aclosing(engine.generate(call)) as stream:
                async for chunk in stream:
                    answer.written += [token.id for token in chunk.tokens]
                    answer.over = chunk.finish is not None
                    yield chunk
                    if reading is None and answer.written and not answer.over:
                        reading = asyncio.create_task(_read(exact, engine))
                    if reading is not None and reading.done() and reading.result():
                        break
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.wait([reading])
        if answer.over:
            return
        rest = exact.after(tuple(answer.written))
        if rest.max_tokens == 0:
            yield Chunk(model=self.target, finish="length")
            return
        repaired = Decision("repair", self.target, len(rest.written))
        try:
            async with aclosing(_told(repaired, engine.generate(rest))) as stream:
                async for chunk in stream:
                    yield chunk
        except Unaffordable:
            yield Chunk(model=self.target, finish="length", reason="budget")


async def _read(call: Call, engine: MeteredEngine) -> bool:
    """Have the engine read the prompt, so that it can go on from it; whether it did."""
    try:
        async with aclosing(engine.generate(replace(call, max_tokens=1))) as stream:
            async for _ in stream:
                pass
    except FarthingError:
        return False  # for want of money or room: the answer stays as it is
    return True


async def _predicted(saved: float, answer: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
    """The answer, and once it is known that tokens of the prompt were predicted, that they were;
    each saved so many seconds (0: that is not known)."""
    written, told = 0, False
    async with aclosing(answer) as stream:
        async for chunk in stream:
            if chunk.usage.predicted and not told and chunk.decision is None:
                told = True
                saves = chunk.usage.predicted * saved or None
                decided = Decision("predict", chunk.model, written, saves=saves)
                chunk = replace(chunk, decision=decided)
            written += len(chunk.tokens)
            yield chunk


def _exactly(
    reason: str, seconds: float | None = None, left: float = 0.0, *, chosen: bool = False
) -> Alternative:
    """Reading all of the prompt; `left`: seconds until the answer should begin."""
    fits = None if seconds is None else seconds <= left
    return Alternative("reading", "exact", chosen, reason, fits=fits, first_token=seconds)


def _by_predictor(
    kv: KVPrediction,
    reason: str,
    seconds: float | None = None,
    left: float = 0.0,
    *,
    chosen: bool = True,
) -> Alternative:
    """The same by a predictor, with so much read exactly as `kv` says."""
    fits = None if seconds is None else seconds <= left + _MARGIN_S
    why = f"{reason}; {kv.relevant:.0%} of the rest is read exactly"
    return Alternative("reading", kv.predictor, chosen, why, fits=fits, first_token=seconds)


async def _told(
    decided: Decision | None, answer: AsyncGenerator[Chunk], ways: tuple[Alternative, ...] = ()
) -> AsyncGenerator[Chunk]:
    """The answer, and with its first chunk what was decided, and among what."""
    told = False
    async with aclosing(answer) as stream:
        async for chunk in stream:
            if told:
                yield chunk
            else:
                yield replace(chunk, decision=chunk.decision or decided, considered=ways)
                told = True
