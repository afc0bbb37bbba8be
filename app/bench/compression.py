"""What shorter prompts cost in quality: F1 of answers about texts that were cut in several ways."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.bench.tasks import SQUAD, answers_of, f1, read_questions, squad_prompt
from app.errors import ConfigError
from app.estimates import Estimate, mean

_TOGETHER = 8  # requests at once
_WHOLE = "whole"
WAYS: Mapping[str, Mapping[str, str]] = {
    "surprisal": {"by": "surprisal"},
    "end": {"by": "end"},
    "random": {"by": "random"},
    "summary": {"mode": "summary"},
}
"""By name, and the policy's options."""


@dataclass(frozen=True)
class Plan:
    """What is asked, and how it is cut."""

    model: str
    scorer: str = ""  # empty: the policy's own choice
    squad: Path | None = None  # JSONL
    hotpot: Path | None = None  # JSONL, with a context
    padded: int = 0  # words of texts around SQuAD's, for a third set; 0: none
    ratios: tuple[float, ...] = (0.8, 0.5)
    ways: tuple[str, ...] = ("surprisal", "end", "random")
    questions: int = 60  # of each set
    tokens: int = 24  # of an answer
    seed: int = 0  # of what is drawn


@dataclass(frozen=True)
class Question:
    """A prompt, and the answers that count as right."""

    text: str
    right: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What came of a question."""

    f1: float
    cost: float  # USD
    before: int = 0  # tokens of the prompt
    after: int = 0  # that were read; 0: it was not cut


def sets(plan: Plan) -> dict[str, list[Question]]:
    """The questions, by where they are from. Raises ValueError, FileNotFoundError."""
    found = dict[str, list[Question]]()
    if plan.squad is not None:
        values = read_questions(plan.squad, SQUAD)
        drawn = _drawn(values, plan)
        found["squad"] = [_question(value) for value in drawn]
        if plan.padded:
            texts = sorted({str(value["context"]) for value in values})
            seeded = random.Random(plan.seed)
            padded = [_padded(value, texts, plan.padded, seeded) for value in drawn]
            found["squad, padded"] = [_question(value) for value in padded]
    if plan.hotpot is not None:
        found["hotpot"] = [
            _question(value) for value in _drawn(read_questions(plan.hotpot, SQUAD), plan)
        ]
    return found


def _drawn(values: Sequence[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    return random.Random(plan.seed).sample(list(values), min(plan.questions, len(values)))


def _question(value: Mapping[str, Any]) -> Question:
    return Question(squad_prompt(value), tuple(answers_of(value)))


def _padded(
    value: Mapping[str, Any], texts: Sequence[str], words: int, seeded: random.Random
) -> dict[str, Any]:
    """The question's text at a place drawn among others', of about so many words in all."""
    own = str(value["context"])
    others = [text for text in texts if text != own]
    around, length = list[str](), len(own.split())
    for text in seeded.sample(others, len(others)):
        if length + len(text.split()) > words:
            break
        around.append(text)
        length += len(text.split())
    around.insert(seeded.randint(0, len(around)), own)
    return {**value, "context": "\n\n".join(around)}


async def measured(http: httpx.AsyncClient, plan: Plan) -> list[dict[str, Any]]:
    """A row for each set of questions, ratio and way; `whole`, the prompt as it is, has ratio 1."""
    places, rows = asyncio.Semaphore(_TOGETHER), list[dict[str, Any]]()
    cuts = [(way, ratio) for ratio in plan.ratios for way in plan.ways]
    found = sets(plan)
    with Progress(console=Console(stderr=True)) as bar:
        asking = bar.add_task("asking", total=sum(map(len, found.values())) * (1 + len(cuts)))

        async def every(way: str, ratio: float, questions: Sequence[Question]) -> list[Answer]:
            async def one(question: Question) -> Answer:
                async with places:
                    answer = await _asked(http, plan, question, way, ratio)
                bar.advance(asking)
                return answer

            return list(await asyncio.gather(*map(one, questions)))

        for name, questions in found.items():
            answers = {(_WHOLE, 1.0): await every(_WHOLE, 1.0, questions)}
            for way, ratio in cuts:
                answers[way, ratio] = await every(way, ratio, questions)
            rows += _rows(name, answers)
    return rows


async def _asked(
    http: httpx.AsyncClient, plan: Plan, question: Question, way: str, ratio: float
) -> Answer:
    body: dict[str, Any] = {
        "model": plan.model,
        "messages": [{"role": "user", "content": question.text}],
        "temperature": 0,
        "max_tokens": plan.tokens,
    }
    if way != _WHOLE:
        scorer = {"scorer": plan.scorer} if plan.scorer else {}
        cut = {"ratio": ratio, "least": 1, "seed": plan.seed, **WAYS[way], **scorer}
        body["policy"] = {"name": "compress", **cut}
    answer = await http.post("/v1/chat/completions", json=body)
    if answer.is_error:
        raise ConfigError(f"the gateway answered {answer.status_code}: {answer.text[:300]}")
    found = answer.json()
    said = found["choices"][0]["message"]["content"] or ""
    cut = found["farthing"].get("compressed", {})
    score = max(f1(said, right) for right in question.right)
    before, after = cut.get("before", 0), cut.get("after", 0)
    return Answer(score, float(found["usage"]["cost"]), before, after)


def _rows(
    name: str, answers: Mapping[tuple[str, float], Sequence[Answer]]
) -> Iterator[dict[str, Any]]:
    """Each way's figures, and what it has less than the others, over the same questions."""
    for (way, ratio), found in answers.items():
        cut = [answer for answer in found if answer.after]
        row: dict[str, Any] = {
            "set": name,
            "way": way,
            "ratio": ratio,
            "questions": len(found),
            "uncut": len(found) - len(cut),
            "f1": asdict(mean([answer.f1 for answer in found])),
            "cost_usd": statistics.mean(answer.cost for answer in found),
        }
        if cut:
            row["left"] = sum(a.after for a in cut) / sum(a.before for a in cut)
            row["prompt_tokens"] = statistics.mean(a.before for a in cut)
        others = {_WHOLE: (_WHOLE, 1.0)} if way != _WHOLE else {}
        others |= {other: (other, ratio) for other in ("end", "random") if way == "surprisal"}
        for other, key in others.items():
            if key in answers:
                pairs = zip(found, answers[key], strict=True)
                less = asdict(mean([mine.f1 - theirs.f1 for mine, theirs in pairs]))
                row[f"f1_against_{other}"] = less
        yield row


