"""Edited prompts: what moving the tokens behind an edit saves (PIE), and what it costs."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.bench.code_edits import KINDS, Edit, Function, draw, read_functions
from app.bench.reading import Measured, Weights
from app.engines.embedded.attention import MOST
from app.engines.embedded.kv_cache import EXACT, KVMemory, SequenceCache
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.scheduler import Model, Scheduler
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.worker import spare_threads
from app.errors import ConfigError
from app.estimates import mean, ratio
from app.types import Call, Decoding, Sampling, Usage

_KV_BYTES = 2**31
_CONVERSATION = "bench"
_FULL, _PREFIX, _MOVED, _NAIVE = "recomputed", "prefix cache", "moved (PIE)", "moved, not turned"
_WAYS = (_FULL, _PREFIX, _MOVED, _NAIVE)


@dataclass(frozen=True)
class Plan:
    """What is edited, and how much."""

    code: Path | None  # JSONL: functions, as HumanEval has them
    tokens: int = 1024  # of a file, about
    edits: int = 100  # a third of each kind
    answer: int = 64  # tokens written of the last function, at most
    clock: Literal["wall", "cpu"] = "wall"
    seed: int = 0


@dataclass(frozen=True)
class Prompts:
    """A file before and after an edit, as ids of a bare prompt: code is completed, no chat."""

    kind: str
    old: tuple[int, ...]
    new: tuple[int, ...]


@dataclass(frozen=True)
class Way:
    """A way to read an edited file."""

    name: str
    model: Model
    reuses: bool = True  # what was read of the old file
    moves: bool = False  # what follows the edit too


@dataclass(frozen=True)
class Result:
    """What came of one edited file."""

    seconds: float  # to the first token
    computed: int  # tokens of the prompt
    answer: tuple[int, ...]
    memory: KVMemory  # which keeps the prompt as it was read
    space: str


@dataclass(frozen=True)
class Point:
    """A result beside that of recomputation."""

    seconds: float
    computed: int
    same: float  # 1: the same answer
    similarity: float  # of the answers' texts
    agreed: float  # share of the other's tokens that are likeliest here too
    nats: float  # of the other's answer, a token


class Unturned(Decoder):
    """A decoder that leaves moved keys as they were, to show what turning them is for."""

    def __init__(self, decoder: Decoder) -> None:
        self.__dict__.update(decoder.__dict__)  # the same weights, without another copy

    def turn(self, cache: SequenceCache, start: int, count: int, by: int) -> None:
        """Nothing."""


def run(
    base: Weights, plan: Plan, *, threads: int | None = None, json_file: Path | None = None
) -> None:
    """Measure, print a table, and write the figures to `json_file`. Raises ConfigError."""
    console = Console(stderr=True)
    torch.set_num_threads(threads or spare_threads())
    try:
        if plan.code is None:
            raise ConfigError("--code: names no file of functions (or set FARTHING_DATA)")
        functions = read_functions(plan.code)
        with console.status("loading the model"):
            model = Measured.load(base)
        points = measure(model, prompts_of(model, functions, plan), plan, console)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    report = _report(model, points, plan)
    _show(report, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def prompts_of(model: Measured, functions: Sequence[Function], plan: Plan) -> list[Prompts]:
    """The edits, kinds in turn. Raises ValueError where one does not fit the model's context."""
    found = []
    for number in range(plan.edits):
        kind = KINDS[number % len(KINDS)]
        edit: Edit = draw(functions, kind, model.tokenizer, plan.tokens, plan.seed + number)
        old, new = (tuple(model.tokenizer.encode(text)) for text in (edit.before, edit.after))
        context = model.decoder.config.context
        if max(len(old), len(new)) + plan.answer > context:
            raise ValueError(
                f"a file of {max(len(old), len(new))} tokens and an answer of {plan.answer} do not"
                f" fit a context of {context}: ask for fewer tokens"
            )
        found.append(Prompts(kind, old, new))
    return found


