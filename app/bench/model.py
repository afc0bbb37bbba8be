"""How well a small model stands in for a large one: acceptance, likelihood, pace and two tasks."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from app.bench.prompts import OWN
from app.bench.reading import Measured
from app.bench.tasks import MULTIPLE_CHOICE, SQUAD, multiple_choice, read_questions, squad
from app.engines.embedded.model import Span
from app.estimates import ratio
from app.prompt_files import read_objects, read_prompts
from app.types import Sampling

_LONGEST = 1024  # tokens of a prompt or passage
SPAN = 16  # drafted tokens in a row that the pace is measured on


@dataclass(frozen=True)
class Plan:
    """What is measured, on how much of it."""

    prompts: Path | None = None  # JSONL; None: our own
    text: Path | None = None  # JSONL; what the likelihood is of
    squad: Path | None = None
    truthful: Path | None = None
    limit: int = 100  # lines of each file, drawn with the seed
    tokens: int = 128  # of each answer
    seed: int = 0
    rounds: int = 7  # of the pace


Report = dict[str, Any]
T = TypeVar("T")


def run(small: Measured, large: Measured, int8: Measured | None, plan: Plan) -> Report:
    """Measure `small` beside `large`, their tokenizers the same; `int8`: large in that precision.

    Raises ConfigError where the models have different tokenizers or a file cannot be read.
    """
    report: Report = {"small": small.name, "large": large.name}
    report |= acceptance(small, large, _prompts(large, plan), plan)
    report["pace"] = pace(small, large, int8, plan)
    both = {"small": small, "large": large}
    if plan.text is not None:
        texts = _texts(large, plan.text, plan)
        report["nll"] = {which: likelihood(model, texts) for which, model in both.items()}
    if plan.squad is not None:
        questions = _drawn(read_questions(plan.squad, SQUAD), plan)
        report["squad"] = {which: squad(model, questions) for which, model in both.items()}
    if plan.truthful is not None:
        questions = _drawn(read_questions(plan.truthful, MULTIPLE_CHOICE), plan)
        report["truthful_qa_mc"] = {w: multiple_choice(m, questions) for w, m in both.items()}
    return report


def _prompts(model: Measured, plan: Plan) -> list[list[int]]:
    if plan.prompts is None:
        return [model.chat(text) for text in OWN]
    found = [model.chat(p.asked) for p in _drawn(read_prompts(plan.prompts), plan)]
    room = model.decoder.config.context - plan.tokens
    return [ids for ids in found if len(ids) <= min(room, _LONGEST)]


def _texts(model: Measured, path: Path, plan: Plan) -> list[list[int]]:
    """Passages of the file: what its questions are about, each once, else its answers."""
    values = [value for _, value in read_objects(path)]
    names = ("text", "context", "article", "answer")
    said = [next((v[n] for n in names if isinstance(v.get(n), str)), "") for v in values]
    passages = sorted({text for text in said if text})
    if not passages:
        raise ValueError(f"{path}: has none of the fields text, context, article, answer")
    ids = [model.tokenizer.encode(text)[:_LONGEST] for text in _drawn(passages, plan)]
    return [each for each in ids if len(each) > 1]


def _drawn(values: Sequence[T], plan: Plan) -> list[T]:
    """At most so many of them, the same for every run with this seed."""
    count = min(plan.limit, len(values))
    return random.Random(plan.seed).sample(list(values), count)


def acceptance(
    small: Measured, large: Measured, prompts: Sequence[Sequence[int]], plan: Plan
) -> Report:
    """On what the large one writes: greedily, the share of tokens that the small one would have
    chosen; at temperature 1, the mean of sum(min(p, q))."""
    found: Report = {}
    greedy = large.write(prompts, plan.tokens, Sampling(temperature=0.0))
    sampled = large.write(prompts, plan.tokens, Sampling(temperature=1.0, seed=plan.seed))
    for name, answers in (("acceptance", greedy), ("acceptance_sampled", sampled)):
        rows = [
            _agreement(small, large, [*prompt, *answer], len(prompt))
            for prompt, answer in track(
                list(zip(prompts, answers, strict=True)), name, console=Console(stderr=True)
            )
            if answer
        ]
        counts = [row.positions for row in rows]
        for head in ("full", "trimmed"):
            key = name if head == "full" else f"{name}_trimmed_head"
            column = "same" if name == "acceptance" else "accepted"
            found[key] = asdict(ratio([getattr(row, f"{column}_{head}") for row in rows], counts))
        found[f"{name}_positions"] = sum(counts)
    return found


@dataclass(frozen=True)
class _Row:
    positions: int
    accepted_full: float
    same_full: int
    accepted_trimmed: float
    same_trimmed: int


def _agreement(small: Measured, large: Measured, ids: Sequence[int], start: int) -> _Row:
    log_p = large.log_probabilities(ids, start)
    hidden = small.hidden(ids)[start - 1 : len(ids) - 1]
    log_q = torch.log_softmax(small.decoder.logits(hidden), -1)
    best, drafting = log_p.argmax(-1), small.decoder.drafting
    trimmed = torch.log_softmax(small.decoder.draft_logits(hidden), -1)
    known = log_p if drafting is None else log_p[:, drafting]
    guess = trimmed.argmax(-1) if drafting is None else drafting[trimmed.argmax(-1)]
    return _Row(
        len(log_p),
        float(torch.minimum(log_p, log_q).exp().sum()),
        int((log_q.argmax(-1) == best).sum()),
        float(torch.minimum(known, trimmed).exp().sum()),
        int((guess == best).sum()),
    )


def pace(small: Measured, large: Measured, int8: Measured | None, plan: Plan) -> Report:
    """Time of the small one's tokens by the large one's: written (whole head), and drafted.

    Every round times every side once, so that what else the machine does falls on all; medians
    of the rounds' ratios, between the least and the greatest.
    """
    ids = large.chat(OWN[0])
    sides: dict[str, Callable[[], float]] = {
        "small": _Step(small, ids),
        "drafted": _Step(small, ids, drafting=True),
        "large": _Step(large, ids),
    }
    if int8 is not None:
        sides["int8"] = _Step(int8, ids)
    rounds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(plan.rounds + 1):
        for name, side in sides.items():
            seconds = side()
            if number:  # the first one warms up
                rounds[name].append(seconds)
    found: Report = {"tokens_per_second_ratio": _between(rounds["large"], rounds["small"])}
    for under in ("large", "int8"):
        if under in rounds:
            found[f"drafted_vs_{under}"] = _between(rounds["drafted"], rounds[under])
            found[f"small_vs_{under}"] = _between(rounds["small"], rounds[under])
    return found


def _between(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    each = [a / b for a, b in zip(over, under, strict=True)]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


class _Step:
    """Seconds of one greedy token, the mean over some in a row."""

    def __init__(self, model: Measured, ids: Sequence[int], drafting: bool = False) -> None:
        self._decoder, self._drafting = model.decoder, drafting
        self._ids = list(ids)
        cache = self._decoder.kv_memory(2**28, 0).acquire(ids, len(ids) + SPAN)
        assert cache is not None, "256 MiB hold a short prompt"
        self._cache = cache
        self._decoder.forward(torch.tensor(self._ids), [Span(cache, len(self._ids))])

    def __call__(self) -> float:
        began, id = time.perf_counter(), self._ids[-1]
        for _ in range(SPAN):
            hidden = self._decoder.forward(torch.tensor([id]), [Span(self._cache, 1)])
            id = self._best(hidden)
        took = (time.perf_counter() - began) / SPAN
        self._cache.truncate(len(self._ids))
        return took

    def _best(self, hidden: Tensor) -> int:
        decoder = self._decoder
        if not self._drafting:
            return int(decoder.logits(hidden).argmax())
        best = int(decoder.draft_logits(hidden).argmax())
        return best if decoder.drafting is None else int(decoder.drafting[best])


def likelihood(model: Measured, texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Nats a token of texts that nobody of us wrote, the first token of each left out."""
    sums, counts = [], []
    for ids in texts:
        log_p = model.log_probabilities(ids, 1)
        sums.append(-float(log_p.gather(1, torch.tensor(ids[1:])[:, None]).sum()))
        counts.append(len(ids) - 1)
    return asdict(ratio(sums, counts))
