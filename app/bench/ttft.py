"""The first token's time, and what it costs in quality, by way to read a prompt and its length."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.bench.padded import Padded, padded, rouge_l, template_opening
from app.bench.prefill import Read, Way, read
from app.bench.reading import Measured, Weights
from app.bench.short import measure
from app.bench.tasks import SQUAD, exact_match, f1, read_questions
from app.engines.embedded.auxiliary import AuxiliaryPredictor, check_print
from app.engines.embedded.prediction import Predictor
from app.engines.embedded.predictors import AnyPredictor
from app.engines.embedded.tokenizer import alike
from app.engines.embedded.weights import open_checkpoint
from app.engines.embedded.worker import spare_threads
from app.errors import ConfigError
from app.estimates import mean, ratio
from app.nets.kv_predictor import KVPredictor
from app.prompt_files import read_objects

_EXACT = "exact"
_SHORT = 24  # tokens of the task's answers
_SUMMARY = 64  # and of a summary
_ARTICLE = 2048  # tokens of a prompt with an article, at most


@dataclass(frozen=True)
class Plan:
    """What is asked, and how."""

    squad: Path | None  # JSONL: questions over a context
    articles: Path | None = None  # JSONL: `article` and `highlights`, to be summed up
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)  # tokens of a prompt
    questions: int = 60  # of each length
    last: tuple[int, ...] = (24,)  # tokens at a prompt's end that are computed all the same
    relevant: tuple[float, ...] = (0.0, 0.2)  # of the rest, that the end asks about
    first: int = 4  # and at its beginning
    truncated: tuple[float, ...] = (0.5,)  # parts of the prompt, its end
    extracted: tuple[float, ...] = (0.2,)  # and what this asks about, alone
    short: tuple[int, ...] = (128, 256, 383)  # tokens of prompts that the policy reads exactly
    clock: Literal["wall", "cpu"] = "wall"
    seed: int = 0


@dataclass
class Seen:
    """What was found of one way at one length, by question."""

    tokens: list[float] = field(default_factory=list)  # of the prompts
    seconds: list[float] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    agreed: list[float] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)
    exact_match: list[float] = field(default_factory=list)
    rouge: list[float] = field(default_factory=list)


def run(
    base: Weights,
    small: Weights | None,
    predictors: Sequence[Path],
    plan: Plan,
    *,
    threads: int | None = None,
    json_file: Path | None = None,
) -> None:
    """Measure, print a table, and write the figures to `json_file`. Raises ConfigError."""
    console = Console(stderr=True)
    torch.set_num_threads(threads or spare_threads())
    try:
        if plan.squad is None:
            raise ConfigError("--squad: names no file of questions (or set FARTHING_DATA)")
        questions = read_questions(plan.squad, SQUAD)
        articles = None if plan.articles is None else _read_articles(plan.articles)
        with console.status("loading the models"):
            model = Measured.load(base)
            weights = [KVPredictor.load(file) for file in predictors]
            _check_auxiliary(weights, small)
            ways = _ways(model, None if small is None else Measured.load(small), weights, plan)
        seen = {length: _measure(ways, questions, length, plan, console) for length in plan.lengths}
        summed = None if articles is None else _summaries(ways, articles, plan, console)
        told = [file for file, each in zip(predictors, weights, strict=True) if each.about.kept]
        with console.status("prompts that are too short"):
            texts = [str(question["context"]) for question in questions]
            asked = plan.short, plan.questions, plan.clock, plan.seed
            short = measure(base, told, texts, *asked, threads) if told else {}
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    report = _report(ways, seen, summed, plan) | {"short": short}
    _show(report, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _check_auxiliary(predictors: Sequence[KVPredictor], small: Weights | None) -> None:
    """Raises ValueError where one of them is told by another model than `small`."""
    for weights in predictors:
        name = weights.about.auxiliary
        if name and (small is None or small.name != name):
            raise ValueError(f"--predictor: one is told by {name}: name it with --small")
        if name and small is not None:
            check_print(weights, open_checkpoint(small.path, small.base))


def _ways(
    model: Measured, small: Measured | None, predictors: Sequence[KVPredictor], plan: Plan
) -> list[Way]:
    found = [Way(_EXACT, model, 1.0)]
    for weights in predictors:
        called, predictor = _predictor(model, small, weights)
        for last, relevant in itertools.product(plan.last, plan.relevant):
            first = plan.first if last > 1 else 0
            name = f"{called}, last {last}" + (f", relevant {relevant:g}" if relevant else "")
            share = weights.about.share
            found.append(Way(name, model, share, predictor, first, last, relevant))
    if small is not None:
        found.append(Way(small.name, small, _cost(small) / _cost(model)))
    found += [Way(f"truncated to {kept:g}", model, kept, kept=kept) for kept in plan.truncated]
    found += [
        Way(f"extracted {each:g}", model, each, None, plan.first, max(plan.last), each)
        for each in plan.extracted
    ]
    return _checked(found, plan)


def _checked(ways: Sequence[Way], plan: Plan) -> list[Way]:
    """The ways, each with a name of its own. Raises ValueError where they cannot do what is asked
    of them, which is better said before than in the midst."""
    model, longest = ways[0].model, max(plan.lengths) + _SHORT
    for way in ways:
        context = way.model.decoder.config.context
        if longest > context:
            raise ValueError(
                f"--lengths: {max(plan.lengths)} tokens and an answer of {_SHORT} do not fit the"
                f" context of {way.model.name}, {context}"
            )
        if not alike(way.model.tokenizer, model.tokenizer):
            raise ValueError(f"{way.model.name} and {model.name} have different tokenizers")
        if way.last < 1 or not 0 < way.kept <= 1 or not 0 <= way.relevant <= 1:
            raise ValueError(
                "--last must be 1 or more, --truncated between 0 and 1, and --relevant and"
                " --extracted 0 to 1"
            )
    found: list[Way] = []
    for way in ways:
        again = sum(way.name in (other.name, other.name.partition(" #")[0]) for other in found)
        found.append(replace(way, name=f"{way.name} #{again + 1}") if again else way)
    return found


def _predictor(
    model: Measured, small: Measured | None, weights: KVPredictor
) -> tuple[str, AnyPredictor]:
    """What the way is called, and who predicts."""
    decoder, name = model.decoder, weights.about.auxiliary
    if not name or small is None:
        return f"layers-{weights.about.kept}", decoder.predictor(weights)
    told = AuxiliaryPredictor(
        weights, decoder.config, decoder.precision, decoder.device, small.decoder
    )
    return f"{name} -> base", told


def _cost(model: Measured) -> int:
    """Multiplications of all layers for a token."""
    c = model.decoder.config
    attention = (2 * c.heads + 2 * c.kv_heads) * c.head_dim
    return c.layers * c.hidden * (attention + 3 * c.intermediate)


def _measure(
    ways: Sequence[Way],
    questions: Sequence[dict[str, Any]],
    length: int,
    plan: Plan,
    console: Console,
) -> dict[str, Seen]:
    drawn, model = random.Random(plan.seed), ways[0].model
    others = list(dict.fromkeys(str(question["context"]) for question in questions))
    asked: list[Padded] = []
    for number, question in enumerate(drawn.sample(questions, len(questions))):
        if len(asked) == plan.questions:
            break
        try:
            asked.append(padded(model, question, others, length, plan.seed + number))
        except ValueError:
            continue  # one that is longer than this length
    if not asked:
        console.print(f"no question fits {length} tokens", highlight=False)
    seen = {way.name: Seen() for way in ways}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"{length} tokens", total=len(asked) * len(ways))
        for each in asked[:1]:  # what is compiled or loaded at first use is not of this
            _asked(ways, each.ids, each.reference[:1], (2, 0), plan, drawn)
        for each in asked:
            found = _asked(ways, each.ids, each.reference[:_SHORT], (_SHORT, 0), plan, drawn)
            for name, result in found.items():
                _note(seen[name], result, each.ids)
                said = _text(model, result.answer).strip().partition("\n")[0]
                seen[name].f1.append(max(f1(said, right) for right in each.right))
                seen[name].exact_match.append(max(exact_match(said, right) for right in each.right))
            progress.advance(bar, len(ways))
    return seen


def _asked(
    ways: Sequence[Way],
    ids: Sequence[int],
    reference: Sequence[int],
    sizes: tuple[int, int],
    plan: Plan,
    drawn: random.Random,
) -> dict[str, Read]:
    """One prompt in every way: the exact one first, which the others are compared with. `sizes`:
    tokens of the answer, and of the template before what is said."""
    tokens, opening = sizes
    clock: Callable[[], float] = time.thread_time if plan.clock == "cpu" else time.perf_counter
    exact = read(ways[0], ids, reference, None, tokens, opening, clock)
    found = {_EXACT: exact}
    for way in drawn.sample(ways[1:], len(ways) - 1):
        found[way.name] = read(way, ids, reference, exact.answer, tokens, opening, clock)
    return found


def _note(seen: Seen, result: Read, ids: Sequence[int]) -> None:
    seen.tokens.append(len(ids))
    seen.seconds.append(result.seconds)
    seen.nats.append(result.nats)
    seen.agreed.append(result.agreed)


def _text(model: Measured, ids: Sequence[int]) -> str:
    return b"".join(map(model.tokenizer.piece, ids)).decode(errors="replace")


def _read_articles(path: Path) -> list[tuple[str, str]]:
    """Articles and summaries of them. Raises OSError, and ValueError naming line and field."""
    found = []
    for number, value in read_objects(path):
        article, summary = value.get("article"), value.get("highlights") or value.get("summary")
        for name, text in (("article", article), ("highlights", summary)):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{path}:{number}: {name}: is missing or empty")
        found.append((str(article), str(summary)))
    return found


def _summaries(
    ways: Sequence[Way], articles: Sequence[tuple[str, str]], plan: Plan, console: Console
) -> dict[str, Seen]:
    """Articles summed up: ROUGE-L, and the likelihood of the reference."""
    model, drawn = ways[0].model, random.Random(plan.seed)
    seen = {way.name: Seen() for way in ways}
    room = min(way.model.decoder.config.context for way in ways) - _SUMMARY
    chosen = drawn.sample(articles, min(plan.questions, len(articles)))
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("summaries", total=len(chosen) * len(ways))
        for article, reference in chosen:
            progress.advance(bar, len(ways))
            ids = model.chat(f"{article}\n\nSum this article up in two sentences.")
            if len(ids) > min(_ARTICLE, room):
                continue
            told = model.tokenizer.continued(reference)[:_SUMMARY]
            sizes = _SUMMARY, template_opening(model)
            for name, result in _asked(ways, ids, told, sizes, plan, drawn).items():
                _note(seen[name], result, ids)
                seen[name].rouge.append(rouge_l(_text(model, result.answer), reference))
    return seen


def _report(
    ways: Sequence[Way],
    seen: Mapping[int, Mapping[str, Seen]],
    summed: Mapping[str, Seen] | None,
    plan: Plan,
) -> dict[str, Any]:
    points = []
    for length, found in seen.items():
        for way in ways:
            if found[way.name].seconds:
                points.append(_point(way, length, found))
    report: dict[str, Any] = {"points": points, "break_even": _break_even(points)}
    if summed is not None and summed[_EXACT].seconds:
        report["summaries"] = {
            way.name: {
                "rouge_l": asdict(mean(summed[way.name].rouge)),
                "kept": _kept(summed[way.name].rouge, summed[_EXACT].rouge),
                "nats": asdict(mean(summed[way.name].nats)),
                "ttft_ratio": asdict(ratio(summed[_EXACT].seconds, summed[way.name].seconds)),
            }
            for way in ways
        }
    said = {name: str(v) if isinstance(v, Path) else v for name, v in vars(plan).items()}
    report["setup"] = {
        "model": ways[0].model.name,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "plan": said,
    }
    return report


def _break_even(points: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """By way, the length from which on its first token surely comes sooner, at all lengths."""
    found: dict[str, int | None] = {}
    lost: set[str] = set()
    for point in sorted(points, key=lambda point: -int(point["prompt_tokens"])):
        name = str(point["predictor"])
        found.setdefault(name, None)
        if point["ttft_ratio"]["low"] <= 1:
            lost.add(name)
        if name not in lost:
            found[name] = int(point["prompt_tokens"])
    return found


def _point(way: Way, length: int, found: Mapping[str, Seen]) -> dict[str, Any]:
    ours, exact = found[way.name], found[_EXACT]
    return {
        "predictor": way.name,
        "k": way.predictor.kept if isinstance(way.predictor, Predictor) else None,
        "first": way.first,
        "last": way.last,
        "relevant": way.relevant,
        "prompt_tokens": length,
        "mean_tokens": asdict(mean(ours.tokens)),
        "questions": len(ours.seconds),
        "flops_share": way.cost(length),
        "ttft_ratio": asdict(ratio(exact.seconds, ours.seconds)),
        "nats": asdict(mean(ours.nats)),
        "agreement": asdict(mean(ours.agreed)),
        "f1": asdict(mean(ours.f1)),
        "exact_match": asdict(mean(ours.exact_match)),
        "quality_kept": _kept(ours.f1, exact.f1),
    }


def _kept(ours: Sequence[float], exact: Sequence[float]) -> dict[str, float] | None:
    """None where there was nothing to keep."""
    return asdict(ratio(ours, exact)) if sum(exact) > 0 else None


def _show(report: Mapping[str, Any], console: Console) -> None:
    table = Table(title=f"the first token, {report['setup']['model']}")
    columns = ("ttft_ratio", "quality_kept", "f1", "agreement", "nats")
    for column in ("tokens", "way", "share", *(name.replace("_", " ") for name in columns)):
        table.add_column(column, justify="right")
    for point in report["points"]:
        cells = [_interval(point.get(column)) for column in columns]
        share = f"{point['flops_share']:.2f}"
        table.add_row(str(point["prompt_tokens"]), point["predictor"], share, *cells)
    console.print(table)
    for name, length in report["break_even"].items():
        if name != _EXACT:
            told = "none of these" if length is None else f"{length} tokens"
            console.print(f"{name}: surely sooner from {told} on", highlight=False)
    for length, found in report["short"].items():
        sooner = _interval(found["ttft_ratio"])
        console.print(f"the policy, {length} tokens: {sooner}", highlight=False)
    for name, found in report.get("summaries", {}).items():
        console.print(
            f"summaries, {name}: ROUGE-L {_interval(found['rouge_l'])},"
            f" kept {_interval(found['kept'])}",
            highlight=False,
        )


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
