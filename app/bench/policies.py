"""What whole-request strategies give and cost, beside a small and a large model alone."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from app.bench.grading import Question, questions
from app.bench.policy_report import Figures, figures, show
from app.bench.ways import Answered, Sampled, Way, ask, checksum, described
from app.errors import ConfigError
from app.prompt_files import read_objects

_MOST_S = 1800  # between two bytes of an answer


@dataclass(frozen=True)
class Plan:
    """What is asked in which ways, and how."""

    ways: tuple[Way, ...]
    tasks: Mapping[str, Path]  # their files, JSONL
    small: str | None = None  # the ways that the others are compared with
    large: str | None = None
    limit: int = 60  # questions of each task
    seed: int = 0  # of the questions drawn, of their order and of the bootstrap
    seeds: int = 1  # of sampling: how often each question is asked in each way
    together: int = 4  # requests
    sampled: Sampled = Sampled()
    answers: Path | None = None  # JSONL: what was answered is kept there, and not asked again


@dataclass(frozen=True)
class Job:
    """One request to come."""

    question: Question
    way: Way
    seed: int

    @property
    def key(self) -> tuple[str, int, int, str]:
        return self.question.task.name, self.question.number, self.seed, self.way.name


def drawn(plan: Plan) -> list[Question]:
    """The questions of all tasks: with a higher limit the same ones, and more. Raises as
    `grading.questions`."""
    found = []
    for task, path in plan.tasks.items():
        every = questions(task, path)
        random.Random(plan.seed).shuffle(every)
        found += every[: plan.limit]
    return found


def jobs(plan: Plan, asked: Sequence[Question]) -> Iterator[Job]:
    """In order: all ways of a question follow each other, in an order of their own, so that what
    the machine does beside it falls on all of them alike."""
    rounds = [(question, seed) for question in asked for seed in range(plan.seeds)]
    shuffling = random.Random(plan.seed)
    shuffling.shuffle(rounds)
    for question, seed in rounds:
        ways = [way for way in plan.ways if question.examples or not way.by_example]
        shuffling.shuffle(ways)
        for way in ways:
            yield Job(question, way, plan.seed + seed)


def kept(plan: Plan) -> dict[tuple[str, int, int, str], Answered]:
    """What an earlier run has answered. Raises ConfigError where a way was another then."""
    if plan.answers is None or not plan.answers.is_file() or not plan.answers.stat().st_size:
        return {}
    ways, found = {way.name: described(way, plan.sampled) for way in plan.ways}, {}
    for number, line in read_objects(plan.answers):
        answer = Answered(**line)
        if ways.get(answer.way, answer.asked) != answer.asked:
            raise ConfigError(
                f"{plan.answers}:{number}: {answer.way} was another way then: {answer.asked};"
                " give this one another name, or the answers another file"
            )
        if not answer.failed:
            found[answer.key] = answer
    return found


async def gather(http: httpx.AsyncClient, plan: Plan, to_come: Sequence[Job]) -> list[Answered]:
    """The answers to all of it. Raises httpx.ConnectError; OSError of the file of answers."""
    before, found, waiting = kept(plan), list[Answered](), list[Job]()
    for job in to_come:
        answer = before.get(job.key)
        if answer is not None and answer.put == checksum(job.question):
            found.append(answer)
        else:
            waiting.append(job)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("asking", total=len(to_come), completed=len(found))
        queue = iter(waiting)

        async def client() -> None:
            for job in queue:
                answer = await ask(http, job.question, job.way, job.seed, plan.sampled)
                found.append(answer)
                _keep(plan, answer)
                bar.advance(shown)

        await asyncio.gather(*(client() for _ in range(plan.together)))
    return found


def _keep(plan: Plan, answer: Answered) -> None:
    if plan.answers is not None:
        with plan.answers.open("ab", buffering=0) as file:
            # In one write: a run that is killed leaves whole lines.
            file.write(answer.as_line().encode())


async def measure(http: httpx.AsyncClient, plan: Plan) -> Figures:
    """Ask and judge all of it."""
    names = [way.name for way in plan.ways]
    for name in filter(None, (*names, plan.small, plan.large)):
        if names.count(name) != 1:
            raise ConfigError(f"there must be one way {name!r}, not {names.count(name)}")
    asked = drawn(plan)
    found = await gather(http, plan, list(jobs(plan, asked)))
    return await figures(found, asked, names, small=plan.small, large=plan.large, seed=plan.seed)


def run(url: str, plan: Plan, *, key: str | None = None, json_file: Path | None = None) -> None:
    """Ask the gateway at `url`, print the figures and write them.

    `key` is of an account there. Raises ConfigError where the gateway does not answer, or a
    file cannot be read or written.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def all_of_it() -> Figures:
        base = url.removesuffix("/v1")
        timeout = httpx.Timeout(_MOST_S, connect=10)
        limits = httpx.Limits(max_connections=plan.together)
        async with httpx.AsyncClient(
            base_url=base, headers=headers, timeout=timeout, limits=limits
        ) as http:
            return await measure(http, plan)

    try:
        found = asyncio.run(all_of_it())
    except httpx.HTTPError as error:
        raise ConfigError(f"the gateway at {url}: {error or type(error).__name__}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    show(found)
    if json_file is not None:
        said = {"url": url, **json.loads(json.dumps(asdict(plan), default=str))}
        report = {"plan": said, "figures": [asdict(each) for each in found]}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
