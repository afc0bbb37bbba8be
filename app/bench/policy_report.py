"""What answers in several ways say, as figures and as a table."""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from app.bench.grading import Question
from app.bench.labelled import Chances, Item, estimate
from app.bench.paired import Comparison, compared
from app.bench.scoring import pass_at
from app.bench.ways import Answered
from app.estimates import Estimate, mean, ratio, share


@dataclass(frozen=True)
class Decided:
    """The answers that a policy ended with one kind of decision."""

    answers: int
    quality: float


@dataclass
class Figure:
    """One way's answers in one task. Intervals are over questions, that of a quality of right and
    wrong is Wilson's; a failure is worth 0, and counts as wrong samples."""

    task: str
    way: str
    questions: int
    answers: int
    failed: int
    quality: Estimate
    also: Estimate | None = None  # the task's second score
    cost_usd: Estimate | None = None  # of a request
    cost_ratio: Estimate | None = None  # to the large way's
    seconds: Estimate | None = None
    seconds_ratio: Estimate | None = None
    first_s: Estimate | None = None
    written: Estimate | None = None  # tokens written for a request, seen or not
    decided: dict[str, Decided] = field(default_factory=dict)
    against: dict[str, Comparison] = field(default_factory=dict)  # by the other way's name
    pass_at: dict[int, Estimate] = field(default_factory=dict)  # of a way with several answers
    chances: Chances | None = None  # of such a way too: what best_of_n's options are to be told


Figures = list[Figure]


@dataclass(frozen=True)
class _Graded:
    answer: Answered
    grades: tuple[float, ...]  # of each text that was asked for
    also: float | None
    passing: int = 0  # of several texts, those that are wrong and pass the question's examples

    @property
    def worth(self) -> float:
        return statistics.mean(self.grades)


_Cell = Mapping[int, list[_Graded]]  # of one task and way, by question


async def figures(
    found: Sequence[Answered],
    asked: Sequence[Question],
    ways: Sequence[str],
    *,
    small: str | None,
    large: str | None,
    seed: int,
) -> Figures:
    """A figure for each task and each way that answered in it."""
    by_key = {(question.task.name, question.number): question for question in asked}

    async def graded(answer: Answered) -> _Graded:
        question = by_key[answer.task, answer.question]
        if answer.failed:
            wrong = (0.0,) * answer.choices
            return _Graded(answer, wrong, None if question.task.also is None else 0.0)
        grades = [await question.grade(text) for text in answer.texts]
        also = question.task.also
        second = None if also is None else also(answer.texts[0], question.line)
        pairs = zip(answer.texts, grades, strict=True)
        wrong_ones = [text for text, grade in pairs if not grade]
        asked_for = wrong_ones if question.examples and answer.choices > 1 else []
        passing = [await question.passes(text) for text in asked_for]
        return _Graded(answer, tuple(grades), second, sum(passing))

    cells: dict[tuple[str, str], dict[int, list[_Graded]]] = defaultdict(lambda: defaultdict(list))
    for each in await asyncio.gather(*map(graded, found)):
        cells[each.answer.task, each.answer.way][each.answer.question].append(each)
    tasks = dict.fromkeys(question.task.name for question in asked)
    rows = []
    for task in tasks:
        others = {name: cells.get((task, name)) for name in (small, large) if name is not None}
        for way in ways:
            if cell := cells.get((task, way)):
                beside = {name: other for name, other in others.items() if other and name != way}
                rows.append(_figure(task, way, cell, beside, large=large, seed=seed))
    return rows


def _figure(
    task: str,
    way: str,
    cell: _Cell,
    beside: Mapping[str, _Cell],
    *,
    large: str | None,
    seed: int,
) -> Figure:
    every = [each for graded in cell.values() for each in graded]
    quality = _quality([_worth(graded) for graded in cell.values()], seed)
    failed = sum(bool(each.answer.failed) for each in every)
    figure = Figure(task, way, len(cell), len(every), failed, quality)
    figure.also = _over(cell, "also", seed)
    figure.cost_usd = _over(cell, "cost", seed)
    figure.seconds = _over(cell, "seconds", seed)
    figure.first_s = _over(cell, "first_s", seed)
    figure.written = _over(cell, "written", seed)
    for name, other in beside.items():
        common = sorted(cell.keys() & other.keys())
        if common:
            ours, theirs = ([_worth(c[q]) for q in common] for c in (cell, other))
            figure.against[name] = compared(ours, theirs, seed=seed)
    if large is not None and large in beside:
        figure.cost_ratio = _ratio(cell, beside[large], "cost", seed)
        figure.seconds_ratio = _ratio(cell, beside[large], "seconds", seed)
    figure.decided = _decided(every)
    figure.pass_at = _pass_at(cell, seed)
    if figure.pass_at:
        figure.chances = estimate([_item(graded) for graded in cell.values()])
    return figure


