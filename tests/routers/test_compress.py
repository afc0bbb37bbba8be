"""What HTTP tells of a prompt of which something was left out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.factory import create_app
from app.settings import Settings
from tests.policies.test_compress import BEFORE, CHEAP, PROMPT, engine
from tests.routers.reading import events

POLICY = {"name": "compress", "ratio": 0.5}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(ledger="off"), catalog=CHEAP, engine=engine())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://farthing"
    ) as opened:
        yield opened


async def asked(client: httpx.AsyncClient, path: str, debug: bool = True, **more: Any) -> Any:
    body = {"model": "large", "max_tokens": 8, "policy": POLICY, **more}
    answer = await client.post(path, json=body, headers={"X-Debug": "1"} if debug else {})
    assert answer.status_code == 200, answer.text
    return events(answer.text)[-1] if more.get("stream") else answer.json()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_says_how_much_was_read_and_to_see_it_what(
    client: httpx.AsyncClient, stream: bool
) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    found = await asked(client, "/v1/chat/completions", messages=messages, stream=stream)
    told = found["farthing"]
    assert told["fidelity"] == "approximate" and told["decided"]["kind"] == "compress"
    (message,) = told["compressed"].pop("messages")
    after = len(message["content"].split())
    assert told["compressed"] == {"before": BEFORE, "after": after}
    assert told["decided"]["dropped_tokens"] == BEFORE - after == BEFORE // 2


async def test_who_does_not_ask_to_see_it_is_told_the_numbers_alone(
    client: httpx.AsyncClient,
) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    found = await asked(client, "/v1/chat/completions", debug=False, messages=messages)
    assert set(found["farthing"]["compressed"]) == {"before", "after"}


async def test_each_prompt_counts_once_however_many_choices_it_has(
    client: httpx.AsyncClient,
) -> None:
    found = await asked(client, "/v1/completions", prompt=[PROMPT, f"{PROMPT} now"], n=2)
    told = found["farthing"]["compressed"]
    assert told["before"] == 2 * BEFORE + 1
    assert len(told["prompts"]) == 2 and told["prompts"][1].endswith(" now")
    assert told["after"] == sum(len(prompt.split()) for prompt in told["prompts"])


async def test_what_was_read_is_told_to_the_client_alone(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    found = await asked(client, "/v1/chat/completions", messages=messages)
    stored = await client.get(f"/v1/decisions/{found['id']}")
    assert "rarea" not in stored.text
