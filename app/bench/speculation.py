"""What speculation buys: answers by category, plainly, with fixed lengths, and adaptively."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.bench.oracle import plain_by_oracle
from app.bench.prompts import BY_CATEGORY
from app.bench.racing import Draft, Lap, Track, Way
from app.bench.reading import Measured, Weights
from app.engines.embedded.tokenizer import alike
from app.engines.embedded.worker import spare_threads
from app.errors import ConfigError
from app.estimates import Estimate, ratio
from app.nets.acceptance_head import HEAD, AcceptanceHead
from app.prompt_files import read_objects, read_prompts
from app.types import LengthRule, Sampling, Speculation, Usage

# Spec-Bench's first kind of question is MT-bench, whose own categories its file has.
_CONVERSATION = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem")
_PLAIN, OURS = "plain", "adaptive"
_GRID = (1, 2, 3, 4, 6, 8)
_RULES: tuple[LengthRule, ...] = ("heuristic", "confidence", "adaedl", "head")


@dataclass(frozen=True)
class Plan:
    """What is asked, and how."""

    prompts: Path | None = None  # JSONL, with `category`; None: a few of ours
    each: int = 6  # questions of a category
    tokens: int = 128  # of an answer, at most
    batch: int = 1  # answers at once
    temperature: float = 0.0
    longest: int = 64 * 16  # tokens of a prompt; longer ones are left out
    clock: Literal["wall", "cpu"] = "wall"  # cpu: of the one thread that computes
    quick: bool = False  # plain, the better part of the grid, and ours
    seed: int = 0


@dataclass(frozen=True)
class Question:
    """A prompt as token ids, and the category it is of."""

    category: str
    ids: tuple[int, ...]


def ways(draft: str | None, headed: bool, quick: bool, batch: int = 1) -> list[Way]:
    """Plain; each drafter with fixed lengths, and together; the published rules; ours. Quick and in
    batches, one fixed length will do."""
    short = (4,) if batch > 1 else (2, 4, 8)
    found = [Way(_PLAIN)]
    drafters = {"look-up": Speculation(lookup=True)}
    if draft is not None:
        drafters |= {
            "model": Speculation(draft=draft),
            "both": Speculation(draft=draft, lookup=True),
        }
    for name, speculation in drafters.items():
        for length in short if quick else (*_GRID, 12) if name != "model" else _GRID:
            found.append(Way(f"{name} K={length}", _fixed(speculation, length)))
    if draft is not None and not quick:
        for rule in _RULES if headed else _RULES[:-1]:
            asked = Speculation(draft=draft, rule=rule, longest=8, adaptive=False)
            found.append(Way(f"model {rule}", asked))
        found.append(Way("look-up adaptive", Speculation(lookup=True)))
        found.append(Way("model adaptive", Speculation(draft=draft)))
    # As the policy `speculative` asks where nothing is said.
    best: LengthRule = "head" if headed else "confidence"
    ours = Speculation(draft=draft or "", lookup=True, rule=best)
    return [*found, Way(OURS, ours)]


def _fixed(speculation: Speculation, length: int) -> Speculation:
    return Speculation(
        draft=speculation.draft, lookup=speculation.lookup, longest=length, adaptive=False
    )


def run(
    target: Weights,
    draft: Weights | None,
    plan: Plan,
    *,
    head: Path | None = None,
    threads: int | None = None,
    json_file: Path | None = None,
) -> None:
    """Measure, print a table, and write the figures to `json_file`. Raises ConfigError."""
    console = Console(stderr=True)
    try:
        track = laid_out(target, draft, head, plan, threads, console)
        questions = read_questions(track.model, plan)
        chosen = ways(draft.name if draft else None, _headed(track.drafts), plan.quick, plan.batch)
        learned = _learn(track, chosen, plan, console)
        laps = _race(track, questions, chosen, plan, console)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    report = _report(track, questions, chosen, laps, plan)
    report["learned_from"] = learned
    _show(report, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def laid_out(
    target: Weights,
    draft: Weights | None,
    head: Path | None,
    plan: Plan,
    threads: int | None,
    console: Console,
) -> Track:
    """The models, loaded. Raises ValueError, OSError."""
    threads = threads or spare_threads()
    torch.set_num_threads(threads)
    clock = time.thread_time if plan.clock == "cpu" else time.perf_counter
    with console.status("loading the models"):
        model = Measured.load(target)
        drafts = {} if draft is None else {draft.name: _draft(draft, head, model)}
        sampling = Sampling(temperature=plan.temperature)
        return Track(model, drafts, threads, plan.tokens, clock, sampling)


def _draft(weights: Weights, head: Path | None, model: Measured) -> Draft:
    """With its own head, or the one named."""
    found = Measured.load(weights)
    if not alike(found.tokenizer, model.tokenizer):
        raise ValueError(f"{weights.name} and {model.name} have different tokenizers")
    widths = [each.decoder.config.vocabulary for each in (found, model)]
    if widths[0] != widths[1]:
        raise ValueError(f"{weights.name} has {widths[0]} tokens, and {model.name} {widths[1]}")
    beside = weights.path / HEAD
    if head is None and beside.is_file():
        head = beside
    return Draft(found, None if head is None else AcceptanceHead.load(head))


def _headed(drafts: Mapping[str, Draft]) -> bool:
    return any(draft.head is not None for draft in drafts.values())


def read_questions(model: Measured, plan: Plan) -> list[Question]:
    """Some of each category, drawn by the plan's seed. Raises ValueError, FileNotFoundError."""
    return [
        Question(name, ids)
        for name, found in _drawn(model, plan).items()
        for ids in found[: plan.each]
    ]


