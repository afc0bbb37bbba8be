"""Whatever clients send, series stay few: what labels say is the catalog's and the code's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

import routers
from app.catalog import Catalog
from app.engines.fake import Fake
from app.factory import create_app, most_series
from app.reasons import STRATEGIES
from app.settings import Settings
from app.telemetry.counting import (
    DRIFTS,
    FALLBACKS,
    KINDS,
    OUTCOMES,
    PLANNED,
    STATUSES,
    TRIED,
    Telemetry,
    reasons,
)
from app.telemetry.names import NONE, OTHER, Names
from app.types import HAND_OVERS
from tests.app.test_workers import PROGRAM, environment
from tests.chaos.gateways import Gateway, Ledger
from tests.policies.scripts import engine, fleet
from tests.telemetry.hostile import Attack, attacks

REQUESTS = 2000


@dataclass
class Bound:
    """What labels may say, and how many samples there can be."""

    names: Names
    most: int
    rooms: Collection[str]  # routes

    @cached_property
    def _known(self) -> Mapping[str, Collection[str]]:
        pairs, models = self.names.pairs, {*self.names.models, OTHER, NONE}
        return {
            "model": models,
            "to": models,
            "kind": (*KINDS, *HAND_OVERS, *FALLBACKS, *STRATEGIES, *PLANNED, *DRIFTS),
            "way": {*self.names.ways, OTHER},
            "preset": {preset for preset, _ in pairs},
            "policy": {policy for _, policy in pairs},
            "endpoint": {*self.rooms, OTHER},
            "status": {*map(str, STATUSES), OTHER},
            "reason": reasons(),
            "fidelity": ("exact", "approximate"),
            "outcome": (*OUTCOMES, *TRIED),
            "server": {*(server for _, server in self.names.servers), OTHER},
        }

    def allows(self, label: str, value: str) -> bool:
        """Whether it may; of our version, our prices and a histogram's bucket nobody asks."""
        return label in ("version", "prices", "le") or value in self._known[label]


def bound_of(app: FastAPI) -> Bound:
    every = (import_module(f"routers.{found.name}") for found in iter_modules(routers.__path__))
    rooms = [room.router for room in every if hasattr(room, "router")]
    paths = {route.path for room in rooms for route in room.routes}
    return Bound(app.state.front.telemetry.names, most_series(app), paths)


def exposed(text: str) -> dict[str, list[dict[str, str]]]:
    """The labels of every sample, by the metric's name in the table."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = [sample.labels for sample in family.samples]
    return found


def check(text: str, bound: Bound) -> int:
    """Every label says what it may, and there are no more samples than can be. How many."""
    found = exposed(text)
    for name, series in found.items():
        for labels in series:
            for label, value in labels.items():
                assert bound.allows(label, value), (name, label, value[:99])
    number = sum(map(len, found.values()))
    assert number <= bound.most
    return number


def children_of(telemetry: Telemetry) -> int:
    """How many it remembers."""
    made = (*telemetry._count.values(), *telemetry._spread.values())
    return sum(one.cache_info().currsize for one in made if hasattr(one, "cache_info"))


async def send(app: FastAPI, attack: Attack) -> int:
    """The status, as a server would have it."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": attack.method,
        "scheme": "http",
        "path": attack.path,
        "raw_path": attack.path.encode("utf-8", "surrogatepass"),
        "query_string": b"",
        "root_path": "",
        "headers": attack.headers,
        "client": ("127.0.0.1", 1),
        "server": ("farthing", 80),
    }
    statuses: list[int] = []
    events = [{"type": "http.request", "body": attack.body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if events:
            return events.pop()
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def say(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, say)
    (status,) = statuses
    return status


async def send_all(app: FastAPI, sent: Sequence[Attack]) -> Counter[int]:
    return Counter([await send(app, attack) for attack in sent])


def check_mixed(statuses: Counter[int]) -> None:
    """Some were answered, and no request found a bug."""
    assert statuses[200] > REQUESTS / 40 and 500 not in statuses, statuses
    assert all(statuses[status] for status in (400, 401, 402, 404, 405)), statuses


@pytest.fixture
def app(tmp_path: Path, catalog: Catalog, fake: Fake) -> FastAPI:
    settings = Settings(ledger=f"sqlite:///{tmp_path}/ledger.db", state_dir=tmp_path)
    return create_app(settings, catalog=catalog, engine=fake)


async def test_hostile_names_make_no_series(app: FastAPI) -> None:
    telemetry, sent = app.state.front.telemetry, attacks(REQUESTS // 2, seed=1)
    async with app.router.lifespan_context(app):
        statuses = await send_all(app, sent)
        first, children = (
            check(telemetry.scrape().decode(), bound_of(app)),
            children_of(telemetry),
        )
        statuses += await send_all(app, attacks(REQUESTS // 2, seed=2))
        both = check(telemetry.scrape().decode(), bound_of(app))
    check_mixed(statuses)
    # Other names, and hardly a combination that was not there before.
    assert both <= first * 1.2
    assert children_of(telemetry) <= children * 1.2


async def throw(port: int, attack: Attack) -> int:
    """The same over the wire, as it is; 0: the server closes the connection without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    path = attack.path.encode("utf-8", "surrogatepass")
    ours = {b"host": b"x", b"connection": b"close", b"content-length": b"%d" % len(attack.body)}
    lines = [attack.method.encode() + b" " + path + b" HTTP/1.1"]
    lines += [key + b": " + value for key, value in (*ours.items(), *attack.headers)]
    try:
        writer.write(b"\r\n".join([*lines, b"", attack.body]))
        answer = await reader.read()
    except ConnectionError:
        return 0
    finally:
        writer.close()
    return int(answer.split(b" ", 2)[1]) if answer else 0


async def throw_all(port: int, sent: list[Attack]) -> Counter[int]:
    statuses: Counter[int] = Counter()

    async def client() -> None:
        while sent:
            statuses[await throw(port, sent.pop())] += 1

    await asyncio.gather(*(client() for _ in range(16)))
    return statuses


@pytest.mark.slow
def test_nor_do_ten_thousand_make_any_of_several_workers(tmp_path: Path) -> None:
    more = environment(tmp_path) | {"FARTHING_WORKERS": "4"}
    gateway = Gateway(Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path, more), PROGRAM)
    # One of our own, which is asked nothing: its bound is that of each worker.
    bound = bound_of(create_app(Settings(ledger="off"), catalog=fleet(), engine=engine()))
    try:
        port = httpx.URL(gateway.ready().url).port
        assert port is not None
        statuses = asyncio.run(throw_all(port, attacks(5 * REQUESTS // 2, seed=1)))
        first = check(httpx.get(f"{gateway.url}/metrics").text, bound)
        statuses += asyncio.run(throw_all(port, attacks(5 * REQUESTS // 2, seed=2)))
        both = check(httpx.get(f"{gateway.url}/metrics").text, bound)
    finally:
        gateway.kill()
    check_mixed(statuses)
    assert both <= first * 1.2