def ways_of(decoder: Decoder) -> list[Way]:
    return [
        Way(_FULL, decoder, reuses=False),
        Way(_PREFIX, decoder),
        Way(_MOVED, decoder, moves=True),
        Way(_NAIVE, Unturned(decoder), moves=True),
    ]


def measure(
    model: Measured, prompts: Sequence[Prompts], plan: Plan, console: Console
) -> list[tuple[str, dict[str, Point]]]:
    """By edit its kind, and what came of each way; the ways in drawn order."""
    drawn, ways = random.Random(plan.seed), ways_of(model.decoder)
    clock: Callable[[], float] = time.thread_time if plan.clock == "cpu" else time.perf_counter
    found = []
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("editing", total=len(prompts))
        for number, each in enumerate(prompts):
            old = read_once(model, each.old)
            if not number:  # what is compiled or loaded at first use is not of this
                for way in ways:
                    answered(way, model, old, each, 2, clock)
            results = {
                way.name: answered(way, model, old, each, plan.answer, clock)
                for way in drawn.sample(ways, len(ways))
            }
            exact = results[_FULL].answer
            found.append(
                (each.kind, {name: _judged(model, each, r, exact) for name, r in results.items()})
            )
            progress.advance(bar)
    return found


def read_once(model: Measured, ids: Sequence[int]) -> SequenceCache:
    """Keys and values of a file, read as the engine reads it."""
    memory = model.decoder.kv_memory(_KV_BYTES)
    sequence = _sequence(model, ids, 1)
    _step(Scheduler(model.decoder, memory, max_running=1), sequence)
    cache = memory.acquire(sequence.tokens, len(sequence.tokens))
    if cache is None or cache.length != len(ids):
        raise MemoryError(f"{_KV_BYTES} bytes do not hold {len(ids)} tokens")
    return cache


