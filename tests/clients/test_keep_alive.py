"""That the streams which other people's clients read here have comments between their events."""

from __future__ import annotations

import httpx

from tests.clients.conftest import Gateway


def test_streams_have_comments(gateway: Gateway) -> None:
    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 20,
        "stream": True,
    }
    headers = {"Authorization": f"Bearer {gateway.admin}"}
    url = f"{gateway.url}/v1/chat/completions"
    answer = httpx.post(url, json=body, headers=headers, timeout=60)
    assert answer.text.startswith(": keep-alive\n\n")
