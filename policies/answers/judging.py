"""How sure a model's answer makes it to be right, told while it is read or once it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from app.catalog import ModelCard, Tariff
from app.confidence import SELF_CHECK, VERDICTS, Calibration, Signals, approval, checking, signals
from app.types import Call, Chunk, Decoding, Engine
from policies.answers.asking import Reply, as_read, asked, at_most, conversation, read

Confidence: TypeAlias = tuple[float, bool]
"""The chance in 0..1 that an answer is right, and whether it is calibrated."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the models that answer in turn."""

    model: str
    price: Tariff
    calibration: Calibration | None = None

    @classmethod
    def of(cls, card: ModelCard) -> Stage:
        return cls(card.name, card.price, card.confidence)

    @property
    def checkpoints(self) -> Sequence[int]:
        """After how many tokens of its answer something can be said, rising."""
        return () if self.calibration is None else self.calibration.checkpoints

    def asked(self, call: Call, engine: Engine) -> Call:
        """The client's call, asked of this model so that its answer can be judged: it comes with
        log-probabilities, which nobody is shown who did not ask for them."""
        watched = self.calibration is not None and self.calibration.entropy
        watched = watched and engine.capabilities(self.model).entropy is not None
        sampling = replace(call.sampling, logprobs=call.sampling.logprobs or 0)
        asked = replace(call.to(self.model), sampling=sampling)
        return asked.decoded(Decoding(entropy=watched))

    def confidence(self, of: Signals, at: int | None) -> Confidence | None:
        """`at`: of so many tokens only, one of the checkpoints; None: of a whole answer.

        Without a calibration that these signals suffice for, a whole answer's is exp of its mean
        log-probability, or the mean of that and its self-check; of a part nothing is said.
        """
        if self.calibration is not None:
            try:
                return self.calibration.probability(of, at), True
            except ValueError:
                pass  # a server that tells less than the one where it was fitted
        if at is not None:
            return None
        return of.raw if of.self_check is None else (of.raw + of.self_check) / 2, False

    def hope(self, of: Signals, at: int) -> float | None:
        """The chance that an answer with such first tokens is right; None: nobody can say."""
        if self.calibration is None:
            return None
        try:
            return self.calibration.plainly(of, at)
        except ValueError:
            return None


@dataclass(slots=True)
class Trial:
    """A model's answer, and what was thought of it."""

    stage: Stage
    reply: Reply
    tokens: int = 0  # that it has so far
    used: int = 0  # tokens that its call has read and written
    seen: int = 0  # the last checkpoint at which it was judged
    confidence: float | None = None  # as it was judged last; None: it was not, or cannot be
    hope: float | None = None  # the same without caution, of an unfinished answer
    how: str = ""  # it was judged

    @property
    def over(self) -> bool:
        return self.reply.finish is not None

    @property
    def chunks(self) -> list[Chunk]:
        """All that has come."""
        return [*self.reply.chunks, *([] if self.reply.finish is None else [self.reply.finish])]

    def add(self, chunk: Chunk) -> None:
        self.reply.add(chunk)
        self.tokens += len(chunk.tokens)
        self.used += chunk.usage.prompt + chunk.usage.completion

    def due(self) -> int | None:
        """The checkpoint that has come; None: none has since the last one."""
        reached = [at for at in self.stage.checkpoints if self.seen < at <= self.tokens]
        return max(reached, default=None)

    def judge(self, at: int | None, self_check: float | None = None) -> None:
        """By its first `at` tokens; None: by all of it, with what the model itself says of it."""
        self.seen = at or self.tokens
        found = signals(self.reply.tokens[:at], self_check)
        told = None if found is None else self.stage.confidence(found, at)
        self.confidence = None if told is None else told[0]
        self.hope = None if found is None or at is None else self.stage.hope(found, at)
        how = "by its whole answer" if at is None else f"after {at} tokens"
        checked = "" if self_check is None else ", self-checked"
        calibrated = ", uncalibrated" if told is not None and not told[1] else ""
        self.how = f"{how}{checked}{calibrated}"
        if told is None and at is None:
            self.how = "without log-probabilities"


async def self_check(reply: Reply, engine: Engine) -> float | None:
    """The chance in 0..1 that the model says yes when it is asked whether its answer is right, not
    no; None: it is likely to say neither. Raises as the engine, and as `conversation`."""
    said = checking(await conversation(reply.call, engine), reply.text)
    call = asked(reply.call, said, max_tokens=1)
    call = replace(call, sampling=replace(call.sampling, logprobs=VERDICTS))
    tokens = (await read(call, engine)).tokens
    return approval(tokens[0]) if tokens else None


def checking_reads(prompt: int, completion: int) -> int:
    """The most tokens that a self-check reads, of an answer of so many to a prompt of so many."""
    return prompt + as_read(completion) + at_most(SELF_CHECK)
