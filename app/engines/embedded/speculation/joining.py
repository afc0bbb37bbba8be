"""Which of the engine's models may guess for which, and what their passes cost to begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from app.catalog import ModelCard
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.scheduler import Scheduler
from app.engines.embedded.speculation.goodput import StepCost, clock_of
from app.engines.embedded.speculation.guessing import DraftModel
from app.engines.embedded.speculation.speculator import LONGEST, Speculator
from app.errors import ConfigError, EngineUnsupported
from app.nets.acceptance_head import HEAD, AcceptanceHead
from app.types import LEAST_LENIENCE, Call, LengthRule, Speculates

_TRAINING_FREE: tuple[LengthRule, ...] = ("confidence", "adaedl", "heuristic", "fixed")
_SHORT, _LONG = 32, 416  # tokens before the passes that are measured
_ROWS, _ROUNDS = 4, 9  # further rows; how often


class Loaded(Protocol):
    """A model as the engine has it."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def decoder(self) -> Decoder: ...

    @property
    def scheduler(self) -> Scheduler: ...


def join(models: Iterable[Loaded], paths: Mapping[str, Path], threads: int) -> None:
    """Give each model's scheduler somebody who guesses: the cheaper models of its family.

    Raises ConfigError for an acceptance head that is none, or not of its model.
    """
    models = list(models)
    costs = {m.card.name: measure(m.decoder, threads) for m in models}
    heads = {m.card.name: _head(m, paths[m.card.name]) for m in models}
    for model in models:
        drafts = {
            other.card.name: DraftModel(
                other.card.name,
                other.decoder,
                other.scheduler.memory,
                heads[other.card.name],
            )
            for other in sorted(models, key=lambda m: m.card.price.output)
            if other is not model
            and other.card.family == model.card.family
            # Some families pad their vocabularies by the model's size: one cannot read all that
            # the other may write.
            and other.decoder.config.vocabulary == model.decoder.config.vocabulary
            and other.card.price.output <= model.card.price.output
        }
        model.scheduler.speculator = Speculator(
            costs[model.card.name], drafts, clock_of(model.decoder.device)
        )


def _head(model: Loaded, path: Path) -> AcceptanceHead | None:
    """Raises ConfigError naming the model's table."""
    named, at = model.card.acceptance_head, f"[models.{model.card.name}]: acceptance_head"
    file = Path(named).expanduser() if named else path / HEAD
    if not named and not file.is_file():
        return None
    try:
        head = AcceptanceHead.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{at}: {error}") from error
    if head.about.hidden != model.decoder.config.hidden:
        raise ConfigError(
            f"{at}: {file} is for states of {head.about.hidden} numbers, and this model's have"
            f" {model.decoder.config.hidden}"
        )
    return head.to(model.decoder.device)


def measure(decoder: Decoder, threads: int) -> StepCost:
    """What a pass of this decoder costs, by a few of them: alone, of two, and with more rows
    behind few and many tokens."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = _pass(decoder, 1, 1, _SHORT), _pass(decoder, 2, 1, _SHORT)
        rows, long = _pass(decoder, 1, 1 + _ROWS, _SHORT), _pass(decoder, 1, 1 + _ROWS, _LONG)
    finally:
        torch.set_num_threads(before)
    # Another process may have held up one of them: within what any machine is known to do.
    attended = max((long - rows) / ((1 + _ROWS) * (_LONG - _SHORT)), 0.0)
    sequence = max(second - first - attended * _SHORT, 0.02 * first)
    row = max((rows - first) / _ROWS - attended * _SHORT, 0.02 * first)
    return StepCost(first - attended * _SHORT, sequence, min(row, sequence), 1000 * attended)


def _pass(decoder: Decoder, sequences: int, rows: int, length: int) -> float:
    """Seconds of one pass behind `length` tokens, the quickest of a few."""
    length = min(length, decoder.config.context - rows)
    memory = decoder.kv_memory(2**32, 0)
    caches = [memory.acquire([0] * length, length + rows) for _ in range(sequences)]
    spans = [Span(cache, rows) for cache in caches if cache is not None]
    tokens = torch.zeros(rows * sequences, dtype=torch.long)
    for span in spans:
        decoder.forward(torch.zeros(length, dtype=torch.long), [Span(span.cache, length)])
    took, clock = list[float](), clock_of(decoder.device)
    for _ in range(_ROUNDS):
        began = clock()
        decoder.logits(decoder.forward(tokens, spans)).argmax().item()  # waits for the result
        took.append(clock() - began)
        for span in spans:
            span.cache.truncate(length)
    for span in spans:
        memory.release(span.cache, [0] * length, keep=False)
    return min(took)


def abilities(scheduler: Scheduler) -> Speculates:
    """What may be asked of this model."""
    drafts = {} if scheduler.speculator is None else scheduler.speculator.drafts
    heads = [model.head is not None for model in drafts.values()]
    rules: tuple[LengthRule, ...] = _TRAINING_FREE
    if any(heads):  # best where the best draft has one
        rules = ("head", *rules) if heads[0] else (*rules, "head")
    return Speculates(
        drafts=tuple(drafts),
        lookup=True,
        rules=rules,
        acceptance=("exact", "lenient", "typical"),
        longest=LONGEST,
    )


def check(call: Call, scheduler: Scheduler) -> None:
    """Refuse a speculation that is not to be had. Raises EngineUnsupported."""
    asked = call.decoding.speculation
    if asked is None:
        return
    drafts = {} if scheduler.speculator is None else scheduler.speculator.drafts
    if not asked.draft and not asked.lookup:
        raise _refusal("names no draft model, and no look-up")
    if asked.draft and asked.draft not in drafts:
        there = ", ".join(drafts) or "none"
        raise _refusal(f"{asked.draft!r} cannot guess for {call.model}; there are: {there}")
    if asked.rule == "head" and asked.draft and drafts[asked.draft].head is None:
        raise _refusal(f"{asked.draft} has no acceptance head; see `farthing train`")
    if not 1 <= asked.longest <= LONGEST:
        raise _refusal(f"a draft has 1 to {LONGEST} tokens, not {asked.longest}")
    if not LEAST_LENIENCE <= asked.lenience <= 1:
        raise _refusal(f"lenience is {LEAST_LENIENCE:g} to 1, not {asked.lenience:g}")


def _refusal(why: str) -> EngineUnsupported:
    return EngineUnsupported(f"speculation: {why}", param="policy")
