"""The default fleet behind a real server: who asks it, and how."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx
import openai

SMALL, LARGE = "smollm2-tiny", "smollm2-135m"
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


@dataclass
class Real:
    """A gateway on the default fleet, and clients of it."""

    url: str
    sdk: openai.OpenAI
    http: httpx.Client

    def ask(self, prompt: str, *, model: str = "economy", **more: Any) -> Any:
        headers = {name: str(value) for name, value in more.pop("headers", {}).items()}
        asked = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 48}
        return self.sdk.chat.completions.create(
            model=model, extra_headers=headers, **{**asked, "temperature": 0, **more}
        )

    def gauge(self, name: str, label: str = "") -> float:
        """The sum of a metric's series, of those alone that have this label."""
        lines = self.http.get("/metrics").text.splitlines()
        ours = [line for line in lines if line.startswith(name + "{") and label in line]
        return sum(float(line.split()[-1]) for line in ours)


def until(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)
