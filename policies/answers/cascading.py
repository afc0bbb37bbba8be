"""One answer of a cascade: who is asked, what is kept, and what is shown of it when."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from app.errors import (
    FarthingError,
    Unaffordable,
)
from app.types import Alternative, Call, Chunk, Decision, Decoding, MeteredEngine
from policies.answers.asking import PASSED_ON, Reply, time_left
from policies.answers.judging import Stage, Trial, self_check
from policies.base import spoken

_LIKELY = 256  # tokens of an answer of whose length nothing is known
_LEAST = 16  # of one that is worth beginning


@dataclass(frozen=True, slots=True)
class Rule:
    """By what an answer is kept."""

    threshold: float  # chance of being right
    early: bool  # whether that is asked before its end
    self_check: bool  # whether its model is asked too


@dataclass
class Answer:
    """Where one answer stands: who was asked, and how that went."""

    rule: Rule
    stages: Sequence[Stage]
    call: Call
    engine: MeteredEngine
    trials: list[Trial] = field(default_factory=list)  # answers that may be kept, or were left
    untold: list[Decision] = field(default_factory=list)
    failures: list[tuple[str, FarthingError]] = field(default_factory=list)  # by model
    kept: str = ""  # whose answer stays: it is being shown
    short: str = ""  # which model is not asked for want of money
    late: bool = False  # the deadline has come

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """All of them. Raises what the last model raised that could be asked, if all failed."""
        for stage, after in zip(self.stages, [*self.stages[1:], None], strict=True):
            tried = self._last(stage) if after is None else self._tried(stage, after)
            async with aclosing(tried) as chunks:
                async for chunk in chunks:
                    yield chunk
            if self.kept:
                return
            if self.short or self.late:
                break
        async with aclosing(self._best()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _tried(self, stage: Stage, after: Stage) -> AsyncGenerator[Chunk]:
        """This model's answer, shown from where it is decided that it stays."""
        trial = Trial(stage, Reply(stage.asked(self.call, self.engine)))
        try:
            dear = await self._too_dear(after, _LEAST)
            async with aclosing(self.engine.generate(trial.reply.call)) as stream:
                self.trials.append(trial)
                while (chunk := await self._next(stream)) is not None:
                    trial.add(chunk)
                    if self.kept:
                        yield chunk
                        continue
                    decided = await self._decided(trial, after, dear)
                    if decided is not None and decided.kind == "keep":
                        for each in self._shown(trial, decided):
                            yield each
                    elif decided is not None:
                        self.untold.append(decided)
                        return
        except TimeoutError:
            self.late = True
        except PASSED_ON as error:
            self._failed(stage, error)
            why = f"{stage.model} failed ({type(error).__name__})"
            self.untold.append(Decision("escalate", after.model, trial.tokens, detail=why))

    async def _last(self, stage: Stage) -> AsyncGenerator[Chunk]:
        """This model's answer, shown as it comes, in its server's own words where it has some."""
        native = self.engine.capabilities(stage.model).native
        asked = self.call.to(stage.model).decoded(Decoding(native=native))
        try:
            async with (
                aclosing(self.engine.generate(asked)) as stream,
                aclosing(spoken(stream)) as chunks,
            ):
                while (chunk := await self._next(chunks)) is not None:
                    if self.kept:
                        yield chunk
                    else:
                        for each in self._told(chunk, stage.model):
                            yield each
        except TimeoutError:
            self.late = True
        except PASSED_ON as error:
            self._failed(stage, error)

    async def _next(self, stream: AsyncGenerator[Chunk]) -> Chunk | None:
        """Raises TimeoutError where the deadline comes and there is another answer, or a part of
        one, to show."""
        waits = self.kept or not any(trial.tokens for trial in self.trials)
        async with asyncio.timeout(None if waits else time_left(self.call)):
            return await anext(stream, None)

    async def _decided(self, trial: Trial, after: Stage, dear: bool) -> Decision | None:
        """Whether this answer stays or the next model is asked; None: that is open, or, where it
        has ended and there is no money for the next one, the best of those that there are."""
        threshold, over = self.rule.threshold, trial.over
        at = trial.due() if self.rule.early and not over else None
        if over or at is not None:
            await self._judge(trial, at)
            sure = trial.confidence is not None and trial.confidence >= threshold
            if sure and not self._filled(trial, after):
                return self._decision("keep", trial, trial.stage.model, trial.how)
            dear = dear or await self._too_dear(after, 2 * trial.tokens)
        others = any(each.tokens for each in self.trials if each is not trial)
        if not over and dear and not others:
            self.short = after.model
            return self._resigned(trial)
        if over and dear:
            self.short = after.model
            return None
        if over or (at is not None and await self._is_left(trial, after)):
            why = f"{trial.stage.model} {trial.how}"
            return self._decision("escalate", trial, after.model, why)
        return None

    async def _is_left(self, trial: Trial, after: Stage) -> bool:
        """Whether reading on is not worth it, and the next model may be asked at once."""
        here, there = trial.stage.price.output, after.price.output
        least = self.rule.threshold * (here / there if there else 1.0)
        if trial.hope is None or trial.hope > least:
            return False
        return not await self._too_dear(after, _LIKELY)

    def _filled(self, trial: Trial, after: Stage) -> bool:
        """Whether this answer was cut off by its model's context, and the next one has more."""
        end, limit, able = trial.reply.finish, self.call.max_tokens, self.engine.capabilities
        if end is None or end.finish != "length" or end.reason is not None:
            return False
        short = limit is None or trial.tokens < limit
        return short and able(trial.stage.model).context < able(after.model).context

    async def _judge(self, trial: Trial, at: int | None) -> None:
        checked: float | None = None
        if at is None and self.rule.self_check and trial.tokens:
            # It is one signal of several: where it cannot be had the others must do.
            with suppress(*PASSED_ON, TimeoutError):
                async with asyncio.timeout(time_left(self.call)):
                    checked = await self_check(trial.reply, self.engine)
        trial.judge(at, checked)

    async def _too_dear(self, stage: Stage, wanted: int) -> bool:
        """Whether the rest of the budget does not pay for so many tokens of this model's, or for
        as many as may come where that is less."""
        tokens, price = self.engine.allowance(stage.model), stage.price
        if tokens == sys.maxsize:
            return False
        # The allowance is what is left when all that was read and written has been read again,
        # in whole tokens; this model reads its prompt only.
        read = self.trials[-1].used if self.trials else 0
        amount = (tokens + 1) * price.output - 1 + read * price.input
        try:
            prompt = await self.engine.count(self.call.to(stage.model))
        except PASSED_ON:
            return False  # it will say so itself when it is asked
        wanted = max(wanted, _LEAST)
        limit = self.call.max_tokens
        return tokens < 1 or price.buys(amount, prompt) < min(wanted, limit or wanted)

    async def _best(self) -> AsyncGenerator[Chunk]:
        """Of the answers that there are the likeliest to be right, as no further one can be had:
        of those that have ended, else one that was left is gone on with."""
        ended = [trial for trial in self.trials if trial.over]
        failed = {model for model, _ in self.failures}
        left = [trial for trial in self.trials if self.late or trial.stage.model not in failed]
        some = ended or [trial for trial in left if trial.tokens]
        if not some:
            # That there is no money for a further one is not why the others failed.
            errors = [error for _, error in self.failures]
            raise next((e for e in errors[::-1] if not isinstance(e, Unaffordable)), errors[-1])
        best = max(some, key=lambda trial: trial.confidence or 0.0)
        decided = self._resigned(best)
        if not ended and self.late:
            best.add(Chunk(model=best.stage.model, finish="length", reason="deadline"))
        if best.over:
            for each in self._shown(best, decided):
                yield each
            return
        try:
            async with aclosing(self._resumed(best, decided)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except (Unaffordable, TimeoutError) as error:
            # Who was asked in between has left no money for it, or no time.
            if self.kept:
                raise
            late = isinstance(error, TimeoutError)
            end = Chunk(model=best.stage.model, finish="length", reason="budget")
            best.add(replace(end, reason="deadline") if late else end)
            for each in self._shown(best, decided):
                yield each

    async def _resumed(self, trial: Trial, decided: Decision) -> AsyncGenerator[Chunk]:
        """An answer that was left, and its rest. Raises TimeoutError as `_next`."""
        ids = tuple(token.id for token in trial.reply.tokens)
        async with aclosing(self.engine.generate(trial.reply.call.after(ids))) as stream:
            while (chunk := await self._next(stream)) is not None:
                if not self.kept:
                    for each in self._shown(trial, decided):
                        yield each
                yield chunk

    def _resigned(self, trial: Trial) -> Decision:
        """That this answer is kept as no further one can be had."""
        model, error = self.failures[-1] if self.failures else ("", None)
        poor = isinstance(error, Unaffordable) or bool(self.short)
        why = f"{model} failed ({type(error).__name__})"
        if poor:
            why = f"the budget does not pay for {self.short or model}"
        if self.late:
            poor, why = False, "the deadline came"
        return replace(self._decision("keep", trial, trial.stage.model, why), steered=poor)

    def _decision(
        self, kind: Literal["keep", "escalate"], trial: Trial, model: str, why: str
    ) -> Decision:
        return Decision(
            kind=kind,
            model=model,
            token=trial.tokens,
            threshold=self.rule.threshold,
            confidence=trial.confidence,
            detail=why,
        )

    def _shown(self, trial: Trial, decided: Decision) -> Iterator[Chunk]:
        """What there is of this answer, now that it is kept."""
        self.untold.append(decided)
        first, *others = trial.chunks
        yield from self._told(first, trial.stage.model)
        yield from others

    def _told(self, first: Chunk, model: str) -> Iterator[Chunk]:
        """The first chunk of the answer that is kept, with all that was decided."""
        self.kept = model
        *before, last = self.untold
        for decision in before:
            # Where the answer is a server's own events, so is what goes before it.
            raw = b"" if first.raw is not None and not self.call.whole else None
            yield Chunk(model=decision.model, decision=decision, raw=raw)
        made = sum(trial.tokens > 0 for trial in self.trials) + (model == self.stages[-1].model)
        told = replace(last, answers=made)
        yield replace(first, decision=told, considered=tuple(self._considered()))

    def _considered(self) -> Iterator[Alternative]:
        """The models in the order in which they are asked, and what became of each."""
        judged = {trial.stage.model: trial for trial in self.trials}
        failed = dict(self.failures)
        for stage in self.stages:
            name = stage.model
            trial = judged.get(name)
            if name in failed:
                why = f"it failed ({type(failed[name]).__name__})"
            elif trial is not None and trial.confidence is not None:
                why = f"right with a chance of {trial.confidence:.2f}, {trial.how}"
            elif trial is not None:
                why = trial.how or "not judged"
            elif name == self.kept:
                why = "the last one's answer is kept in any case"
            else:
                why = f"not asked: the answer of {self.kept} is kept"
            fits = False if name == self.short else None
            yield Alternative("model", name, chosen=name == self.kept, reason=why, fits=fits)

    def _failed(self, stage: Stage, error: FarthingError) -> None:
        """Note that this model has failed. Raises the error where its answer is being shown."""
        if self.kept:
            raise error
        self.failures.append((stage.model, error))
