"""What the engine's tests share: a tiny model, and an engine that runs it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.catalog import ModelCard
from app.engines.embedded.engine import EmbeddedEngine
from app.engines.embedded.grammar import Grammars
from app.engines.embedded.tokenizer import Tokenizer, load_tokenizer
from tests.app.engines.embedded.rig import Rig, rig
from tests.app.engines.embedded.tiny import write_model
from tests.app.engines.embedded.tiny_engine import CARDS, OUTBOX, Start, idle


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other far longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Tokenizer:
    return load_tokenizer(tiny_folder)


@pytest.fixture(scope="module")
def grammars(tiny: Tokenizer) -> Grammars:
    return Grammars(tiny)


@pytest.fixture
def fp32(tiny_folder: Path) -> Rig:
    random.seed(0)
    return rig(tiny_folder, "fp32")


@pytest.fixture
def int8(tiny_folder: Path) -> Rig:
    random.seed(0)
    return rig(tiny_folder, "int8")


@pytest.fixture
async def start(tiny_folder: Path) -> AsyncIterator[Start]:
    """Starts an engine on the tiny model, and sees that it has given everything back."""
    started: list[EmbeddedEngine] = []

    async def make(cards: Sequence[ModelCard] = CARDS, **options: Any) -> EmbeddedEngine:
        given = {"threads": 1, "kv_memory": 2**26, "prefill_chunk": 16, "outbox": OUTBOX}
        paths = {made.name: tiny_folder for made in cards}
        engine = EmbeddedEngine(cards, paths, **{**given, **options})
        await engine.start()
        started.append(engine)
        return engine

    yield make
    for engine in started:
        await idle(engine)
        await engine.aclose()
