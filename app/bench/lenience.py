"""What lenient acceptance buys, and what it costs: speed, agreement and a task's score."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.bench.racing import Lap, Track, Way
from app.bench.reading import Weights
from app.bench.speculation import Plan as Asked
from app.bench.speculation import laid_out, read_questions
from app.bench.tasks import SQUAD, answers_of, f1, squad_prompt
from app.bench.tasks import read_questions as read_task
from app.errors import ConfigError
from app.estimates import mean, ratio
from app.types import Speculation

_PLAIN = "plain"
_SHORT = 24  # tokens of the task's answers


@dataclass(frozen=True)
class Plan:
    """Which degrees of lenience, and on what."""

    asked: Asked
    degrees: tuple[float, ...] = (1.0, 0.9, 0.7, 0.5, 0.3)
    squad: Path | None = None  # JSONL: the task
    questions: int = 100  # of the task


@dataclass
class _Seen:
    """What was found of one way."""

    seconds: list[float] = field(default_factory=list)  # a token, by question
    agreed: list[float] = field(default_factory=list)  # share of the model's own choice there
    same: list[float] = field(default_factory=list)  # share of the plain answer before it parts
    likely: list[float] = field(default_factory=list)  # nats a token, by question
    scores: list[float] = field(default_factory=list)  # F1, by question of the task


def run(
    target: Weights,
    draft: Weights,
    plan: Plan,
    *,
    head: Path | None = None,
    threads: int | None = None,
    json_file: Path | None = None,
) -> None:
    """Measure, print a table, and write the figures to `json_file`. Raises ConfigError."""
    console = Console(stderr=True)
    asked = plan.asked
    try:
        track = laid_out(target, draft, head, asked, threads, console)
        model = track.model
        prompts = [question.ids for question in read_questions(model, asked)]
        task = [] if plan.squad is None else read_task(plan.squad, SQUAD)[: plan.questions]
        ways = _ways(draft.name, plan.degrees)
        seen = _measure(track, ways, prompts, task, asked.seed, console)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    report = _report(seen, plan, model.name, draft.name)
    _show(report, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _ways(draft: str, degrees: Sequence[float]) -> list[Way]:
    exact = Speculation(draft=draft, lookup=True)
    return [
        Way(_PLAIN),
        *(
            Way(f"{degree:g}", replace(exact, acceptance="lenient", lenience=degree))
            for degree in degrees
        ),
    ]


def _measure(
    track: Track,
    ways: Sequence[Way],
    prompts: Sequence[tuple[int, ...]],
    task: Sequence[dict[str, Any]],
    seed: int,
    console: Console,
) -> dict[str, _Seen]:
    drawn = random.Random(seed)
    seen = {way.name: _Seen() for way in ways}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("answering", total=(len(prompts) + len(task)) * len(ways))
        for prompt in prompts:
            track.warm([prompt])
            laps = {}
            for way in drawn.sample(ways, len(ways)):
                laps[way.name] = track.lap(way, [prompt])
                progress.advance(bar)
            for name, lap in laps.items():
                _note(seen[name], track, prompt, lap, laps[_PLAIN].answers[0])
        short = replace(track, tokens=_SHORT)
        for question in task:
            ids = track.model.chat(squad_prompt(question))
            short.warm([ids])  # a prompt that is found may decide a close call
            for way in ways:
                (answer,) = short.lap(way, [ids]).answers
                said = b"".join(map(track.model.tokenizer.piece, answer)).decode(errors="replace")
                score = max(f1(said, right) for right in answers_of(question))
                seen[way.name].scores.append(score)
                progress.advance(bar)
    return seen


def _note(seen: _Seen, track: Track, prompt: Sequence[int], lap: Lap, plain: Sequence[int]) -> None:
    (answer,) = lap.answers
    parts = (place for place, (a, b) in enumerate(zip(answer, plain, strict=False)) if a != b)
    seen.same.append(next(parts, min(len(answer), len(plain))) / len(plain))
    seen.seconds.append(lap.seconds / max(lap.usage.completion, 1))
    logs = track.model.log_probabilities([*prompt, *answer], len(prompt))
    written = torch.tensor(answer)
    seen.agreed.append(float((logs.argmax(-1) == written).float().mean()))
    seen.likely.append(float(logs.gather(1, written[:, None]).mean()))


def _report(seen: Mapping[str, _Seen], plan: Plan, model: str, draft: str) -> dict[str, Any]:
    plain, exact = seen[_PLAIN], seen[f"{plan.degrees[0]:g}"]
    rows = {}
    for name, found in seen.items():
        rows[name] = {
            "speedup": asdict(ratio(plain.seconds, found.seconds)),
            "over_first": asdict(ratio(exact.seconds, found.seconds)),
            "agreement": asdict(mean(found.agreed)),
            "same_as_plain": asdict(mean(found.same)),
            "log_likelihood": asdict(mean(found.likely)),
        }
        if found.scores:
            rows[name]["f1"] = asdict(mean(found.scores))
            loss = [a - b for a, b in zip(plain.scores, found.scores, strict=True)]
            rows[name]["f1_lost"] = asdict(mean(loss))
    setup = {"model": model, "draft": draft, "threads": torch.get_num_threads()}
    said = {key: str(v) if isinstance(v, Path) else v for key, v in vars(plan.asked).items()}
    return {"ways": rows, "setup": {**setup, "squad": str(plan.squad), "plan": said}}


def _show(report: Mapping[str, Any], console: Console) -> None:
    table = Table(title=f"lenient acceptance, {report['setup']['model']}")
    table.add_column("lenience")
    columns = ("speedup", "agreement", "same_as_plain", "log_likelihood", "f1", "f1_lost")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, row in report["ways"].items():
        cells = [_interval(row.get(column)) for column in columns]
        table.add_row(name, *cells)
    console.print(table)


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
