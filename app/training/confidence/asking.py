"""A model's greedy answers and what their tokens tell, kept in a file: they are made once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

from app.bench.grading import Question
from app.confidence import VERDICTS, Signals, approval, checking, signals
from app.errors import ConfigError
from app.training.answers import Interrupted, Watch
from app.training.saving import replace_file
from app.types import Call, Chunk, Decoding, Engine, Message, Sampling, Token


@dataclass(frozen=True)
class Sample:
    """One answer."""

    task: str
    number: int  # of the question in its file
    text: str
    finish: str
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]  # bits, the lower bound; empty where the engine tells none
    approval: float | None = None  # the model's own, where it was asked

    @property
    def key(self) -> tuple[str, int]:
        return self.task, self.number

    def signals(self, at: int | None = None) -> Signals | None:
        """As a policy sees them after so many tokens; None: there are not as many."""
        if at is not None and len(self.logprobs) < at:
            return None
        told = self.entropies or (None,) * len(self.logprobs)
        pairs = list(zip(self.logprobs, told, strict=True))[:at]
        tokens = [
            Token(0, logprob=logprob, entropy=None if bits is None else (bits, bits))
            for logprob, bits in pairs
        ]
        return signals(tokens, self.approval if at is None else None)


def read_samples(path: Path) -> list[Sample]:
    """Those of a file; a last line that was not written to its end is taken off. Raises OSError,
    and ValueError naming file and line."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole, _, torn = content.rpartition(b"\n")
    if torn:
        replace_file(path, whole + b"\n" if whole else b"")
    found = []
    for number, line in enumerate(whole.split(b"\n"), 1):
        if not line:
            continue
        try:
            fields = json.loads(line)
            fields |= {name: tuple(fields[name]) for name in ("logprobs", "entropies")}
            found.append(Sample(**fields))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}:{number}: is no answer of ours: {error}") from error
    return found


class Asking:
    """Asks one model, many questions at once."""

    def __init__(self, engine: Engine, model: str, together: int, watch: Watch) -> None:
        self._engine = engine
        self._model = model
        self._together = together
        self._watch = watch
        self._entropy = engine.capabilities(model).entropy is not None

    async def answers(
        self, questions: Sequence[Question], path: Path, *, self_check: bool
    ) -> list[Sample]:
        """An answer to each question, in their order; those in the file are not made again.

        Raises EngineError, Overloaded; ConfigError where tokens come without log-probabilities;
        Interrupted.
        """
        found = {sample.key: sample for sample in read_samples(path)}
        rest = iter([one for one in questions if (one.task.name, one.number) not in found])
        total = len(questions)

        async def work() -> None:
            for question in rest:  # one iterator, from which all take
                if self._watch.stopping:
                    return
                sample = await self._sample(question, self_check)
                found[sample.key] = sample
                file.write(json.dumps(asdict(sample)) + "\n")
                file.flush()
                self._watch.progress("answers", len(found), total)

        with path.open("a", encoding="utf-8") as file:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._together, total)):
                        group.create_task(work())
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from failed
        if self._watch.stopping:
            raise Interrupted("stopped among the answers; the same command goes on")
        return [found[question.task.name, question.number] for question in questions]

    async def _sample(self, question: Question, self_check: bool) -> Sample:
        messages: tuple[Message, ...] = question.messages
        sampling = Sampling(temperature=0.0, logprobs=0, stop=question.task.stop)
        text, tokens, finish = await self._ask(messages, question.task.max_tokens, sampling)
        logprobs = [token.logprob for token in tokens if token.logprob is not None]
        if len(logprobs) < len(tokens):
            raise ConfigError(f"model {self._model}: its tokens come without log-probabilities")
        entropies = [token.entropy[0] for token in tokens if token.entropy is not None]
        verdict: list[Token] = []
        if self_check:
            sampling = Sampling(temperature=0.0, logprobs=VERDICTS)
            _, verdict, _ = await self._ask(checking(messages, text), 1, sampling)
        return Sample(
            question.task.name,
            question.number,
            text,
            finish,
            tuple(logprobs),
            tuple(entropies) if len(entropies) == len(tokens) else (),
            approval(verdict[0]) if verdict else None,
        )

    async def _ask(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling
    ) -> tuple[str, list[Token], str]:
        call = Call(
            self._model,
            tuple(messages),
            max_tokens=max_tokens,
            sampling=sampling,
            decoding=Decoding(entropy=self._entropy),
        )
        chunks: list[Chunk] = []
        async with aclosing(self._engine.generate(call)) as stream:
            async for chunk in stream:
                chunks.append(chunk)
        tokens = [token for chunk in chunks for token in chunk.tokens]
        return "".join(chunk.text for chunk in chunks), tokens, str(chunks[-1].finish)
