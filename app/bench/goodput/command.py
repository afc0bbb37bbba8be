"""farthing bench goodput: replays a trace in every way, on a gateway of its own or another one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from app.bench import items
from app.bench.calibrate.serving import gateway
from app.bench.folders import alone_in
from app.bench.goodput import demands, replays, report
from app.bench.goodput.arrivals import read_trace, unevenness
from app.bench.goodput.demands import Slo
from app.bench.goodput.figures import figures
from app.bench.goodput.outcomes import Outcome, outcomes
from app.bench.grading import Question
from app.bench.ways import Way
from app.errors import ConfigError

_MOST_S = 1800  # between two bytes of an answer
_CHOOSE = ("planner", "route")  # presets that choose among others


@dataclass(frozen=True)
class Wishes:
    """What is to be replayed, and how."""

    trace: Path
    config: Path  # the fleet, of a gateway of its own
    out: Path  # a folder
    ways: tuple[Way, ...] = ()  # none: every model and preset
    auto: Way = Way("auto", "auto")
    tasks: Mapping[str, Path] = field(default_factory=dict)  # none: the questions that we ship
    slos: tuple[Slo, ...] = demands.DEFAULT
    requests: int = 100
    rate: float = 1.0
    seeds: int = 3
    seed: int = 0
    max_tokens: int = 64
    right: float = 0.5
    url: str | None = None  # None: a gateway of its own
    key: str | None = None

    @property
    def answers(self) -> Path:
        return self.out / "answers.jsonl"


def run(wishes: Wishes) -> None:
    """All of it. What earlier runs into the same folder have replayed is not replayed again.

    Raises ConfigError for what cannot be, where the gateway does not answer or start, and for files
    that cannot be read or written.
    """
    console = Console(stderr=True)
    names = [slo.name for slo in wishes.slos]
    if len(set(names)) < len(names):
        raise ConfigError(f"--slo: each class once, not {', '.join(names)}")
    try:
        trace, asked = read_trace(wishes.trace), _questions(wishes, console)
        with alone_in(wishes.out):
            with _serving(wishes, console) as url:
                plan, found = asyncio.run(_measured(url, wishes, trace, asked, console))
            rows = figures(found, plan.auto, wishes.seed)
            report.write(rows, found, plan.auto, _said(wishes, plan), wishes.out)
    except KeyboardInterrupt:
        console.print(
            f"\nstopped; whole replays are in {wishes.out}/, and the same command goes on from"
            " there",
            soft_wrap=True,
        )
        raise
    except httpx.HTTPError as error:
        raise ConfigError(f"the gateway: {error or type(error).__name__}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _questions(wishes: Wishes, console: Console) -> tuple[Question, ...]:
    """Those that a reference grades, with answers of so many tokens at most."""
    every = [one for kind, path in wishes.tasks.items() for one in items.read(kind, path)]
    asked, why = items.gradable(every or items.shipped())
    if why:
        console.print(f"code is not asked for, as it cannot be graded here: {why}")
    asked = [one for one in asked if not one.task.needs]
    if not asked:
        raise ConfigError("--task: no question has a reference by which its answer is graded")
    return tuple(
        replace(one, task=replace(one.task, max_tokens=min(one.task.max_tokens, wishes.max_tokens)))
        for one in asked
    )


@contextmanager
def _serving(wishes: Wishes, console: Console) -> Iterator[str]:
    if wishes.url:
        yield wishes.url
        return
    state = wishes.out.resolve() / "gateway"
    state.mkdir(exist_ok=True)
    settings = {
        "state_dir": str(state),
        "ledger": f"sqlite:///{state / 'ledger.db'}",
        "decisions_keep_s": "86400",  # what was expected is read there
    }
    log = wishes.out / "gateway.log"
    with ExitStack() as stack:
        with console.status(f"starting a gateway, whose models take a while to load ({log})"):
            url = stack.enter_context(gateway(wishes.config, log, settings))
        yield url


async def _measured(
    url: str,
    wishes: Wishes,
    trace: Sequence[float],
    asked: tuple[Question, ...],
    console: Console,
) -> tuple[replays.Plan, list[Outcome]]:
    headers = {"Authorization": f"Bearer {wishes.key}"} if wishes.key else {}
    timeout = httpx.Timeout(_MOST_S, connect=10)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    async with httpx.AsyncClient(
        base_url=url.removesuffix("/v1"), headers=headers, timeout=timeout, limits=limits
    ) as http:
        plan = replays.Plan(
            ways=await _ways(http, wishes),
            auto=wishes.auto.name,
            trace=trace,
            questions=asked,
            slos=wishes.slos,
            requests=wishes.requests,
            rate=wishes.rate,
            seeds=wishes.seeds,
            seed=wishes.seed,
            answers=wishes.answers,
        )
        console.print(_long(plan), soft_wrap=True)
        with Progress(*columns, console=console) as bar:
            total = len(plan.ways) * plan.seeds * plan.requests
            shown = bar.add_task("replaying", total=total)

            def advance(more: int, turn: str) -> None:
                bar.update(shown, advance=more, description=turn or None)

            found = await replays.gather(http, plan, advance)
            bar.update(shown, description="grading")
            return plan, await outcomes(found, dict(plan.windows()), right=wishes.right)


def _long(plan: replays.Plan) -> str:
    """How much there is to do, if nothing of it is done."""
    replayed = len(plan.ways) * plan.seeds
    minutes = replayed * (plan.requests - 1) / plan.rate / 60
    return (
        f"{replayed} replays of {plan.requests} requests: about {minutes:.0f} minutes, and what the"
        " last answers of each take"
    )


async def _ways(http: httpx.AsyncClient, wishes: Wishes) -> tuple[Way, ...]:
    """Those that were named, and `auto`. Raises ConfigError where two have the same name."""
    named = list(wishes.ways) or await _served(http)
    names = [way.name for way in (wishes.auto, *named)]
    if len(set(names)) < len(names):
        raise ConfigError(f"--way: each name once, not {', '.join(names)}")
    return (wishes.auto, *named)


async def _served(http: httpx.AsyncClient) -> list[Way]:
    """Every model that writes and every preset that does not choose among others."""
    answer = await http.get("/v1/models")
    if answer.is_error:
        raise ConfigError(f"the gateway: {answer.status_code}: {answer.text[:300]}")
    found = []
    for entry in answer.json()["data"]:
        told = entry["farthing"]
        if told.get("policy") not in _CHOOSE and told.get("embeds") != "only":
            found.append(Way(entry["id"], entry["id"]))
    return found


def _said(wishes: Wishes, plan: replays.Plan) -> dict[str, Any]:
    """What was asked for, for the report. Files are told by their names."""
    said = json.loads(json.dumps(asdict(wishes), default=str))
    for name in ("key", "config", "out", "trace"):
        said.pop(name)
    windows = dict(plan.windows())
    return {
        **said,
        "trace": wishes.trace.name,
        "fleet": "" if wishes.url else wishes.config.name,
        "tasks": {kind: path.name for kind, path in wishes.tasks.items()},
        "ways": [asdict(way) for way in plan.ways],
        "order": {seed: [way.name for way in plan.order(seed)] for seed in windows},
        "unevenness": {
            seed: round(unevenness([one.at for one in of]), 3) for seed, of in windows.items()
        },
    }
