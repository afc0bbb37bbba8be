"""What the policy kv_prediction costs prompts that are too short for it, and are read exactly."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from app.bench.reading import Weights
from app.budget import Purse
from app.catalog import Catalog, ModelCard, Price
from app.engines.embedded.engine import EmbeddedEngine
from app.estimates import ratio
from app.gateway import Gateway, Order
from app.types import Call, Sampling

_WAYS = ("direct", "kv_prediction")
_FREE = Price.model_validate({"input": 0, "output": 0})


def measure(
    base: Weights,
    predictors: Sequence[Path],
    texts: Sequence[str],
    lengths: Sequence[int],
    pairs: int,
    clock: Literal["wall", "cpu"],
    seed: int,
    threads: int | None,
) -> Mapping[int, Mapping[str, Any]]:
    """By length in tokens, how many times sooner the first token comes by the policy's defaults
    than by `direct`: chats over `texts`, each new to the prefix cache, each as long in both ways.
    CPU time is the process's. Raises ConfigError."""
    card = ModelCard(
        name=base.name,
        engine="embedded",
        family=base.name,
        price=_FREE,
        precision=base.precision,
        weights=str(base.path),
        kv_predictors=tuple(map(str, predictors)),
    )
    engine = EmbeddedEngine([card], {base.name: base.path}, threads=threads)
    now = time.process_time if clock == "cpu" else time.perf_counter
    return asyncio.run(_measure(engine, card, texts, lengths, pairs, now, random.Random(seed)))


async def _measure(
    engine: EmbeddedEngine,
    card: ModelCard,
    texts: Sequence[str],
    lengths: Sequence[int],
    pairs: int,
    clock: Callable[[], float],
    drawn: random.Random,
) -> Mapping[int, Mapping[str, Any]]:
    gateway = Gateway(engine, Catalog({card.name: card}, {}))
    found: dict[int, Mapping[str, Any]] = {}
    await engine.start()
    try:
        for length in lengths:
            seconds: dict[str, list[float]] = {way: [] for way in _WAYS}
            for number in range(-1, pairs):  # the first one warms up
                for way in drawn.sample(_WAYS, len(_WAYS)):
                    # Begun as no other is: else what an earlier one left would be found.
                    words = [str(drawn.getrandbits(60)), *drawn.sample(texts, len(texts))]
                    call = await _call(engine, card.name, words, length)
                    took = await _first(gateway, Order(call, policy=way), clock)
                    if number >= 0:
                        seconds[way].append(took)
            direct, policy = (seconds[way] for way in _WAYS)
            found[length] = {"ttft_ratio": asdict(ratio(direct, policy)), "prompts": pairs}
    finally:
        await engine.aclose()
    return found


async def _call(engine: EmbeddedEngine, model: str, texts: Sequence[str], length: int) -> Call:
    """A chat whose prompt has so many tokens, or a few more than the template's."""
    words = " ".join(texts).split()
    low, high = 1, len(words)
    while low < high:  # the most words that fit
        middle = (low + high + 1) // 2
        asked = _asked(model, words[:middle])
        low, high = (middle, high) if await engine.count(asked) <= length else (low, middle - 1)
    return _asked(model, words[:low])


def _asked(model: str, words: Sequence[str]) -> Call:
    said = {"role": "user", "content": " ".join(words)}
    return Call(model, (said,), max_tokens=1, sampling=Sampling(temperature=0))


async def _first(gateway: Gateway, order: Order, clock: Callable[[], float]) -> float:
    """Seconds to the first token."""
    began = clock()
    async with aclosing(gateway.answer(order, Purse())) as answer:
        async for chunk in answer:
            if chunk.tokens:
                break
        took = clock() - began
    return took
