"""What a hand-over between two vLLM servers costs, and what logprobs cost on one of them."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.catalog import ModelCard, Price
from app.engines.remote.rendering import Renderings
from app.engines.vllm import VllmServer
from app.types import Call, Decoding, Sampling

TURN = 12  # tokens that each model writes before it hands over
PROMPT = 60  # sentences of the prompt: about 1,700 tokens
_SENTENCE = "On day {} the keeper wrote down {} boats, a wind of {} knots and rain until {}."


@dataclass(frozen=True)
class Length:
    """How much is measured."""

    prompts: int
    switches: int  # to the large model, after a first one that is not counted
    tokens: int  # of each stream of the logprobs' part
    rounds: int


FULL = Length(prompts=5, switches=6, tokens=48, rounds=5)
QUICK = Length(prompts=2, switches=3, tokens=16, rounds=2)


@dataclass
class Gaps:
    """Seconds."""

    gaps: list[float] = field(default_factory=list)  # last token before to first token after
    itls: list[float] = field(default_factory=list)  # of the large model


def run(
    small: str,
    large: str,
    *,
    small_name: str,
    large_name: str,
    quick: bool = False,
    json_file: Path | None = None,
    seed: int = 1,
) -> None:
    """Measure, print two tables, and write the figures to `json_file`. Raises EngineError."""
    found = asyncio.run(
        _measure(
            (small, small_name), (large, large_name), QUICK if quick else FULL, random.Random(seed)
        )
    )
    _print(found)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


async def _measure(
    small: tuple[str, str], large: tuple[str, str], length: Length, seeded: random.Random
) -> dict[str, dict[str, dict[str, float]]]:
    renderings = Renderings()
    servers = [_server(*small, renderings), _server(*large, renderings)]
    try:
        for server in servers:
            await server.probe()
        return {
            "handover": await _handover(servers[0], servers[1], length, seeded),
            "logprobs": await _logprobs(servers[1], length, seeded),
        }
    finally:
        for server in servers:
            await server.aclose()


def _server(url: str, name: str, renderings: Renderings) -> VllmServer:
    price = Price.model_validate({"input": 0, "output": 0})
    card = ModelCard(name=name, engine="vllm", urls=(url,), family="pair", price=price)
    return VllmServer(card, url, None, renderings)


async def _handover(
    small: VllmServer, large: VllmServer, length: Length, seeded: random.Random
) -> dict[str, dict[str, float]]:
    """Every prompt is answered with prefix caching and without, one right after the other."""
    cached, uncached = Gaps(), Gaps()
    for _ in range(length.prompts):
        prompt = _prompt(seeded)
        for gaps, salt in ((cached, _same(uuid.uuid4().hex)), (uncached, _fresh)):
            await _alternate(small, large, prompt, length.switches, gaps, salt)
    return {
        "cached": _summary(cached, seeded),
        "uncached": _summary(uncached, seeded),
    }


async def _alternate(
    small: VllmServer,
    large: VllmServer,
    prompt: str,
    switches: int,
    gaps: Gaps,
    salt: Callable[[], str],
) -> None:
    """The two write in turns, as entropy switching has them do: streams are closed by us."""
    call = _call(prompt)
    written: tuple[int, ...] = ()
    for number in range(switches + 1):
        ids, _ = await _turn(small, replace(call, written=written, extra={"cache_salt": salt()}))
        written, last = written + ids, time.perf_counter()
        ids, times = await _turn(
            large, replace(call, written=written, extra={"cache_salt": salt()})
        )
        written += ids
        if number:  # the first time it has to read the prompt, whatever is cached
            gaps.gaps.append(times[0] - last)
            gaps.itls += [b - a for a, b in zip(times[1:], times[2:], strict=False)]


async def _turn(server: VllmServer, call: Call) -> tuple[tuple[int, ...], list[float]]:
    """Ids and arrival times of TURN tokens; then the stream is closed in mid-answer."""
    ids: list[int] = []
    times: list[float] = []
    async with aclosing(server.generate(call)) as chunks:
        async for chunk in chunks:
            for token in chunk.tokens:
                ids.append(token.id)
                times.append(time.perf_counter())
            if len(ids) >= TURN:
                break
    return tuple(ids), times


async def _logprobs(
    server: VllmServer, length: Length, seeded: random.Random
) -> dict[str, dict[str, float]]:
    """ITL and bytes of one stream for numbers of logprobs, and with the plugin's entropies."""
    able = server.abilities
    variants: dict[str, Call] = {}
    prompt = _prompt(seeded)
    for number in (None, 0, 5, 20, 100):
        if number is None or (able is not None and number <= able.top):
            asked = replace(_call(prompt), sampling=_sampling(number))
            variants["none" if number is None else f"k={number}"] = asked
    if able is not None and able.reports:
        variants["plugin"] = _call(prompt).decoded(Decoding(entropy=True))
    itls: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(length.rounds + 1):
        for name, call in variants.items():
            times: list[float] = []
            async with aclosing(server.generate(replace(call, max_tokens=length.tokens))) as chunks:
                async for chunk in chunks:
                    times += [time.perf_counter()] * len(chunk.tokens)
            if number:  # the first round warms
                itls[name] += [b - a for a, b in zip(times, times[1:], strict=False)]
    plain = statistics.median(itls["none"])
    sizes = {name: await _size(server, call, length.tokens) for name, call in variants.items()}
    return {
        name: {
            "itl_ms": statistics.median(found) * 1000,
            "itl_ratio": statistics.median(found) / plain,
            "bytes_per_token": sizes[name],
        }
        for name, found in itls.items()
    }


