"""Two models that pass for two families hand an answer over as text, on real weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.budget import Purse
from app.catalog import Catalog, read
from app.downloads import local_path
from app.engines.embedded.engine import EmbeddedEngine
from app.gateway import Gateway, Order
from app.settings import DEFAULT_CONFIG
from app.types import Call, Sampling
from tests.prompts import OWN

pytestmark = pytest.mark.model


@pytest.mark.slow
async def test_they_change_places_between_two_words_only(smollm2_gguf: Path) -> None:
    fleet = read(DEFAULT_CONFIG)
    cards = {name: card.model_copy(update={"family": name}) for name, card in fleet.models.items()}
    paths = dict.fromkeys(cards, smollm2_gguf)
    paths["smollm2-tiny"] = local_path(cards["smollm2-tiny"], smollm2_gguf.parent)
    engine = EmbeddedEngine(list(cards.values()), paths)
    await engine.start()
    switches = 0
    try:
        gateway = Gateway(engine, Catalog(cards, fleet.presets))
        for prompt in OWN[:6]:
            messages = ({"role": "user", "content": prompt},)
            call = Call(
                "economy", messages=messages, max_tokens=64, sampling=Sampling(temperature=0)
            )
            text, before = "", None  # `before`: a hand-over after which nothing has come yet
            async for chunk in gateway.answer(Order(call), Purse()):
                if chunk.decision is not None:
                    before, switches = text, switches + 1
                elif chunk.text and before is not None:
                    amid = before[-1:].isalnum() and chunk.text[:1].isalnum()
                    assert not amid, (before, chunk.text)  # a full stop ends a word too
                    before = None
                text += chunk.text
            assert "\ufffd" not in text
    finally:
        await engine.aclose()
    assert switches > 0
