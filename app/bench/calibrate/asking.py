"""Asks all questions in all ways, so that all share what the machine does; goes on where it was."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from app.bench.calibrate.keeping import append
from app.bench.calibrate.observed import Point
from app.bench.calibrate.points import way_of
from app.bench.calibrate.spending import Spending, Spent
from app.bench.grading import Question
from app.bench.ways import Answered, Sampled, Way, ask, checksum, described
from app.errors import ConfigError
from app.prompt_files import read_objects

_TURNS = 3  # requests of each client in one way before the level changes, at least
_HOPELESS = 3  # failures of a way, without an answer, after which it is asked no more
_BROKEN = 25  # failures in a row, of ways that have answered, after which nothing is asked any more
_PAUSES_S = (1, 2, 4, 8, 16, 30)  # where too much is asked at once: a window of a minute, and a bit

Key: TypeAlias = tuple[str, int, int, str, int, str, int, str]


@dataclass(frozen=True)
class Plan:
    """What is asked, and how."""

    points: tuple[Point, ...]
    questions: tuple[Question, ...]
    answers: Path  # JSONL
    best: str = ""  # the point that is asked first what is graded by its answers
    seeds: int = 1
    levels: tuple[int, ...] = (1, 4, 8)  # requests at once
    seed: int = 0
    sampled: Sampled = Sampled()


@dataclass(frozen=True)
class Job:
    """One request to come."""

    point: Point
    question: Question
    seed: int
    level: int

    def key(self, sampled: Sampled) -> Key:
        """By which its answer is found again: by all that it depends on."""
        task = self.question.task.name
        asked = described(way_of(self.point), sampled)
        place = task, self.question.number, self.seed, self.point.name, self.level
        return *place, self.point.digest, checksum(self.question), asked


@dataclass
class Kept:
    """An answer, and what it is of."""

    answer: Answered
    level: int
    digest: str  # of its point
    spent: int = 0  # 1e-12 USD, at most
    beside: float = 0.0  # requests that ran beside it, in the mean over its time
    met: int = 0  # that ran when it began

    @property
    def key(self) -> Key:
        of = self.answer
        return *of.key, self.level, self.digest, of.put, of.asked

    @property
    def line(self) -> dict[str, Any]:
        told = {
            "level": self.level,
            "digest": self.digest,
            "spent": self.spent,
            "beside": self.beside,
            "met": self.met,
        }
        return {**told, **asdict(self.answer)}


@dataclass(frozen=True)
class Group:
    """Jobs that are asked with one number of requests at once."""

    level: int
    jobs: Sequence[Job]


@dataclass
class Told:
    """How it went."""

    found: list[Kept] = field(default_factory=list)
    left: int = 0  # jobs that the budget did not pay for
    hopeless: dict[str, str] = field(default_factory=dict)  # ways that only failed, and why


def groups(plan: Plan) -> list[Group]:
    """All of it, in order. A question is asked with one seed at one level in all ways, so that ways
    can be compared in pairs; the levels go round the questions of each kind. Requests at once are
    of one way: what they take from each other is its own, and not that of the dearest ways beside
    it. Ways follow each other with the same questions, in an order of their own, and levels take
    turns: whatever the machine does beside it falls on all alike. What others' answers are graded
    by comes first, and then the fewest at once, which tell how long answers take."""
    shuffling = random.Random(plan.seed)
    rounds: dict[int, list[list[Job]]] = defaultdict(list)
    first: dict[int, list[Job]] = defaultdict(list)
    for question, seed, level in _rounds(plan):
        jobs = [Job(point, question, plan.seed + seed, level) for point in plan.points]
        if question.task.needs == "best" and seed == 0:
            first[level] += [job for job in jobs if job.point.name == plan.best]
            jobs = [job for job in jobs if job.point.name != plan.best]
        shuffling.shuffle(jobs)
        rounds[level].append(jobs)
    parts = [(level, part) for level, of in rounds.items() for part in _parts(level, of)]
    shuffling.shuffle(parts)
    fewest = min(parts, key=lambda part: part[0], default=None)
    parts.sort(key=lambda part: part is not fewest)
    found = [Group(level, jobs) for level, jobs in sorted(first.items()) if jobs]
    for level, part in parts:
        found += [Group(level, jobs) for jobs in _at_once(level, part)]
    return found


def _rounds(plan: Plan) -> list[tuple[Question, int, int]]:
    """Each question, with each seed, and its level."""
    met, kinds = Counter[str](), list(dict.fromkeys(one.task.name for one in plan.questions))
    found = []
    for question in plan.questions:
        kind = question.task.name
        turn = met[kind] + kinds.index(kind)
        met[kind] += 1
        for seed in range(plan.seeds):
            found.append((question, seed, plan.levels[(turn + seed) % len(plan.levels)]))
    random.Random(plan.seed).shuffle(found)
    return found


def _parts(level: int, rounds: Sequence[Sequence[Job]]) -> Iterator[Sequence[Sequence[Job]]]:
    """Of so many questions that as many clients are at work most of the time."""
    least, left = _TURNS * level, rounds
    while len(left) >= 2 * least:
        yield left[:least]
        left = left[least:]
    if left:
        yield left


def _at_once(level: int, rounds: Sequence[Sequence[Job]]) -> Iterable[list[Job]]:
    """What is asked by as many clients: one by one all of it, else way by way."""
    found: dict[str, list[Job]] = defaultdict(list)
    for jobs in rounds:
        for job in jobs:
            found["" if level == 1 else job.point.name].append(job)
    return found.values()


def read(path: Path) -> list[Kept]:
    """All that earlier runs have answered. Raises ValueError, naming file and line."""
    if not path.is_file() or not path.stat().st_size:
        return []
    return [_kept(path, number, line) for number, line in read_objects(path)]


def _kept(path: Path, number: int, line: dict[str, Any]) -> Kept:
    try:
        told = [line.pop(name) for name in ("level", "digest", "spent", "beside", "met")]
        return Kept(Answered(**line), *told)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}:{number}: is no answer of a calibration: {error}") from error


async def gather(
    http: httpx.AsyncClient,
    plan: Plan,
    spending: Spending,
    before: Sequence[Kept],
    advance: Callable[[int, str], object],
) -> Told:
    """The answers to all of it: those that are kept from `before`, and those that are asked for
    now. `advance` is told how many more are there, and what is being done.

    Raises httpx.ConnectError; OSError of the file of answers; ConfigError where requests fail all
    of a sudden.
    """
    asking = _Asking(http, plan, spending, _good(before), advance)
    for group in groups(plan):
        await asking.group(group)
    return asking.told


def known(plan: Plan, before: Sequence[Kept]) -> int:
    """How many of its answers are there already."""
    good = _good(before)
    jobs = (job for group in groups(plan) for job in group.jobs)
    return sum(job.key(plan.sampled) in good for job in jobs)


def _good(before: Sequence[Kept]) -> Mapping[Key, Kept]:
    return {kept.key: kept for kept in before if not kept.answer.failed}


async def patiently(
    http: httpx.AsyncClient,
    question: Question,
    way: Way,
    seed: int,
    sampled: Sampled,
    headers: Mapping[str, str],
) -> Answered:
    """As `ask`; asked again where it was too much at once, which says nothing of the way."""
    for pause in _PAUSES_S:
        answer = await ask(http, question, way, seed, sampled, headers)
        if not answer.failed.startswith("429"):
            return answer
        await asyncio.sleep(pause)
    return await ask(http, question, way, seed, sampled, headers)


class _Meter:
    """How many requests run beside one, in the mean over its time."""

    def __init__(self) -> None:
        self.running = 0
        self._sum, self._at = 0.0, time.monotonic()

    @contextmanager
    def beside(self) -> Iterator[Callable[[], float]]:
        """While one runs; what is told once it has ended."""
        began, before = self._now()
        self.running += 1
        ended = began, before
        try:
            yield lambda: max((ended[1] - before) / max(ended[0] - began, 1e-9) - 1, 0.0)
        finally:
            ended = self._now()
            self.running -= 1

    def _now(self) -> tuple[float, float]:
        """The time, and request-seconds until it."""
        now = time.monotonic()
        self._sum += self.running * (now - self._at)
        self._at = now
        return now, self._sum


class _Asking:
    """A gateway's clients."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        plan: Plan,
        spending: Spending,
        before: Mapping[Key, Kept],
        advance: Callable[[int, str], object],
    ) -> None:
        self._http, self._plan, self._before = http, plan, before
        self._spending, self._advance = spending, advance
        self.told = Told()
        self._meter = _Meter()
        self._failures = Counter[str]()  # of ways that have not answered yet
        there = {(point.name, point.digest) for point in plan.points}
        ways = ((kept.answer.way, kept.digest) for kept in before.values())
        self._answered = {way for way, digest in ways if (way, digest) in there}
        self._in_a_row = 0  # failures of ways that have answered
        self._under_way = 0
        self._over = False

    async def group(self, group: Group) -> None:
        waiting = []
        for job in group.jobs:
            kept = self._before.get(job.key(self._plan.sampled))
            if kept is None:
                waiting.append(job)
            else:
                self._note(kept)
        self._advance(0, f"{group.level} at once")
        queue = iter(waiting)
        apart = self._usual(group.jobs[0].point.name) / group.level
        try:
            async with asyncio.TaskGroup() as clients:
                for number in range(min(group.level, len(waiting))):
                    clients.create_task(self._client(queue, group.level, number * apart))
        except ExceptionGroup as several:
            raise several.exceptions[0] from several

    def _usual(self, way: str) -> float:
        """Seconds that its answers took so far, in the mean; 0 if there is none."""
        answers = (kept.answer for kept in self.told.found)
        took = [each.seconds for each in answers if each.way == way and each.seconds]
        return statistics.fmean(took) if took else 0.0

    async def _client(self, queue: Iterator[Job], level: int, wait: float) -> None:
        """`wait`: seconds. Requests that all begin together read their prompts together, so that
        each gets its first words late, as few do that come when they like."""
        await asyncio.sleep(wait)
        for job in queue:
            if job.point.name in self.told.hopeless:
                self._advance(1, "")
                continue
            try:
                if self._over:
                    raise Spent
                held = self._spending.hold(job.point.name, level - self._under_way)
            except Spent:
                self._over = True
                self.told.left += 1
                self._advance(1, "")
                continue
            self._under_way += 1
            try:
                await self._ask(job, held)
            finally:
                self._under_way -= 1

    async def _ask(self, job: Job, held: int) -> None:
        way, name, met = way_of(job.point), job.point.name, self._meter.running
        try:
            with self._meter.beside() as beside:
                answer = await patiently(
                    self._http,
                    job.question,
                    way,
                    job.seed,
                    self._plan.sampled,
                    self._spending.headers(held),
                )
        except asyncio.CancelledError:
            # It may have cost as much; the next run must know.
            self._keep(job, Answered(**_nothing(job, self._plan.sampled)), held, None, (0.0, met))
            raise
        refused = answer.failed[:1] == "4"  # before anything was made
        self._keep(job, answer, held, 0.0 if refused else answer.cost, (beside(), met))
        self._advance(1, "")
        if not answer.failed:
            self._in_a_row = 0
        elif name in self._answered:
            self._in_a_row += 1
            if self._in_a_row == _BROKEN:
                raise ConfigError(
                    f"{_BROKEN} requests in a row have failed, of ways that had answered, the last:"
                    f" {name}: {answer.failed}; once that is mended the same command goes on"
                )
        else:
            self._failures[name] += 1
            if self._failures[name] == _HOPELESS:
                self.told.hopeless[name] = answer.failed

    def _keep(
        self,
        job: Job,
        answer: Answered,
        held: int,
        cost: float | None,
        others: tuple[float, int],
    ) -> None:
        if answer.scarce and self._spending.most is not None:
            # It says what the rest of the budget is worth, not what the way is.
            self._over = True
            self.told.left += 1
            answer.failed = answer.failed or "the budget of the calibration cut it short"
        spent = self._spending.settle(job.point.name, held, cost)
        kept = Kept(answer, job.level, job.point.digest, spent, *others)
        append(self._plan.answers, kept.line)
        if not answer.scarce or self._spending.most is None:
            self.told.found.append(kept)
        if not answer.failed:
            self._answered.add(job.point.name)

    def _note(self, kept: Kept) -> None:
        self.told.found.append(kept)
        self._answered.add(kept.answer.way)
        self._advance(1, "")


def _nothing(job: Job, sampled: Sampled) -> dict[str, Any]:
    """Of an answer that nobody waited for."""
    return {
        "task": job.question.task.name,
        "question": job.question.number,
        "seed": job.seed,
        "way": job.point.name,
        "asked": described(way_of(job.point), sampled),
        "put": checksum(job.question),
        "failed": "the calibration was stopped",
    }