def _drawn(model: Measured, plan: Plan) -> dict[str, list[tuple[int, ...]]]:
    """All questions by category, in an order drawn by the plan's seed."""
    by_category: dict[str, list[tuple[int, ...]]] = {}
    if plan.prompts is None:
        pairs = [(name, text) for name, texts in BY_CATEGORY.items() for text in texts]
    else:
        lines = [value.get("category") for _, value in read_objects(plan.prompts)]
        asked = [prompt.asked for prompt in read_prompts(plan.prompts)]
        pairs = [(_category(line), text) for line, text in zip(lines, asked, strict=True)]
    for name, text in pairs:
        ids = model.chat(text)
        if len(ids) <= min(plan.longest, model.decoder.config.context - plan.tokens):
            by_category.setdefault(name, []).append(tuple(ids))
    drawn = random.Random(plan.seed)
    return {name: drawn.sample(found, len(found)) for name, found in by_category.items()}


def _category(said: Any) -> str:
    name = said if isinstance(said, str) else "all"
    return "conversation" if name in (*_CONVERSATION, "humanities") else name


@dataclass(frozen=True)
class Heat:
    """Questions of one category that are answered together, in every way."""

    category: str
    prompts: tuple[tuple[int, ...], ...]


def _heats(questions: Sequence[Question], batch: int) -> list[Heat]:
    """Raises ValueError where a category has too few questions to tell an interval."""
    by_category: dict[str, list[tuple[int, ...]]] = {}
    for question in questions:
        by_category.setdefault(question.category, []).append(question.ids)
    heats = []
    for name, ids in by_category.items():
        if len(ids) < 2 * batch:
            raise ValueError(
                f"{name} has {len(ids)} questions: intervals need two of each category, and with"
                f" --batch {batch} {2 * batch}; raise --each, or name a file with more"
            )
        starts = range(0, len(ids) - batch + 1, batch)  # none that is not full
        heats += [Heat(name, tuple(ids[at : at + batch])) for at in starts]
    return heats


Laps = dict[str, list[tuple[Heat, Lap]]]


def _learn(track: Track, chosen: Sequence[Way], plan: Plan, console: Console) -> int:
    """Let the ways that adapt answer a batch of each category that is not measured, as a server
    has answered before: they begin knowing nothing of the drafts. Returns how many questions."""
    others = [ids[plan.each : plan.each + plan.batch] for ids in _drawn(track.model, plan).values()]
    adapting = [way for way in chosen if way.speculation is not None and way.speculation.adaptive]
    with console.status("learning"):
        for prompts in filter(None, others):
            track.warm(prompts)
            for way in adapting:
                track.lap(way, prompts)
    return sum(map(len, others))


def _race(
    track: Track, questions: Sequence[Question], chosen: Sequence[Way], plan: Plan, console: Console
) -> Laps:
    """Every heat in every way, in an order drawn anew for each heat."""
    drawn = random.Random(plan.seed)
    heats = _heats(questions, plan.batch)
    drawn.shuffle(heats)
    laps: Laps = {way.name: [] for way in chosen}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("answering", total=len(heats) * len(chosen))
        for heat in heats:
            track.warm(heat.prompts)
            for way in drawn.sample(chosen, len(chosen)):
                laps[way.name].append((heat, track.lap(way, heat.prompts)))
                progress.advance(bar)
    return laps


def _report(
    track: Track, questions: Sequence[Question], chosen: Sequence[Way], laps: Laps, plan: Plan
) -> dict[str, Any]:
    rows = {way.name: _row(laps, way.name) for way in chosen}
    fixed = [name for name in rows if " K=" in name]
    best = max(fixed, key=lambda name: rows[name]["speedup"]["mean"])
    report: dict[str, Any] = {
        "speedup": rows[OURS]["speedup"]["mean"],
        "speedup_interval": rows[OURS]["speedup"],
        "best_fixed": best,
        "over_best_fixed": asdict(over(laps, best, OURS)),
        "ways": rows,
        "questions": len(questions),
    }
    if plan.temperature == 0:
        report["oracle"] = _oracle(track, laps)
        report["different"] = {name: _different(laps, name) for name in rows}
    report["setup"] = {
        "model": track.model.name,
        "drafts": list(track.drafts),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "pass_seconds": track.cost.seconds(1, 0, 256),
        "row": track.cost.row(256) / track.cost.seconds(1, 0, 256),
        "guess": {
            name: cost.seconds(1, 0, 256) / track.cost.seconds(1, 0, 256)
            for name, cost in track.draft_costs.items()
        },
        "plan": {name: str(v) if isinstance(v, Path) else v for name, v in vars(plan).items()},
    }
    return report


