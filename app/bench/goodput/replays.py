"""Asks a gateway what a window of a trace demands, in every way in turn; goes on where it was."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from app.bench.goodput.arrivals import window
from app.bench.goodput.demands import Slo, Wanted, wanted
from app.bench.grading import Question
from app.bench.ways import Answered, Sampled, Way, ask, checksum, described
from app.errors import ConfigError
from app.prompt_files import read_objects

_SAMPLED = Sampled()  # greedy
_SEEDS_APART = 1_000_000  # of sampling, of two windows: more than either has requests
_WARMING = 8  # tokens of an answer that does not count
_READERS = 8  # of explanations, at once
_TRIES = 8
_PAUSE_S = 0.5


@dataclass(frozen=True)
class Plan:
    """What is replayed, and how."""

    ways: tuple[Way, ...]
    auto: str  # the way that the others are compared with
    trace: Sequence[float]  # seconds
    questions: tuple[Question, ...]
    slos: tuple[Slo, ...]
    requests: int  # of a window
    rate: float  # requests/s on average
    seeds: int  # windows
    seed: int  # of the first
    answers: Path  # JSONL

    def windows(self) -> Iterator[tuple[int, list[Wanted]]]:
        """The requests of each seed. Raises ValueError, as `window`."""
        for seed in range(self.seed, self.seed + self.seeds):
            arrivals = window(self.trace, self.requests, self.rate, seed)
            yield seed, wanted(arrivals, self.questions, self.slos, seed)

    def order(self, seed: int) -> list[Way]:
        """In which the ways take their turns."""
        ways = [*self.ways]
        random.Random(f"order {seed}").shuffle(ways)
        return ways


@dataclass(frozen=True)
class Kept:
    """What came of one request."""

    seed: int
    number: int
    replay: str  # which one it is part of
    digest: str  # what that is
    lag: float  # seconds after its time at which it was sent
    answer: Answered
    explained: Mapping[str, Any] | None  # by the gateway's log of decisions, where it keeps one

    @property
    def way(self) -> str:
        return self.answer.way

    def as_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


Replay: TypeAlias = tuple[int, str]  # a seed, and the name of a way


def digest(way: Way, window: Sequence[Wanted]) -> str:
    """What a replay's answers depend on, in few letters."""
    told = [
        (round(one.at, 9), checksum(one.question), one.question.number, one.slo.headers)
        for one in window
    ]
    text = json.dumps([described(way, _SAMPLED), told])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(path: Path, requests: int) -> dict[tuple[int, str, str], list[Kept]]:
    """The whole replays of earlier runs, by seed, way and digest. Raises ValueError, naming file
    and line."""
    if not path.is_file() or not path.stat().st_size:
        return {}
    parts = defaultdict[str, list[Kept]](list)
    for place, line in read_objects(path):
        try:
            kept = Kept(**{**line, "answer": Answered(**line["answer"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}:{place}: is no answer of a replay: {error}") from error
        parts[kept.replay].append(kept)
    whole = [part for part in parts.values() if len({one.number for one in part}) == requests]
    return {(part[0].seed, part[0].way, part[0].digest): part for part in whole}


async def gather(
    http: httpx.AsyncClient, plan: Plan, advance: Callable[[int, str], object]
) -> dict[Replay, list[Kept]]:
    """The answers to all windows in all ways, those of earlier runs included; in the order of their
    numbers. `advance` is told how many more there are, and whose turn it is.

    Raises ConfigError where a way is refused at once, ValueError as `read` and `window`, OSError,
    httpx.ConnectError.
    """
    before, found = read(plan.answers, plan.requests), dict[Replay, list[Kept]]()
    todo = list[tuple[int, Way, list[Wanted]]]()
    for seed, requests in plan.windows():
        for way in plan.order(seed):
            kept = before.get((seed, way.name, digest(way, requests)))
            if kept is None:
                todo.append((seed, way, requests))
            else:
                found[seed, way.name] = sorted(kept, key=lambda one: one.number)
                advance(len(kept), "")
    waiting = {way.name for _, way, _ in todo}
    for way in plan.ways:
        if way.name in waiting:
            await _warm_up(http, way, plan)
    for seed, way, requests in todo:
        advance(0, f"seed {seed}: {way.name}")
        part = await _replay(http, seed, way, requests, advance)
        _keep(plan.answers, part)
        found[seed, way.name] = part
    return found


async def _warm_up(http: httpx.AsyncClient, way: Way, plan: Plan) -> None:
    """One request that does not count: what is loaded and compiled at the first one is there."""
    question = plan.questions[0]
    short = replace(question, task=replace(question.task, max_tokens=_WARMING))
    answer = await ask(http, short, way, plan.seed - 1, _SAMPLED)
    if answer.failed:
        raise ConfigError(f"{way.name} does not answer: {answer.failed}")


async def _replay(
    http: httpx.AsyncClient,
    seed: int,
    way: Way,
    requests: Sequence[Wanted],
    advance: Callable[[int, str], object],
) -> list[Kept]:
    """All of a window, each request at its time whether the ones before are answered or not."""
    name, of = uuid.uuid4().hex, digest(way, requests)
    began = time.perf_counter()

    async def one(wanted: Wanted) -> tuple[float, Answered]:
        await asyncio.sleep(began + wanted.at - time.perf_counter())
        lag = time.perf_counter() - began - wanted.at
        headers = {**wanted.slo.headers, "X-Request-Id": f"{name}-{wanted.number}"}
        drawn = seed * _SEEDS_APART + wanted.number
        answer = await ask(http, wanted.question, way, drawn, _SAMPLED, headers)
        advance(1, "")
        return lag, answer

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(each)) for each in requests]
    except ExceptionGroup as several:
        raise several.exceptions[0] from several
    answers = [task.result() for task in tasks]
    told = await _explained(http, [f"{name}-{each.number}" for each in requests])
    return [
        Kept(seed, each.number, name, of, lag, answer, explained)
        for each, (lag, answer), explained in zip(requests, answers, told, strict=True)
    ]


async def _explained(http: httpx.AsyncClient, ids: Sequence[str]) -> list[Mapping[str, Any] | None]:
    """What the gateway's log says of these requests; None: it does not keep it. Of what was refused
    it says so a while later."""
    places, told = asyncio.Semaphore(_READERS), dict[str, Mapping[str, Any]]()

    async def one(id: str) -> int:
        async with places:
            answer = await http.get(f"/v1/decisions/{id}")
        if answer.is_success:
            told[id] = _short(answer.json())
        return answer.status_code

    for turn in range(_TRIES):
        if turn:
            await asyncio.sleep(_PAUSE_S)
        found = await asyncio.gather(*(one(id) for id in ids if id not in told))
        if httpx.codes.NOT_FOUND not in found:
            break
    return [told.get(id) for id in ids]


def _short(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is asked of it here."""
    return {
        "outcome": document["outcome"],
        "usd": document["cost"]["usd"],
        "way": document["plan"].get("way"),
        "times": document["times"],
    }


def _keep(path: Path, replay: Sequence[Kept]) -> None:
    with path.open("ab", buffering=0) as file:
        # A replay that is not whole is made again, so its lines may be.
        for kept in replay:
            file.write(kept.as_line().encode())