def answered(
    way: Way,
    model: Measured,
    old: SequenceCache,
    prompts: Prompts,
    tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """The edited file read in this way, and a greedy answer. Raises what the sequence failed
    with."""
    memory = model.decoder.kv_memory(_KV_BYTES)
    if way.reuses:
        kept = memory.acquire(prompts.old, len(prompts.old))
        assert kept is not None, "an empty memory holds what another held"
        kept.buffer[:, :, : old.length] = old.buffer[:, :, : old.length]
        kept.length = old.length
        memory.release(kept, prompts.old)
    scheduler = Scheduler(way.model, memory, max_running=1)
    sequence = _sequence(model, prompts.new, tokens, _CONVERSATION if way.moves else None)
    began = clock()
    scheduler.submit(sequence)
    while not sequence.written and sequence.error is None:
        scheduler.step()
    took = clock() - began
    _step(scheduler)
    if sequence.error is not None:
        raise sequence.error
    usage = sum((chunk.usage for chunk in sequence.outbox), Usage())
    answer = tuple(sequence.tokens[sequence.prompt_length :])
    return Result(took, usage.prompt - usage.cached, answer, memory, sequence.space or EXACT)


def _sequence(
    model: Measured, ids: Sequence[int], tokens: int, edited: str | None = None
) -> RunningSequence:
    decoding = Decoding(edited=edited)
    call = Call(model.name, sampling=Sampling(temperature=0.0), decoding=decoding)
    return RunningSequence(call, ids, tokens, model.tokenizer)


def _step(scheduler: Scheduler, sequence: RunningSequence | None = None) -> None:
    """Until nothing is left to do."""
    if sequence is not None:
        scheduler.submit(sequence)
    while scheduler.step():
        pass


def _judged(model: Measured, prompts: Prompts, result: Result, exact: Sequence[int]) -> Point:
    """A result, and how likely the exact answer is behind the prompt as this way has read it."""
    decoder, ids = model.decoder, prompts.new
    room = len(ids) + max(len(exact), len(result.answer))
    cache = result.memory.acquire([*ids, *result.answer], room, result.space)
    assert cache is not None and cache.length >= len(ids), "it has just been kept"
    # In pieces that compute what a token at a time would. The prompt's last token is read once
    # more for what follows it; what stands behind sees it as it was.
    fed = exact[:-1]
    pieces = [fed[at : at + MOST] for at in range(0, len(fed), MOST)]
    cache.truncate(len(ids))
    hidden = [_pass(decoder, cache, piece) for piece in pieces]
    cache.truncate(len(ids) - 1)
    hidden = [_pass(decoder, cache, ids[-1:]), *hidden]
    logs = torch.log_softmax(decoder.logits(torch.cat(hidden)), -1)
    judged = torch.tensor(list(exact))
    return Point(
        seconds=result.seconds,
        computed=result.computed,
        same=float(result.answer == tuple(exact)),
        similarity=similarity(_text(model, result.answer), _text(model, exact)),
        agreed=float((logs.argmax(-1) == judged).float().mean()),
        nats=-float(logs.gather(1, judged[:, None]).mean()),
    )


def _pass(decoder: Decoder, cache: SequenceCache, ids: Sequence[int]) -> torch.Tensor:
    return decoder.forward(torch.tensor(list(ids)), [Span(cache, len(ids))])


def _text(model: Measured, ids: Sequence[int]) -> str:
    return b"".join(map(model.tokenizer.piece, ids)).decode(errors="replace")


def similarity(one: str, other: str) -> float:
    """Edit similarity: 1 less the Levenshtein distance, by the longer one's characters."""
    row = list(range(len(other) + 1))
    for at, char in enumerate(one, 1):
        before, row[0] = row[0], at
        for place, theirs in enumerate(other, 1):
            changed = before + (char != theirs)
            before = row[place]
            row[place] = min(changed, before + 1, row[place - 1] + 1)
    longest = max(len(one), len(other))
    return 1 - row[-1] / longest if longest else 1.0


def _report(
    model: Measured, found: Sequence[tuple[str, dict[str, Point]]], plan: Plan
) -> dict[str, Any]:
    points = []
    for kind in ("all", *KINDS):
        chosen = [points for of, points in found if kind in ("all", of)]
        if chosen:
            points += [_estimates(kind, name, chosen) for name in _WAYS]
    said = {name: str(v) if isinstance(v, Path) else v for name, v in vars(plan).items()}
    setup = {
        "model": model.name,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "plan": said,
    }
    return {"points": points, "setup": setup}


def _estimates(kind: str, name: str, found: Sequence[Mapping[str, Point]]) -> dict[str, Any]:
    ours, full = [each[name] for each in found], [each[_FULL] for each in found]
    prefix = [each[_PREFIX] for each in found]
    seconds = [point.seconds for point in ours]
    added = [a.nats - b.nats for a, b in zip(ours, full, strict=True)]
    return {
        "kind": kind,
        "way": name,
        "edits": len(ours),
        "prompt_tokens": asdict(mean([p.computed for p in full])),
        "computed_share": asdict(ratio([p.computed for p in ours], [p.computed for p in full])),
        "ttft_ratio": asdict(ratio([p.seconds for p in full], seconds)),
        "ttft_ratio_to_prefix": asdict(ratio([p.seconds for p in prefix], seconds)),
        "exact_match": asdict(mean([p.same for p in ours])),
        "similarity": asdict(mean([p.similarity for p in ours])),
        "agreement": asdict(mean([p.agreed for p in ours])),
        "nats": asdict(mean([p.nats for p in ours])),
        "nats_added": asdict(mean(added)),
    }


def _show(report: Mapping[str, Any], console: Console) -> None:
    table = Table(title=f"edited files, {report['setup']['model']}", show_lines=True)
    speed = ("computed_share", "ttft_ratio", "ttft_ratio_to_prefix")
    columns = (*speed, "exact_match", "similarity", "agreement", "nats_added")
    for column in ("edit", "way", *(name.replace("_", " ") for name in columns)):
        table.add_column(column, justify="right")
    for point in report["points"]:
        cells = [_interval(point[column]) for column in columns]
        table.add_row(point["kind"], point["way"], *cells)
    console.print(table)


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f}\n{value['low']:.3f} to {value['high']:.3f}"