def _item(graded: Sequence[_Graded]) -> Item:
    """A question's samples."""
    grades = [grade for each in graded for grade in each.grades]
    return Item(len(grades), int(sum(grades)), sum(each.passing for each in graded))


def _worth(graded: Sequence[_Graded]) -> float:
    return statistics.mean(each.worth for each in graded)


def _quality(worths: Sequence[float], seed: int) -> Estimate:
    """A bootstrap over questions that are all right, or all wrong, would know it for certain."""
    if all(worth in (0.0, 1.0) for worth in worths):
        return share(int(sum(worths)), len(worths))
    return mean(worths, seed=seed)


def _told(graded: Sequence[_Graded], name: str) -> float | None:
    """The mean of one number over a question's answers that did not fail."""
    values = [
        each.also if name == "also" else getattr(each.answer, name)
        for each in graded
        if not each.answer.failed or name == "also"
    ]
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _over(cell: _Cell, name: str, seed: int) -> Estimate | None:
    values = [value for graded in cell.values() if (value := _told(graded, name)) is not None]
    return mean(values, seed=seed) if values else None


def _ratio(cell: _Cell, other: _Cell, name: str, seed: int) -> Estimate | None:
    pairs = [
        (ours, theirs)
        for question in sorted(cell.keys() & other.keys())
        if (ours := _told(cell[question], name)) is not None
        and (theirs := _told(other[question], name)) is not None
    ]
    if not any(theirs for _, theirs in pairs):
        return None
    return ratio([a for a, _ in pairs], [b for _, b in pairs], seed=seed)


def _decided(every: Sequence[_Graded]) -> dict[str, Decided]:
    """By the kind of the last decision, and the model that it was for."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for each in every:
        if decisions := each.answer.farthing.get("switches"):
            last = decisions[-1]
            by_kind[f"{last['kind']}: {last['model']}"].append(each.worth)
    return {
        kind: Decided(len(worths), statistics.mean(worths))
        for kind, worths in sorted(by_kind.items())
    }


def _pass_at(cell: _Cell, seed: int) -> dict[int, Estimate]:
    """Unbiased, from answers that are right or wrong; of each question's all samples."""
    samples = {
        question: [grade for each in graded for grade in each.grades]
        for question, graded in cell.items()
    }
    least = min(map(len, samples.values()))
    single = all(len(each.grades) == 1 for graded in cell.values() for each in graded)
    binary = all(grade in (0.0, 1.0) for grades in samples.values() for grade in grades)
    if single or not binary:
        return {}
    return {
        k: mean([pass_at(k, len(g), int(sum(g))) for g in samples.values()], seed=seed)
        for k in range(1, least + 1)
    }


def show(found: Figures) -> None:
    """Of each task what it costs and what it is worth, how it compares, and what was decided."""
    console = Console()
    for task in dict.fromkeys(each.task for each in found):
        rows = [each for each in found if each.task == task]
        title = f"farthing bench policies: {task}, {rows[0].questions} questions"
        worth = [(row.way, *_worth_and_cost(row)) for row in rows]
        console.print(_table(title, ("quality", "USD", "of large", "tokens", "failed"), worth))
        others = tuple(dict.fromkeys(name for row in rows for name in row.against))
        heads = ("s", "of large", "first s", *(f"- {name}" for name in others))
        told = [(row.way, *_times(row), *(_difference(row, n) for n in others)) for row in rows]
        console.print(_table("time, and differences of quality", heads, told))
        for line in (line for row in rows for line in _lines(row)):
            console.print(line, highlight=False)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    table.add_column("way", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _worth_and_cost(row: Figure) -> tuple[str, ...]:
    return (
        _interval(row.quality),
        "" if row.cost_usd is None else f"{row.cost_usd.mean:.2e}",
        _short(row.cost_ratio),
        "" if row.written is None else f"{row.written.mean:.0f}",
        str(row.failed),
    )


def _times(row: Figure) -> tuple[str, ...]:
    return _short(row.seconds), _short(row.seconds_ratio), _short(row.first_s)


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"


def _short(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.mean:.2f}"


def _difference(row: Figure, name: str) -> str:
    if name not in row.against:
        return ""
    found = row.against[name]
    return f"{found.difference.mean:+.3f} p={found.p:.3f}"


def _lines(row: Figure) -> Iterator[str]:
    if row.also is not None:
        yield f"{row.way}: exact match {_interval(row.also)}"
    if row.decided:
        told = (f"{kind} {d.answers} ({d.quality:.3f})" for kind, d in row.decided.items())
        yield f"{row.way}: decided (quality): {', '.join(told)}"
    if row.pass_at:
        told = (f"@{k} {estimate.mean:.3f}" for k, estimate in row.pass_at.items())
        yield f"{row.way}: pass {', '.join(told)}"
    if row.chances is not None:
        yield f"{row.way}: for best_of_n: {row.chances}"
