"""A real gateway over stand-ins for vLLM servers, and what a client is told there."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.catalog import PICO, Catalog, ModelCard, Preset
from app.engines import fleet
from app.engines.replica import Upkeep
from app.factory import create_app
from app.server import Server
from app.settings import Settings
from tests.conftest import price
from tests.upstreams.script import TEXT
from tests.upstreams.server import Upstream, wait_for

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "why is the sky blue"}]
BUDGET = "0.0025"  # USD: what an answer costs, and not as much again
# Briskly, so that a server which is well again serves again within a test.
UPKEEP = partial(Upkeep, pulse_every=0.1, retry_first=0.05, retry_longest=0.2)


def card(name: str, upstreams: Sequence[Upstream], **more: Any) -> ModelCard:
    costs = {"small": price("1", "0.1", "2"), "large": price("10", "1", "20")}
    return ModelCard(
        name=name, engine="vllm", family="stand-in", price=costs[name],
        urls=tuple(upstream.url for upstream in upstreams), **more,
    )  # fmt: skip


def economy(**more: Any) -> Preset:
    options = {"small": "small", "large": "large", "raise_at": Decimal("2.5")}
    options |= {"lower_at": Decimal("1.0"), "window": 1, "d_min": 10, "expected_tokens": 53}
    return Preset(name="economy", policy="entropy_switch", **{**options, **more})


@dataclass
class Told:
    """One answer, as its client has it."""

    status: int
    text: str = ""
    error: dict[str, Any] | None = None
    done: bool = False  # the stream ended with [DONE]
    finish: str | None = None
    details: dict[str, Any] | None = None  # finish_details
    cost: int | None = None  # 1e-12 USD
    usage: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        return self.error is None and self.status == 200 and self.text == TEXT


@dataclass
class House:
    """A gateway that runs."""

    url: str
    app: Any
    small: list[Upstream]
    large: list[Upstream]
    tasks: Counter[str] = field(default_factory=Counter)

    @property
    def upstreams(self) -> list[Upstream]:
        return [*self.small, *self.large]

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.app.state.loading.get_loop()

    def ask(self, model: str = "large", *, stream: bool, **more: Any) -> Told:
        """One request and what came of it."""
        headers = {"X-Budget-Usd": BUDGET, **more.pop("headers", {})}
        body = {"model": model, "messages": QUESTION, "max_tokens": 60, "temperature": 0, **more}
        if stream:
            body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        answer = httpx.post(self.url + CHAT, json=body, headers=headers, timeout=60)
        told = read_stream(answer) if stream and answer.status_code == 200 else read_whole(answer)
        told.headers = dict(answer.headers)
        return told

    def servers(self) -> list[dict[str, Any]]:
        front = self.app.state.front
        return [{"url": s.url, "state": s.state, "reason": s.reason} for s in front.servers()]

    def states(self) -> list[str]:
        return [server["state"] for server in self.servers()]

    def account(self) -> Any:
        accounts = self.app.state.front.door.accounts
        question = accounts.ledger.account("anonymous")
        return asyncio.run_coroutine_threadsafe(question, self.loop).result(10)

    def spent(self) -> int:
        """What was settled, 1e-12 USD; nothing is held when this returns."""

        def idle() -> bool:
            account = self.account()
            return (account.held["total"], account.running) == (0, 0)

        wait_for(idle, what="nothing is held")
        return int(self.account().spent["total"])

    def quiet(self) -> None:
        """Nothing of any answer is left: no call upstream, no task, no error in what was handed
        on. Raises AssertionError."""
        wait_for(lambda: not any(u.open for u in self.upstreams), what="streams upstream end")
        wait_for(lambda: self.running() <= self.tasks, what=self.running() - self.tasks)
        assert [complaint for u in self.upstreams for complaint in u.complaints] == []

    def running(self) -> Counter[str]:
        """The gateway's tasks by what they run, but those that come and go by themselves."""
        tasks = asyncio.all_tasks(self.loop)
        return Counter(task.get_coro().__qualname__ for task in tasks)  # type: ignore[union-attr]

    def ready(self) -> None:
        """Every server heals and serves again; its earlier faults are forgotten."""
        for upstream in self.upstreams:
            upstream.heal()
        wait_for(lambda: set(self.states()) == {"ready"}, what=self.servers())