def run(url: str, plan: Plan, *, key: str | None = None, json_file: Path | None = None) -> None:
    """Ask the gateway at `url`, print and write. `key` is of an account there.

    Raises ConfigError where the gateway does not answer, or a file cannot be read or written.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if plan.squad is None and plan.hotpot is None:
        raise ConfigError("nothing to ask: name --squad, --hotpot or both")

    async def all_of_it() -> list[dict[str, Any]]:
        base = url.removesuffix("/v1")
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=3600) as http:
            return await measured(http, plan)

    try:
        rows = asyncio.run(all_of_it())
    except httpx.HTTPError as error:
        raise ConfigError(f"the gateway at {url}: {error or type(error).__name__}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    _show(rows)
    if json_file is not None:
        said = {name: str(v) if isinstance(v, Path) else v for name, v in vars(plan).items()}
        json_file.write_text(json.dumps({"plan": said, "rows": rows}, indent=2) + "\n", "utf-8")


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="farthing bench compression: F1, means with 95 % intervals over questions")
    for column in ("set", "way", "ratio", "left", "F1", "less whole", "less end", "less random"):
        table.add_column(column, no_wrap=True)
    table.add_column("USD", no_wrap=True)
    for row in rows:
        against = [_cell(row.get(f"f1_against_{other}")) for other in (_WHOLE, "end", "random")]
        left = f"{row['left']:.2f}" if "left" in row else ""
        cells = [row["set"], row["way"], f"{row['ratio']:g}", left, _cell(row["f1"]), *against]
        table.add_row(*cells, f"{row['cost_usd']:.2e}")
    Console(width=160).print(table)


def _cell(found: Mapping[str, float] | None) -> str:
    return "" if found is None else str(Estimate(**found))
