"""One calibration, from questions to a profile and a report."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from app.bench import items
from app.bench.calibrate import asking, graded, runtimes
from app.bench.calibrate.asking import Kept, Told
from app.bench.calibrate.graded import Graded, Judge
from app.bench.calibrate.keeping import mend
from app.bench.calibrate.observed import Observed, Point
from app.bench.calibrate.points import best, chosen, probes
from app.bench.calibrate.serving import gateway
from app.bench.calibrate.spending import Spending
from app.bench.grading import Need, Question
from app.bench.ways import FIRST_TOKENS, Sampled
from app.catalog import Catalog, read
from app.errors import ConfigError
from app.profile import Runtime
from app.prompt_features import text_of
from app.prompt_files import read_objects

_MOST_S = 1800  # between two bytes of an answer
_QUICK_TOKENS = 64  # of an answer, at most
PROBE_LEVEL = 4
LOG = "gateway.log"


@dataclass(frozen=True)
class Wishes:
    """What is to be measured, and how."""

    config: Path  # the fleet
    ours: bool  # whether that is the file which comes with Farthing
    out: Path  # a folder
    tasks: Mapping[str, Path] = field(default_factory=dict)  # by kind; none: those that we ship
    presets: tuple[str, ...] = ()  # and models, and settings; none: all
    dials: int | None = None  # settings of each dial beside the preset's own, at most; None: all,
    # quickly 0
    limit: int | None = None  # questions of each kind
    seeds: int = 1
    levels: tuple[int, ...] = (1, 4, 8)
    seed: int = 0
    temperature: float = 0.0
    usd: int | None = None  # 1e-12, of all runs into this folder together
    judge: str | None = None
    quick: bool = False
    url: str | None = None  # None: a gateway of its own
    key: str | None = None

    @property
    def most(self) -> int | None:
        """Settings of each dial."""
        return 0 if self.quick and self.dials is None else self.dials

    @property
    def answers(self) -> Path:
        return self.out / "answers.jsonl"

    @property
    def first_tokens(self) -> Path:
        return self.out / "first_tokens.jsonl"

    @property
    def opinions(self) -> Path:
        return self.out / "opinions.jsonl"

    @property
    def runtimes(self) -> Path:
        return self.out / "runtimes.jsonl"


@dataclass
class Measured:
    """All that a calibration has found."""

    points: list[Point]
    best: str
    graded: Graded
    told: Told
    texts: Mapping[str, str]
    runtimes: Mapping[str, Runtime]
    spent: int  # 1e-12 USD
    needs: Mapping[str, Need]  # by kind

    @property
    def found(self) -> list[Observed]:
        return self.graded.found


@dataclass(frozen=True)
class _Work:
    """What there is to do, in this order."""

    plan: asking.Plan
    probing: asking.Plan
    alone: Sequence[Point]  # models, for their runtimes
    grid: runtimes.Grid

    @property
    def total(self) -> int:
        plans = (self.plan, self.probing)
        asked = sum(len(group.jobs) for plan in plans for group in asking.groups(plan))
        return asked + len(self.alone) * self.grid.rounds * len(self.grid.lengths)

    def __str__(self) -> str:
        """What there is to do, to people."""
        plan = self.plan
        known = sum(asking.known(one, asking.read(one.answers)) for one in (plan, self.probing))
        before = f", {known:,} of them answered before" if known else ""
        return (
            f"{len(plan.points)} ways to answer, {len(plan.questions)} questions, seeds:"
            f" {plan.seeds}: {self.total:,} requests with those of each model alone{before}"
        )


def measure(wishes: Wishes, console: Console) -> Measured:
    """Ask, and grade. What earlier runs into the same folder have asked is not asked again.

    Raises ConfigError for what cannot be measured, where the gateway does not answer or start, and
    for files that cannot be read or written.
    """
    catalog = read(wishes.config)
    found = chosen(catalog, wishes.presets, wishes.most)
    by, names = best(catalog, found), {point.preset for point in found}
    try:
        every = _questions(wishes)
        asked, why = items.gradable(_drawn(wishes, every))
        if why:
            console.print(f"code is not asked for, as it cannot be graded here: {why}")
        for path in (wishes.answers, wishes.first_tokens, wishes.opinions, wishes.runtimes):
            mend(path)
        work, spending = _work(wishes, catalog, found, by, asked), _spending(wishes)
        console.print(str(work), highlight=False, soft_wrap=True)
        with _serving(wishes, console) as url:
            done = _asked(url, wishes, work, spending, names, console)
            told, model_times, marks = asyncio.run(done)
    except httpx.HTTPError as error:
        where = "" if wishes.url else f"; what it said is in {wishes.out / LOG}"
        raise ConfigError(f"the gateway: {error or type(error).__name__}{where}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    texts = {f"{one.task.name}/{one.number}": text_of(one.messages) for one in every}
    needs = {one.task.name: one.task.needs for one in asked}
    return Measured(found, by.name, marks, told, texts, model_times, spending.spent, needs)


@contextmanager
def _serving(wishes: Wishes, console: Console) -> Iterator[str]:
    if wishes.url:
        yield wishes.url
        return
    log = wishes.out / LOG
    with ExitStack() as stack:
        with console.status(f"starting a gateway, whose models take a while to load ({log})"):
            url = stack.enter_context(gateway(wishes.config, log))
        yield url


def _questions(wishes: Wishes) -> list[Question]:
    judged = wishes.judge is not None
    if not wishes.tasks:
        return items.shipped(judged=judged)
    tasks = wishes.tasks.items()
    return [one for kind, path in tasks for one in items.read(kind, path, judged=judged)]


def _drawn(wishes: Wishes, every: Sequence[Question]) -> list[Question]:
    """With a higher limit the same ones, and more. Quickly: the shortest ones, cut short."""
    kinds: dict[str, list[Question]] = {}
    for one in every:
        kinds.setdefault(one.task.name, []).append(one)
    found = []
    for of in kinds.values():
        random.Random(wishes.seed).shuffle(of)
        if wishes.quick:
            of = sorted((_short(one) for one in of), key=_length)
        found += of[: wishes.limit]
    return found


def _length(question: Question) -> tuple[int, int]:
    return question.task.max_tokens, len(text_of(question.messages))


def _short(question: Question) -> Question:
    tokens = min(question.task.max_tokens, _QUICK_TOKENS)
    return replace(question, task=replace(question.task, max_tokens=tokens))


def _work(
    wishes: Wishes, catalog: Catalog, found: list[Point], by: Point, asked: list[Question]
) -> _Work:
    plan = asking.Plan(
        points=tuple(found),
        questions=tuple(asked),
        answers=wishes.answers,
        best=by.name,
        seeds=wishes.seeds,
        levels=wishes.levels,
        seed=wishes.seed,
        sampled=Sampled(wishes.temperature),
    )
    heads = [replace(one, task=replace(one.task, max_tokens=FIRST_TOKENS)) for one in asked]
    probing = replace(
        plan,
        points=tuple(probes(catalog, found)),
        questions=tuple(heads),
        answers=wishes.first_tokens,
        best="",
        seeds=1,
        levels=(PROBE_LEVEL,),
    )
    alone = [point for point in found if point.policy == "direct"]
    return _Work(plan, probing, alone, runtimes.QUICK if wishes.quick else runtimes.Grid())


def _spending(wishes: Wishes) -> Spending:
    """With what all runs into this folder have spent. Raises ValueError."""
    spending = Spending(wishes.usd, file=wishes.out / "held.json")
    for kept in (*asking.read(wishes.answers), *asking.read(wishes.first_tokens)):
        spending.spent += kept.spent
        spending.know(kept.answer.way, kept.spent)
    spending.spent += sum(sample.spent for sample in runtimes.read(wishes.runtimes))
    if wishes.opinions.is_file():
        spending.spent += sum(line.get("spent", 0) for _, line in read_objects(wishes.opinions))
    return spending


async def _asked(
    url: str,
    wishes: Wishes,
    work: _Work,
    spending: Spending,
    names: set[str],
    console: Console,
) -> tuple[Told, dict[str, Runtime], Graded]:
    headers = {"Authorization": f"Bearer {wishes.key}"} if wishes.key else {}
    timeout = httpx.Timeout(_MOST_S, connect=10)
    limits = httpx.Limits(max_connections=None)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    async with httpx.AsyncClient(
        base_url=url.removesuffix("/v1"), headers=headers, timeout=timeout, limits=limits
    ) as http:
        await _check(http, wishes, names)
        with Progress(*columns, console=console) as bar, closing(spending):
            shown = bar.add_task("asking", total=work.total)

            def advance(more: int, level: str) -> None:
                bar.update(shown, advance=more, description=f"asking, {level}" if level else None)

            before = asking.read(wishes.answers)
            told = await asking.gather(http, work.plan, spending, before, advance)
            before = asking.read(wishes.first_tokens)
            heads = await asking.gather(http, work.probing, spending, before, advance)
            bar.update(shown, description="each model alone")
            times = await runtimes.measure(
                http,
                work.alone,
                work.grid,
                spending,
                wishes.runtimes,
                lambda more: bar.advance(shown, more),
            )
            grading = bar.add_task("grading", total=len(told.found))
            judge = wishes.judge and Judge(wishes.judge, http, spending, wishes.opinions)
            marks = await graded.grade(
                told.found,
                work.plan.questions,
                best=work.plan.best,
                seed=wishes.seed,
                judge=judge or None,
                advance=lambda more: bar.advance(grading, more),
            )
    told.left += heads.left
    marks.found = [*_with_entropies(marks.found, heads.found)]
    return told, times, marks


async def _check(http: httpx.AsyncClient, wishes: Wishes, names: set[str]) -> None:
    """Raises ConfigError where the gateway lacks what the file has."""
    answer = await http.get("/v1/models")
    if answer.is_error:
        named = ": FARTHING_API_KEY" if answer.status_code == httpx.codes.UNAUTHORIZED else ""
        raise ConfigError(f"the gateway{named}: {answer.status_code}: {answer.text[:300]}")
    entries = answer.json()["data"]
    there = {entry["id"] for entry in entries}
    there |= {alias for entry in entries for alias in entry["farthing"].get("aliases", ())}
    wanted = names | ({wishes.judge} if wishes.judge else set())
    if missing := sorted(wanted - there):
        raise ConfigError(
            f"the gateway at {wishes.url or 'work'} does not serve {', '.join(missing)}:"
            f" name its own file with --config, not {wishes.config}"
        )


def _with_entropies(found: Sequence[Observed], heads: Sequence[Kept]) -> list[Observed]:
    """What a model's first tokens tell, beside its own answer to the same question."""
    bits = {
        (each.answer.way, f"{each.answer.task}/{each.answer.question}"): statistics.mean(
            each.answer.entropies
        )
        for each in heads
        if each.answer.entropies and not each.answer.failed
    }
    return [
        replace(each, entropy=bits.get((each.way, each.question), each.entropy)) for each in found
    ]