@contextmanager
def settled(house: House) -> Iterator[list[Told]]:
    """Put in what was asked: all that is true of any answer is checked afterwards."""
    before, asked = house.spent(), list[Told]()
    yield asked
    house.quiet()
    after = house.spent()
    bound = sum(pico(float(told.headers.get("x-farthing-budget-usd", BUDGET))) for told in asked)
    assert 0 <= after - before <= bound
    if all(told.cost is not None for told in asked):
        assert after - before == sum(told.cost for told in asked)
    for told in asked:
        if told.error is not None:
            assert told.error.keys() == {"message", "type", "param", "code"}
            assert told.error["message"] and "127.0.0.1" not in told.error["message"]
            assert told.status >= 400 or told.done
        else:
            assert told.cost is not None, "an answer of which nobody knows what it cost"


def read_whole(answer: httpx.Response) -> Told:
    content = answer.json()
    if answer.status_code != 200:
        return Told(answer.status_code, error=content["error"])
    choice = content["choices"][0]
    return Told(
        200,
        choice["message"].get("content") or "",
        finish=choice["finish_reason"],
        details=choice.get("finish_details"),
        cost=pico(content["usage"].get("cost")) if content.get("usage") else None,
        usage=content.get("usage") or {},
        summary=content["farthing"],
    )


def read_stream(answer: httpx.Response) -> Told:
    told = Told(200)
    blocks = answer.text.split("\n\n")
    assert blocks.pop() == "", answer.text
    told.done = blocks[-1] == "data: [DONE]"
    for block in blocks[: -1 if told.done else None]:
        assert block.startswith("data: ") and "\n" not in block, block
        event = json.loads(block[6:])
        if "error" in event:
            told.error = event["error"]
            continue
        assert told.error is None, "something follows an error"
        for choice in filter(None, event["choices"] or ()):
            told.text += choice["delta"].get("content") or ""
            told.finish = choice["finish_reason"] or told.finish
            told.details = choice.get("finish_details")
        told.summary = event.get("farthing", told.summary)
        if event.get("usage") and "cost" in event["usage"]:
            told.usage, told.cost = event["usage"], pico(event["usage"]["cost"])
    return told


def pico(usd: float | None) -> int | None:
    return None if usd is None else int((Decimal(str(usd)) * PICO).to_integral_value())


@contextmanager
def house(
    folder: Path,
    small: Sequence[Upstream],
    large: Sequence[Upstream],
    *,
    preset: Preset | None = None,
    max_running: int = 256,
    start: bool = True,
    key: str | None = None,
    **settings: Any,
) -> Iterator[House]:
    """A gateway over these, which are started too."""
    given = {"connect_timeout_s": 2.0, "silence_timeout_s": 20.0, "shutdown_grace_s": 1, **settings}
    chosen = Settings(ledger=f"sqlite:///{folder}/ledger.db", state_dir=folder, **given)
    cards = [
        card("small", small, max_running=max_running, api_key_env=key),
        card("large", large, api_key_env=key),
    ]
    preset = preset or economy()
    with _no_bugs(), ExitStack() as stack:
        for upstream in (*small, *large):
            if start:
                upstream.start()
                stack.callback(upstream.stop)
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(fleet, "Upkeep", UPKEEP)
        app = create_app(chosen, catalog=Catalog({c.name: c for c in cards}, {"economy": preset}))
        url = stack.enter_context(_running(app, chosen))
        found = House(url, app, list(small), list(large))
        if start:
            wait_for(lambda: set(found.states()) == {"ready"}, 60, found.servers())
            # One request first, so that what is made once is there.
            assert found.ask("economy", stream=True).right
            wait_for(lambda: not any(u.open for u in found.upstreams))
        found.tasks = _most_tasks(found)
        yield found


@contextmanager
def _no_bugs() -> Iterator[None]:
    """Nothing is logged as an error: no exception of ours, no task or connection left behind."""
    gc.collect()  # what other tests left behind is not ours
    handler = _Errors(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        yield
        gc.collect()  # what was not closed says so when it is collected
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.said == []


class _Errors(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


def _most_tasks(found: House) -> Counter[str]:
    """What runs while nothing is asked, looked at for long enough to see the checks too."""
    most: Counter[str] = Counter()
    for _ in range(30):
        most |= found.running()
        threading.Event().wait(0.01)
    return most


@contextmanager
def _running(app: Any, settings: Settings) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(app, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_for(lambda: server.started, 60)
        wait_for(lambda: app.state.front.gateway is not None, 60)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
    assert not thread.is_alive()
