"""What entropy switching buys: a curve, beside each model alone on the same money."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.bench.reading import Measured, Weights
from app.bench.tasks import SQUAD, answers_of, f1, read_questions, squad_prompt
from app.engines.embedded.worker import spare_threads
from app.errors import ConfigError
from app.estimates import mean, ratio
from app.prompt_files import read_prompts

_TOGETHER = 4  # requests at once
_WAYS = ("switching", "small_alone", "large_alone")


@dataclass(frozen=True)
class Plan:
    """What is asked, and how the policy is set."""

    small: str
    large: str
    raise_at: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)  # bits
    lower: float = 0.5  # lower_at as a share of raise_at
    prompts: Path | None = None  # JSONL: agreement and likelihood
    squad: Path | None = None  # JSONL: the task
    limit: int = 60  # lines of each file
    tokens: int = 96  # of each answer
    seed: int = 0


@dataclass(frozen=True)
class Question:
    """A prompt; of the task's, the answers that count as right."""

    text: str
    right: tuple[str, ...] = ()


@dataclass
class Answer:
    """What came of a question, and what it cost."""

    asked: str = ""  # the question with its number
    text: str = ""
    cost: Decimal = Decimal(0)  # USD
    small: int = 0  # tokens of the answer that it wrote
    large: int = 0
    caught_up: int = 0  # tokens of the small one that the large one read, to go on from there
    refused: bool = False  # the money did not suffice for a token


class Asking:
    """Questions to a gateway, each with a number of its own ahead, so that no answer finds more
    of its prompt in a cache than the template, and looks cheaper than it is."""

    def __init__(self, http: httpx.AsyncClient, plan: Plan) -> None:
        self._http, self._plan = http, plan
        self._places = asyncio.Semaphore(_TOGETHER)

    async def __call__(self, number: int, question: str, model: str, **more: Any) -> Answer:
        """One greedy answer. `more`: `policy` as in the body, `usd` as the budget."""
        asked = f"({number}) {question}"
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": asked}],
            "temperature": 0,
            "max_tokens": self._plan.tokens,
        }
        if "policy" in more:
            body["policy"] = more["policy"]
        headers = {"X-Debug": "1"}
        if "usd" in more:
            headers["X-Budget-Usd"] = f"{more['usd']:f}"
        async with self._places:
            answer = await self._http.post("/v1/chat/completions", json=body, headers=headers)
        if answer.status_code == 402:
            return Answer(asked, refused=True)
        if answer.is_error:
            raise ConfigError(f"the gateway answered {answer.status_code}: {answer.text[:300]}")
        return self._read(asked, json.loads(answer.text, parse_float=Decimal))

    def _read(self, asked: str, found: Mapping[str, Any]) -> Answer:
        plan, said = self._plan, found["farthing"]
        return Answer(
            asked,
            text=found["choices"][0]["message"]["content"] or "",
            cost=Decimal(found["usage"]["cost"]),
            small=said["models"].get(plan.small, 0),
            large=said["models"].get(plan.large, 0),
            caught_up=caught_up(said.get("switches", ()), plan.large),
        )


def caught_up(switches: Sequence[Mapping[str, Any]], large: str) -> int:
    """Tokens that the small model wrote before the large one's last turn, each read once by it."""
    read, since = 0, 0
    for switch in switches:
        if switch["model"] == large:
            read += switch["token"] - since
        since = switch["token"]
    return read


async def curve(http: httpx.AsyncClient, plan: Plan, large: Measured) -> list[dict[str, Any]]:
    """A row for each threshold: the policy's answers, and each model's alone for what they cost."""
    chats, task = _questions(plan)
    asking, rows = Asking(http, plan), []
    with Progress(console=Console(stderr=True)) as bar:
        bars = bar.add_task("asking", total=len(plan.raise_at) * (len(chats) + len(task)))
        every = [*chats, *task]
        for turn, level in enumerate(plan.raise_at):
            policy = {
                "name": "entropy_switch",
                "small": plan.small,
                "large": plan.large,
                "raise_at": level,
                "lower_at": level * plan.lower,
            }

            async def three(
                at: int, question: Question, turn: int = turn, policy: Any = policy
            ) -> tuple[Answer, ...]:
                number = (turn * len(every) + at) * len(_WAYS)
                switched = await asking(number, question.text, plan.large, policy=policy)
                alone = [
                    await asking(number + way, question.text, model, usd=switched.cost)
                    for way, model in ((1, plan.small), (2, plan.large))
                ]
                bar.advance(bars)
                return switched, *alone

            found = await asyncio.gather(*(three(*each) for each in enumerate(every)))
            ways = zip(_WAYS, zip(*found, strict=True), strict=True)
            row: dict[str, Any] = {"raise_at": level, "lower_at": policy["lower_at"]}
            for way, answers in ways:
                row[way] = _judged(answers[: len(chats)], answers[len(chats) :], task, large)
            rows.append(row)
    return rows