def _pace(lap: Lap) -> float:
    return lap.seconds / max(lap.usage.completion, 1)


def _times(laps: Laps, name: str, category: str) -> list[float]:
    """Seconds a token, of every heat of the category."""
    return [_pace(lap) for heat, lap in laps[name] if heat.category == category]


def _categories(laps: Laps) -> list[str]:
    return list(dict.fromkeys(heat.category for heat, _ in laps[_PLAIN]))


def over(laps: Laps, slow: str, fast: str) -> Estimate:
    """How many times as fast one way is as another: the mean over the categories of the ratio of
    seconds a token, with an interval by a bootstrap over heats within each category."""
    drawn, draws = np.random.default_rng(0), []
    pairs = [
        (np.array(_times(laps, slow, name)), np.array(_times(laps, fast, name)))
        for name in _categories(laps)
    ]
    for _ in range(2000):
        found = []
        for one, other in pairs:
            index = drawn.integers(0, len(one), len(one))
            found.append(one[index].sum() / other[index].sum())
        draws.append(float(np.mean(found)))
    middle = float(np.mean([one.sum() / other.sum() for one, other in pairs]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(middle, float(low), float(high))


def _row(laps: Laps, name: str) -> dict[str, Any]:
    usage = sum((lap.usage for _, lap in laps[name]), Usage())
    seconds = sum(lap.seconds for _, lap in laps[name])
    completion = max(usage.completion, 1)
    return {
        "speedup": asdict(over(laps, _PLAIN, name)),
        "categories": {
            each: asdict(ratio(_times(laps, _PLAIN, each), _times(laps, name, each)))
            for each in _categories(laps)
        },
        "tokens_per_second": completion / seconds,
        "block_efficiency": completion / max(usage.passes, 1) if usage.passes else 1.0,
        "acceptance": usage.accepted / max(usage.drafted, 1),
        "discard_rate": usage.wasted / completion,
        "verification_rate": usage.passes / completion if usage.passes else 1.0,
    }


def _different(laps: Laps, name: str) -> int:
    """Answers that are not those of plain decoding."""
    pairs = zip(laps[_PLAIN], laps[name], strict=True)
    return sum(
        a != b
        for (_, one), (_, two) in pairs
        for a, b in zip(one.answers, two.answers, strict=True)
    )


def _oracle(track: Track, laps: Laps) -> dict[str, Any]:
    """What the best choice of drafts would give at the costs measured at the start."""
    draft = next((draft.model for draft in track.drafts.values()), None)
    kinds: dict[str, tuple[Measured | None, bool]] = {"look-up": (None, True)}
    if draft is not None:
        kinds |= {"model": (draft, False), "both": (draft, True)}
    found = {}
    for name, (model, look) in kinds.items():
        ratios = []
        for category in _categories(laps):
            plain, best = 0.0, 0.0
            for prompt, answer in _answers(laps, category):
                seconds, least = plain_by_oracle(track, model, prompt, answer, look)
                plain, best = plain + seconds, best + least
            ratios.append(plain / best if best else 1.0)
        found[name] = float(np.mean(ratios))
    return found


def _answers(laps: Laps, category: str) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for heat, lap in laps[_PLAIN]:
        if heat.category == category:
            yield from zip(heat.prompts, lap.answers, strict=True)


def _show(report: Mapping[str, Any], console: Console) -> None:
    names = list(report["ways"][OURS]["categories"])
    table = Table(title=f"times as fast as plain, {report['setup']['model']}")
    table.add_column("way")
    for column in ("mean of categories", *names, "tokens/pass", "accepted", "discarded", "passes"):
        table.add_column(column, justify="right")
    for name, row in report["ways"].items():
        mean = row["speedup"]
        table.add_row(
            name,
            f"{mean['mean']:.2f} ({mean['low']:.2f} to {mean['high']:.2f})",
            *(f"{row['categories'][each]['mean']:.2f}" for each in names),
            *(f"{row['block_efficiency']:.2f}", f"{row['acceptance']:.2f}"),
            *(f"{row['discard_rate']:.2f}", f"{row['verification_rate']:.2f}"),
        )
    console.print(table)
    gain = report["over_best_fixed"]
    console.print(
        f"adaptive over the best fixed ({report['best_fixed']}):"
        f" {gain['mean']:.3f} ({gain['low']:.3f} to {gain['high']:.3f})"
    )
    if "oracle" in report:
        told = ", ".join(f"{name} {value:.2f}" for name, value in report["oracle"].items())
        console.print(f"an oracle's lengths would give: {told}")
