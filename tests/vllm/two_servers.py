"""A gateway over two real vLLM servers, and the same servers asked by hand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.catalog import Catalog, ModelCard, Preset, Price
from app.factory import create_app
from app.server import Server
from app.settings import Settings
from tests.vllm_servers import VLLMServer

SMALL, LARGE = "small", "large"


def catalog(small: VLLMServer, large: VLLMServer) -> Catalog:
    """The small server's model and the large one's, and a preset that switches between them."""
    cards = {
        SMALL: _card(SMALL, small, {"input": 0.01, "cached_input": 0.001, "output": 0.05}),
        LARGE: _card(LARGE, large, {"input": 0.04, "cached_input": 0.004, "output": 0.20}),
    }
    options = {"small": SMALL, "large": LARGE, "raise_at": 2.5, "lower_at": 1.5}
    preset = Preset(name="economy", policy="entropy_switch", **options)
    return Catalog(cards, {"economy": preset})


def _card(name: str, server: VLLMServer, price: dict[str, float]) -> ModelCard:
    return ModelCard(
        name=name,
        engine="vllm",
        urls=(server.url,),
        served=server.name,
        family="smollm2",
        price=Price.model_validate(price),
    )


@contextmanager
def serving(fleet: Catalog, folder: Path, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a gateway over this fleet, on a port of its own."""
    chosen = Settings(state_dir=folder, shutdown_grace_s=1, **settings)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(create_app(chosen, catalog=fleet), chosen)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with httpx.Client(base_url=url, timeout=300) as http:
        try:
            until(lambda: server.started and http.get("/health/ready").status_code == 200, 300)
            yield http
        finally:
            server.should_exit = True
            thread.join(60)
            listening.close()
    assert not thread.is_alive()


class ByHand:
    """One server, asked without us."""

    def __init__(self, server: VLLMServer) -> None:
        self.name = server.name
        self.http = httpx.Client(base_url=server.url, timeout=300)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self.http.post(path, json={"model": self.name, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def prompt(self, text: str) -> list[int]:
        """The ids of a chat with this one message."""
        messages = [{"role": "user", "content": text}]
        ids: list[int] = self.post("/tokenize", {"messages": messages})["tokens"]
        return ids

    def write(self, ids: list[int], tokens: int) -> list[int]:
        """The greedy continuation of these ids."""
        if not tokens:
            return []
        body = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
        written: list[int] = self.post("/v1/completions", body)["choices"][0]["token_ids"]
        return written

    def text(self, ids: list[int]) -> str:
        """How an answer of these ids reads, its end left out."""
        body = {"tokens": [id for id in ids if id > 2]}  # 0 to 2: what ends and begins messages
        return str(self.post("/detokenize", body)["prompt"]).rstrip("\ufffd")

    def running(self) -> int:
        """Calls that run or wait in the server."""
        return self._sum("vllm:num_requests_running", "vllm:num_requests_waiting")

    def written(self) -> int:
        """Tokens that the server has written since it started."""
        return self._sum("vllm:generation_tokens_total")

    def _sum(self, *names: str) -> int:
        lines = self.http.get("/metrics").text.splitlines()
        begins = tuple(name + "{" for name in names)
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(begins))


def asked(http: httpx.Client, prompt: str, **more: Any) -> dict[str, Any]:
    """The body of a whole greedy answer."""
    headers = more.pop("headers", {})
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "model": "economy",
        "temperature": 0,
        "max_tokens": 48,
        **more,
    }
    answer = http.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def events(lines: Iterator[str]) -> list[dict[str, Any]]:
    """The events of a stream that ended as it should."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]


def until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)
