"""Clients in JavaScript: the official `openai` package, and the Vercel AI SDK."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients import javascript
from tests.clients.conftest import MODEL, Gateway


@pytest.mark.parametrize("test", javascript.tests_in("openai.mjs"))
def test_openai(test: str, gateway: Gateway, key: str, tmp_path: Path) -> None:
    given = {"BASE_URL": gateway.base, "API_KEY": key, "MODEL": MODEL}
    javascript.run_test("openai.mjs", test, tmp_path, **given)


@pytest.mark.parametrize("test", javascript.tests_in("aisdk.mjs"))
def test_the_ai_sdk(test: str, gateway: Gateway, key: str, tmp_path: Path) -> None:
    given = {"BASE_URL": gateway.base, "API_KEY": key, "MODEL": MODEL}
    javascript.run_test("aisdk.mjs", test, tmp_path, **given)
