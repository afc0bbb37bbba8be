"""Ratios of the embedded engine against transformers, and against itself, both sides in one run."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.engines.embedded.linear import Precision
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.scheduler import Scheduler
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.tokenizer import Tokenizer, tokenizer_from_metadata
from app.engines.embedded.weights import GGUFFile, load
from app.engines.embedded.worker import spare_threads
from app.errors import ConfigError
from app.types import Call, Sampling

PROMPT = "Explain in plain words why the sky is blue at noon and red in the evening. "
KV_BYTES = 2**30
ROWS = 8  # of the batch, and of the one pass


@dataclass(frozen=True)
class Length:
    """How much one round measures."""

    prompt: int  # tokens read before the clock starts
    tokens: int  # tokens written while it runs
    passes: int  # forward passes timed for the ratio of passes
    rounds: int  # the medians are over these


FULL = Length(prompt=64, tokens=64, passes=20, rounds=5)
QUICK = Length(prompt=64, tokens=24, passes=8, rounds=3)
Rounds = dict[str, list[float]]


def run(
    weights: Path,
    *,
    quick: bool = False,
    json_file: Path | None = None,
    threads: int | None = None,
) -> None:
    """Measure this GGUF file, print a table, and write the figures to `json_file`.

    Both sides get as many `threads`, by default those that the engine takes when it serves.

    Every round measures every side once, one after the other, so that what else the machine does
    falls on all of them; a ratio is the median of the rounds' ratios, beside it the least and
    the greatest. Raises ConfigError where transformers cannot read the file.
    """
    if find_spec("accelerate") is None:
        raise ConfigError("transformers reads GGUF files with accelerate: pip install accelerate")
    torch.set_num_threads(threads or spare_threads())
    transformers.utils.logging.disable_progress_bar()
    length = QUICK if quick else FULL
    console = Console(stderr=True)
    file = GGUFFile(weights)
    tokenizer = tokenizer_from_metadata(file.metadata)
    ids = _prompt(tokenizer, length.prompt)
    with console.status("loading transformers' model"):
        reference = AutoModelForCausalLM.from_pretrained(
            weights.parent, gguf_file=weights.name, dtype=torch.float32
        )
    with console.status("loading ours"):
        config, loaded = load(file)
        sides: dict[str, Precision] = {"fp32": "fp32", "int8": "int8"}
        ours = {name: Decoder(config, loaded, precision) for name, precision in sides.items()}
        del loaded
    rounds: Rounds = {}
    for number in range(length.rounds + 1):
        with console.status(f"round {number} of {length.rounds}" if number else "warming up"):
            figures = _round(reference, ours, tokenizer, ids, length)
        if number:  # the first one warms up
            for name, value in figures.items():
                rounds.setdefault(name, []).append(value)
    report = _report(rounds, length, weights)
    _show(report, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _round(
    reference: PreTrainedModel,
    ours: dict[str, Decoder],
    tokenizer: Tokenizer,
    ids: Sequence[int],
    length: Length,
) -> dict[str, float]:
    figures = {"transformers_fp32": _theirs(reference, ids, length.tokens)}
    for name, decoder in ours.items():
        figures[f"{name}_1"] = _decode(decoder, tokenizer, [ids], length.tokens)
        # Prompts that differ from the first token on share no prefix.
        batch = [[*ids[at:], *ids[:at]] for at in range(ROWS)]
        figures[f"{name}_{ROWS}"] = _decode(decoder, tokenizer, batch, length.tokens)
        one, many = (_pass(decoder, ids, rows, length.passes) for rows in (1, ROWS))
        figures[f"{name}_pass{ROWS}_vs_1"] = many / one
    return figures


def _theirs(model: PreTrainedModel, ids: Sequence[int], tokens: int) -> float:
    """Tokens per second of transformers' greedy `generate` after the first one."""

    def seconds(count: int) -> float:
        began = time.perf_counter()
        model.generate(
            torch.tensor([list(ids)]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
        )
        return time.perf_counter() - began

    # The prompt and the first token are in both, so they are not in the difference.
    return (tokens - 1) / (seconds(tokens) - seconds(1))


def _decode(
    decoder: Decoder, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], tokens: int
) -> float:
    """Tokens per second of all sequences together, through the scheduler, once all are read."""
    scheduler = Scheduler(decoder, decoder.kv_memory(KV_BYTES, 0))
    call = Call("bench", max_tokens=tokens, sampling=Sampling(temperature=0, ignore_eos=True))
    # One prompt is read a step, while those before it write: let the first write so much more.
    extra = [len(prompts) * (-(-len(ids) // 64)) for ids in prompts]
    sequences = [
        RunningSequence(call, ids, tokens + more, tokenizer)
        for ids, more in zip(prompts, extra, strict=True)
    ]
    for sequence in sequences:
        scheduler.submit(sequence)
    while any(sequence.reading for sequence in sequences):
        scheduler.step()
    before = sum(sequence.written for sequence in sequences)
    began = time.perf_counter()
    for _ in range(tokens - 1):
        scheduler.step()
    took = time.perf_counter() - began
    return (sum(sequence.written for sequence in sequences) - before) / took


def _pass(decoder: Decoder, ids: Sequence[int], rows: int, passes: int) -> float:
    """Seconds of one pass over `rows` new tokens of one sequence, logits of each included."""
    cache = decoder.kv_memory(KV_BYTES).acquire(ids, len(ids) + rows)
    if cache is None:
        raise MemoryError(f"{KV_BYTES} bytes do not hold {len(ids) + rows} tokens")
    decoder.forward(torch.tensor(ids), [Span(cache, len(ids))])
    new = torch.tensor(ids[:rows])

    def once() -> None:
        decoder.logits(decoder.forward(new, [Span(cache, rows)]))
        cache.truncate(len(ids))

    return statistics.median(_timed(once) for _ in range(passes))


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _prompt(tokenizer: Tokenizer, tokens: int) -> list[int]:
    ids = tokenizer.encode(PROMPT)
    return (ids * (-(-tokens // len(ids))))[:tokens]


def _report(rounds: Rounds, length: Length, weights: Path) -> dict[str, object]:
    def ratios(over: str, under: str) -> list[float]:
        return [a / b for a, b in zip(rounds[over], rounds[under], strict=True)]

    found = {
        "decode_vs_transformers": ratios("fp32_1", "transformers_fp32"),
        "int8_vs_transformers": ratios("int8_1", "transformers_fp32"),
        "batch8_vs_1": ratios(f"int8_{ROWS}", "int8_1"),
        "pass8_vs_1": rounds[f"int8_pass{ROWS}_vs_1"],
        "batch8_vs_1_fp32": ratios(f"fp32_{ROWS}", "fp32_1"),
        "pass8_vs_1_fp32": rounds[f"fp32_pass{ROWS}_vs_1"],
        "int8_vs_fp32": ratios("int8_1", "fp32_1"),
    }
    report: dict[str, object] = {name: statistics.median(each) for name, each in found.items()}
    report["rounds"] = found
    report["tokens_per_second"] = {
        name: statistics.median(each) for name, each in rounds.items() if "pass" not in name
    }
    report["setup"] = {
        "weights": weights.name,
        "length": vars(length),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    return report


_MEANING = {
    "decode_vs_transformers": "decode, fp32, against transformers' generate in fp32",
    "int8_vs_transformers": "decode, int8, against transformers' generate in fp32",
    "batch8_vs_1": "eight sequences against one, tokens/s in all, int8",
    "pass8_vs_1": "time of a pass over 8 tokens against one over 1, int8",
    "batch8_vs_1_fp32": "eight sequences against one, tokens/s in all, fp32",
    "pass8_vs_1_fp32": "time of a pass over 8 tokens against one over 1, fp32",
    "int8_vs_fp32": "decode, int8, against fp32",
}


def _show(report: dict[str, object], console: Console) -> None:
    rounds = report["rounds"]
    assert isinstance(rounds, dict)
    table = Table(title="farthing bench engine")
    table.add_column("ratio")
    table.add_column("median", justify="right")
    table.add_column("least to greatest")
    for name, meaning in _MEANING.items():
        each = rounds[name]
        spread = f"{min(each):.2f} to {max(each):.2f}"
        table.add_row(meaning, f"{statistics.median(each):.2f}", spread)
    console.print(table)
    console.print(f"tokens/s: {report['tokens_per_second']}", markup=False, highlight=False)
    console.print(f"{report['setup']}", markup=False, highlight=False)
