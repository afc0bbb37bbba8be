"""How many tokens a second models of a running gateway write, by how many calls run at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import httpx
from rich.console import Console
from rich.table import Table

from app.errors import ConfigError
from app.estimates import Estimate, mean, ratio

_QUESTION = "Who keeps the lamp on the headland, and what is told of that in the village?"


@dataclass(frozen=True)
class Plan:
    """What is asked."""

    models: tuple[str, ...]  # or presets
    calls: tuple[int, ...] = (1, 2, 4, 8, 16)  # at once
    rounds: int = 5
    tokens: int = 64  # of each answer
    turns: int = 2  # answers of each client, one after the other


@dataclass(frozen=True)
class Point:
    model: str
    calls: int


@dataclass(frozen=True)
class Sample:
    """What one round found at a point."""

    tokens: int
    seconds: float  # from the first request to the last answer's end
    each: float  # seconds of one answer, mean

    @property
    def pace(self) -> float:
        """Tokens/s of all calls together."""
        return self.tokens / self.seconds


Round: TypeAlias = Mapping[Point, Sample]


@dataclass(frozen=True)
class Figures:
    """Of a point, over all rounds, with 95 % intervals."""

    pace: Estimate  # tokens/s of all calls together
    answer_s: Estimate  # seconds of one answer
    times: Mapping[str, Estimate]  # the pace, in that of each other model in the same round
    answer_times: Mapping[str, Estimate]  # likewise, the seconds of an answer


def run(url: str, plan: Plan, *, key: str | None = None, json_file: Path | None = None) -> None:
    """Ask the gateway at `url`, print, and write the figures to `json_file`.

    Every round asks all models with as many calls, one right after the other, and each round begins
    with another one. `key` is of an account there. Raises ConfigError where the gateway does not
    answer, or refuses.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def all_of_it() -> tuple[list[Round], list[str]]:
        async with httpx.AsyncClient(
            base_url=url.removesuffix("/v1"),
            headers=headers,
            timeout=600,
            limits=httpx.Limits(max_connections=None),
        ) as http:
            asking = Asking(http, plan, perf_counter)
            cards = await asking.cards()
            with Console(stderr=True).status("warming up") as status:
                return await rounds(asking, plan, status.update), cards

    try:
        found, cards = asyncio.run(all_of_it())
    except httpx.HTTPError as error:
        raise ConfigError(f"the gateway at {url}: {error or type(error).__name__}") from error
    measured = figures(found)
    _show(measured, plan)
    for line in pasted(measured, cards):
        print(line)
    if json_file is not None:
        rows = [{**asdict(point), **asdict(found)} for point, found in measured.items()]
        report = {"plan": asdict(plan), "figures": rows}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


class Asking:
    """A gateway's clients. No two prompts begin alike, so none is found in a cache."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        plan: Plan,
        clock: Callable[[], float],
    ) -> None:
        self._http, self._plan, self._clock = http, plan, clock
        self._asked = 0

    async def cards(self) -> list[str]:
        """Those of the plan's models that are no presets. Raises ConfigError."""
        kinds = {
            name: self._good(await self._http.get(f"/v1/models/{name}"))["farthing"]["kind"]
            for name in self._plan.models
        }
        return [name for name, kind in kinds.items() if kind == "model"]

    async def sample(self, point: Point) -> Sample:
        """So many clients at once, each of which asks again once it is answered."""
        began = self._clock()
        told = await asyncio.gather(*(self._client(point.model) for _ in range(point.calls)))
        took = self._clock() - began
        answers = [answer for client in told for answer in client]
        tokens = sum(count for count, _ in answers)
        return Sample(tokens, took, sum(seconds for _, seconds in answers) / len(answers))

    async def _client(self, model: str) -> list[tuple[int, float]]:
        """Tokens of each answer, and seconds."""
        answers = []
        for _ in range(self._plan.turns):
            self._asked += 1
            message = {"role": "user", "content": f"({self._asked}) {_QUESTION}"}
            body = {
                "model": model,
                "messages": [message],
                "max_tokens": self._plan.tokens,
                "ignore_eos": True,  # so that all answers are as long
                "temperature": 0,
            }
            began = self._clock()
            found = self._good(await self._http.post("/v1/chat/completions", json=body))
            written = found["usage"]["completion_tokens"]
            if not written:
                raise ConfigError(f"{model} wrote nothing")
            answers.append((written, self._clock() - began))
        return answers

    def _good(self, answer: httpx.Response) -> Any:
        if answer.is_error:
            raise ConfigError(f"the gateway answered {answer.status_code}: {answer.text[:300]}")
        return answer.json()


async def rounds(asking: Asking, plan: Plan, told: Callable[[str], object]) -> list[Round]:
    """All samples; `told` is told which round it is."""
    for model in plan.models:
        await asking.sample(Point(model, max(plan.calls)))  # warm
    found: list[Round] = []
    for number in range(plan.rounds):
        told(f"round {number + 1} of {plan.rounds}")
        found.append({point: await asking.sample(point) for point in points(plan, number)})
    return found


def points(plan: Plan, number: int) -> list[Point]:
    """All of them, in the order of this round: who is first is last in the next one."""
    first = number % len(plan.models)
    models = (*plan.models[first:], *plan.models[:first])
    return [Point(model, calls) for calls in plan.calls for model in models]


def figures(found: Sequence[Round]) -> dict[Point, Figures]:
    """What these rounds say of each point. Raises ValueError for none."""
    measured = {}
    for point in sorted(found[0], key=lambda each: (each.calls, each.model)):
        samples = [one[point] for one in found]
        others = [p for p in found[0] if p.calls == point.calls and p != point]
        measured[point] = Figures(
            ratio([float(s.tokens) for s in samples], [s.seconds for s in samples]),
            mean([s.each for s in samples]),
            {o.model: mean([one[point].pace / one[o].pace for one in found]) for o in others},
            {o.model: mean([one[point].each / one[o].each for one in found]) for o in others},
        )
    return measured


def pasted(measured: Mapping[Point, Figures], cards: Sequence[str]) -> Iterator[str]:
    """The lines that these models' tables in farthing.toml take."""
    for name in cards:
        table = {p.calls: f.pace.mean for p, f in measured.items() if p.model == name}
        cells = ", ".join(f"{calls} = {table[calls]:.4g}" for calls in sorted(table))
        yield f"[models.{name}]"
        yield f"throughput = {{ {cells} }}"


def _show(measured: Mapping[Point, Figures], plan: Plan) -> None:
    first = plan.models[0]
    table = Table(title=f"{plan.rounds} rounds, {plan.tokens} tokens an answer; 95 % intervals")
    heads = ("calls", "model", "tokens/s in all", f"times {first}", "seconds an answer")
    for column in heads:
        table.add_column(column, justify="left" if column == "model" else "right")
    for calls in plan.calls:
        for model in plan.models:
            found = measured[Point(model, calls)]
            times = str(found.times[first]) if first in found.times else ""
            pace = f"{found.pace.mean:.4g} ({found.pace.low:.4g} to {found.pace.high:.4g})"
            table.add_row(str(calls), model, pace, times, str(found.answer_s))
    Console(width=110).print(table)
