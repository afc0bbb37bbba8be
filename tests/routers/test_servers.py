"""What operators see of the servers behind the gateway, and what everybody sees of them."""

from __future__ import annotations

from typing import Any

import pytest

from app.engines.replica import ReplicaStatus
from tests.routers.conftest import bearer
from tests.routers.test_bad_input import refused

SERVERS = [
    ReplicaStatus("small", "http://a:8000", "ready", "", 2, 1),
    ReplicaStatus("small", "http://b:8000", "ready", "", 0, 0),
    ReplicaStatus("small", "http://c:8000", "open", "3 calls in a row failed", 0, 0),
    ReplicaStatus("small", "http://d:8000", "draining", "the catalog has it no more", 1, 0),
    ReplicaStatus("gone", "http://e:8000", "draining", "the catalog has it no more", 1, 0),
]
URL = "/admin/servers"


@pytest.fixture
def served(house: Any) -> Any:
    house.app.state.front.servers = lambda: SERVERS
    return house


async def test_administrators_see_every_server_and_why_it_is_not_used(served: Any) -> None:
    token = await served.token(name="the admin", admin=True)
    listed = (await served.get(URL, token)).json()
    assert listed["object"] == "list"
    assert listed["data"][0] == {
        "model": "small",
        "url": "http://a:8000",
        "state": "ready",
        "reason": None,
        "running": 2,
        "waiting": 1,
    }
    told = [(each["url"], each["state"], each["reason"]) for each in listed["data"]]
    assert told == [(each.url, each.state, each.reason or None) for each in SERVERS]


async def test_nobody_else_sees_where_they_are(served: Any) -> None:
    token = await served.token()
    refused(await served.get(URL, token), 403, code="not_allowed")
    refused(await served.get(URL), 401, code="invalid_api_key")
    refused(await served.get(URL, "sk-farthing-none"), 401, code="invalid_api_key")
    for url in ("/health", "/health/ready", "/v1/models"):
        text = (await served.get(url, token)).text
        assert "8000" not in text and "failed" not in text


async def test_without_servers_the_list_is_empty(house: Any) -> None:
    token = await house.token(name="the admin", admin=True)
    assert (await house.get(URL, token)).json() == {"object": "list", "data": []}
    assert "servers" not in (await house.get("/health")).json()["models"]["small"]


async def test_health_counts_the_servers_of_each_model_by_state(served: Any) -> None:
    """Those that are draining serve no request that comes now, and their model may be gone."""
    models = (await served.get("/health")).json()["models"]
    assert models["small"]["servers"] == {"ready": 2, "open": 1}
    assert "servers" not in models["large"] and "gone" not in models


async def test_only_reading_is_possible(served: Any) -> None:
    token = await served.token(name="the admin", admin=True)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = await served.visitor.request(method, URL, headers=bearer(token))
        assert answer.status_code == 405