def _questions(plan: Plan) -> tuple[list[Question], list[Question]]:
    seeded = random.Random(plan.seed)
    chats, task = [], []
    if plan.prompts is not None:
        texts = [prompt.asked for prompt in read_prompts(plan.prompts) if len(prompt.asked) < 3000]
        chats = [Question(text) for text in seeded.sample(texts, min(plan.limit, len(texts)))]
    if plan.squad is not None:
        values = read_questions(plan.squad, SQUAD)
        some = seeded.sample(values, min(plan.limit, len(values)))
        task = [Question(squad_prompt(value), tuple(answers_of(value))) for value in some]
    return chats, task


def _judged(
    said: Sequence[Answer],
    solved: Sequence[Answer],
    task: Sequence[Question],
    large: Measured,
) -> dict[str, Any]:
    """The means of these answers, with intervals over the questions."""
    every = [*said, *solved]
    written = [answer.small + answer.large for answer in every]
    found: dict[str, Any] = {
        "large_share": _over([a.large for a in every], written),
        "large_share_with_catch_up": _over([a.large + a.caught_up for a in every], written),
        "cost_usd": asdict(mean([float(a.cost) for a in every])),
        "tokens": asdict(mean(written)),
        "refused": sum(a.refused for a in every),
    }
    if said:
        seen = [_seen(large, answer.asked, answer.text) for answer in said]
        counts = [count for count, _, _ in seen]
        found["agreement"] = _over([same for _, same, _ in seen], counts)
        found["nll"] = _over([nats for _, _, nats in seen], counts)
    if solved:
        scores = [max(f1(a.text, r) for r in q.right) for q, a in zip(task, solved, strict=True)]
        found["squad_f1"] = asdict(mean(scores))
    return found


def _over(over: Sequence[float], under: Sequence[float]) -> dict[str, float] | None:
    kept = [(a, b) for a, b in zip(over, under, strict=True) if b]
    return asdict(ratio(*map(list, zip(*kept, strict=True)))) if kept else None


def _seen(large: Measured, question: str, text: str) -> tuple[int, int, float]:
    """Tokens of an answer, how many are the large model's own choice there, and their nats."""
    prompt, ids = large.chat(question), large.tokenizer.continued(text)
    if not ids:
        return 0, 0, 0.0
    log_p = large.log_probabilities([*prompt, *ids], len(prompt))
    chosen = torch.tensor(ids)
    nats = -float(log_p.gather(1, chosen[:, None]).sum())
    return len(ids), int((log_p.argmax(-1) == chosen).sum()), nats


def run(
    url: str,
    weights: Weights,
    plan: Plan,
    *,
    key: str | None = None,
    json_file: Path | None = None,
) -> None:
    """Ask the gateway at `url`, judge with the large model's `weights`, print and write.

    `key` is of an account there. Raises ConfigError where the gateway does not answer, or a
    file cannot be read or written.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    torch.set_num_threads(spare_threads())
    if plan.prompts is None and plan.squad is None:
        raise ConfigError("nothing to ask: name --prompts, --squad or both")

    async def all_of_it() -> list[dict[str, Any]]:
        base = url.removesuffix("/v1")
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=600) as http:
            return await curve(http, plan, Measured.load(weights))

    try:
        rows = asyncio.run(all_of_it())
    except httpx.HTTPError as error:
        raise ConfigError(f"the gateway at {url}: {error or type(error).__name__}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    _show(rows)
    if json_file is not None:
        said = {name: str(v) if isinstance(v, Path) else v for name, v in vars(plan).items()}
        report = {"plan": said, "rows": rows}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="farthing bench switching: means (intervals: --json)")
    names = ("large_share", "large_share_with_catch_up", "agreement", "nll", "squad_f1", "tokens")
    heads = ("share", "+ catch-up", "agrees", "nll", "f1", "tokens")
    for column in ("raise", "who", *heads, "USD", "refused"):
        table.add_column(column, justify="left" if column == "who" else "right", no_wrap=True)
    for row in rows:
        for way in _WAYS:
            found = row[way]
            cells = [_cell(found.get(name)) for name in names]
            cost = f"{found['cost_usd']['mean']:.2e}"
            who = way.removesuffix("_alone")
            table.add_row(f"{row['raise_at']:g}", who, *cells, cost, str(found["refused"]))
    Console().print(table)


def _cell(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['mean']:.3g}"