async def _size(server: VllmServer, call: Call, tokens: int) -> float:
    """Bytes that one token takes on the way from the server to us."""
    path = "/v1/completions"
    body, headers = await server.request(replace(call, max_tokens=tokens))
    size = 0
    async with server.origin.stream(path, body, headers) as response:
        while data := await response.content.readany():
            size += len(data)
    return size / tokens


def _prompt(seeded: random.Random) -> str:
    sentences = [
        _SENTENCE.format(day, seeded.randrange(99), seeded.randrange(60), seeded.randrange(24))
        for day in range(PROMPT)
    ]
    return " ".join([*sentences, "Tell a long story about this keeper."])


def _call(prompt: str) -> Call:
    messages = ({"role": "user", "content": prompt},)
    return Call("", messages=messages, max_tokens=64, sampling=_sampling(None))


def _sampling(logprobs: int | None) -> Sampling:
    return Sampling(temperature=0, ignore_eos=True, logprobs=logprobs)


def _same(salt: str) -> Callable[[], str]:
    return lambda: salt


def _fresh() -> str:
    return uuid.uuid4().hex


def _summary(gaps: Gaps, seeded: random.Random) -> dict[str, float]:
    """Medians, and the excess of the gap over an ITL in ITLs with its 95 % interval."""
    itl = statistics.median(gaps.itls)
    excess = [(gap - itl) / itl for gap in gaps.gaps]
    low, high = _interval(excess, seeded)
    return {
        "switches": len(gaps.gaps),
        "gap_ms": statistics.median(gaps.gaps) * 1000,
        "itl_ms": itl * 1000,
        "excess_itls": statistics.median(excess),
        "low": low,
        "high": high,
    }


def _interval(values: Sequence[float], seeded: random.Random) -> tuple[float, float]:
    """The bootstrap's 95 % interval of the median."""
    medians = sorted(statistics.median(seeded.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[-51]


def _print(found: dict[str, dict[str, dict[str, float]]]) -> None:
    console = Console()
    for part, rows in found.items():
        columns = list(next(iter(rows.values())))
        table = Table(part, *columns, box=None)
        for name, row in rows.items():
            table.add_row(name, *(f"{row[column]:.2f}" for column in columns))
        console.print(table)
