"""From answers to what they are worth: by references, by the best way's answers, by a judge."""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app.bench import opinions
from app.bench.calibrate.asking import Kept
from app.bench.calibrate.keeping import append
from app.bench.calibrate.observed import Observed
from app.bench.calibrate.spending import Spending, Spent
from app.bench.grading import Messages, Question
from app.prompt_files import read_objects

_AT_ONCE = 4
_TOO_MUCH = (400, 413)  # of what is judged, for the judge
_JUDGE = "judge "  # a judge's requests, to Spending


@dataclass(frozen=True)
class Judge:
    """A model that is asked what no reference grades. Its opinions are kept."""

    model: str
    http: httpx.AsyncClient
    spending: Spending
    file: Path  # JSONL

    async def ask(self, model: str, messages: Messages) -> opinions.Verdict:
        """Raises Spent, httpx.HTTPError."""
        way = _JUDGE + model
        held = self.spending.hold(way, _AT_ONCE)
        cost: float | None = None
        try:
            ask = opinions.asker(self.http, self.spending.headers(held))
            verdict = await ask(model, messages)
            cost = verdict.cost
        except httpx.HTTPStatusError as error:
            cost = 0.0 if error.response.is_client_error else None
            if self.spending.most is not None and error.response.status_code == 402:
                raise Spent from error
            raise
        finally:
            spent = self.spending.settle(way, held, cost)
            append(self.file, {"spent": spent})
        return verdict

    def known(self) -> dict[str, float]:
        """What it, or another judge, has said before. Raises ValueError."""
        lines = read_objects(self.file) if self.file.is_file() else []
        return {line["of"]: float(line["worth"]) for _, line in lines if "of" in line}


@dataclass
class Graded:
    """All answers that could be graded."""

    found: list[Observed] = field(default_factory=list)
    ungraded: int = 0  # others: what they are graded by is missing, or the budget spent


async def grade(
    kept: Sequence[Kept],
    questions: Sequence[Question],
    *,
    best: str,
    seed: int,
    judge: Judge | None,
    advance: Callable[[int], object],
) -> Graded:
    """`best`: the way whose answers with this seed are those that others' should be like.

    Raises httpx.HTTPError of the judge; ValueError of its file.
    """
    by_key = {(one.task.name, one.number): one for one in questions}
    likes = {
        (each.answer.task, each.answer.question): each.answer.texts[0]
        for each in kept
        if each.answer.way == best and each.answer.seed == seed and not each.answer.failed
    }
    known, places = {} if judge is None else judge.known(), asyncio.Semaphore(_AT_ONCE)
    graded = Graded()

    async def one(each: Kept) -> None:
        place = each.answer.task, each.answer.question
        async with places:
            worth = await _worth(each, by_key[place], likes.get(place), judge, known)
        advance(1)
        if worth is None:
            graded.ungraded += 1
        else:
            graded.found.append(_observed(each, worth))

    await asyncio.gather(*map(one, kept))
    graded.found.sort(key=lambda each: (each.way, each.question, each.seed))
    return graded


async def _worth(
    kept: Kept,
    question: Question,
    best: str | None,
    judge: Judge | None,
    known: Mapping[str, float],
) -> float | None:
    """None: what it is graded by is not there."""
    if kept.answer.failed:
        return 0.0
    text, needs = kept.answer.texts[0], question.task.needs
    if needs == "judge" and judge is not None:
        return await _judged(question, text, judge, known)
    if needs and (needs == "judge" or best is None):
        return None
    return await opinions.worth(question, text, best=best)


async def _judged(
    question: Question, text: str, judge: Judge, known: Mapping[str, float]
) -> float | None:
    asked = json.dumps([judge.model, opinions.judging(question, text)])
    of = hashlib.sha256(asked.encode()).hexdigest()[:16]
    if of in known:
        return known[of]
    try:
        worth = await opinions.worth(question, text, judge=judge.model, ask=judge.ask)
    except Spent:
        return None
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in _TOO_MUCH:
            raise
        return None
    append(judge.file, {"of": of, "worth": worth})
    return worth


def _observed(kept: Kept, worth: float) -> Observed:
    answer = kept.answer
    return Observed(
        way=answer.way,
        kind=answer.task,
        question=f"{answer.task}/{answer.question}",
        seed=answer.seed,
        level=kept.level,
        beside=kept.beside,
        met=kept.met,
        worth=worth,
        failed=answer.failed,
        prompt=answer.prompt,
        completion=answer.completion,
        cost=answer.cost,
        gpu_seconds=answer.gpu_seconds,
        first_s=answer.first_s,
        seconds=answer.seconds,
        entropy=statistics.mean(answer.entropies) if answer.entropies else None,
    )
