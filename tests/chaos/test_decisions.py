"""What is told of an answer whose servers failed: who was asked, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.accounts.keyring import checked
from tests.chaos.houses import House, house, settled
from tests.upstreams.faults import FAULTS
from tests.upstreams.server import Upstream

MODELS = ("small", "large")


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[House]:
    """Two servers of each model."""
    small, large = [[Upstream(model), Upstream(model)] for model in MODELS]
    with house(tmp_path, small, large) as found:
        yield found


def explained(home: House, id: str, token: str | None = None) -> dict[str, Any]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    answer = httpx.get(f"{home.url}/v1/decisions/{id}", headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def administrator(home: House) -> str:
    """The token of one."""
    keyring = home.app.state.front.door.accounts.keyring
    made = keyring.create(checked({"name": "root", "admin": True}))
    token: str = asyncio.run_coroutine_threadsafe(made, home.loop).result(30)[1]
    return token


def attempts(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for call in document["calls"] for each in call["attempts"]]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_who_failed_before_another_answered_is_told_to_administrators_by_address(
    twins: House, stream: bool
) -> None:
    twins.large[0].breaks(FAULTS["status 503"], times=2)
    with settled(twins) as asked:
        for number in range(12):
            question = [{"role": "user", "content": f"why {number}"}]
            headers = {"X-Request-Id": f"r{number}"}
            asked.append(twins.ask(stream=stream, messages=question, headers=headers))
    assert all(told.right for told in asked)
    documents = [explained(twins, f"r{number}") for number in range(12)]
    (number, *_) = [n for n, each in enumerate(documents) if len(attempts(each)) == 2]
    failed, well = attempts(documents[number])
    assert (failed["server"], failed["outcome"]) == ("server 1", "failed")
    assert failed["error"] == "The engine of large is not available"
    assert (well["server"], well["outcome"]) == ("server 2", "ok")
    assert 0 < failed["ended_s"] <= well["ended_s"] <= documents[number]["times"]["duration_s"]
    assert "127.0.0.1" not in str(documents)
    there = [upstream.url.removeprefix("http://") for upstream in twins.large]
    seen = attempts(explained(twins, f"r{number}", administrator(twins)))
    assert [each["server"] for each in seen] == there


def test_a_hand_over_to_who_is_left_stands_with_the_call_that_failed(twins: House) -> None:
    for server in twins.large:
        server.breaks(FAULTS["reset in mid-answer"], times=10**6)
    with settled(twins) as asked:
        asked.append(twins.ask("economy", stream=True, headers={"X-Request-Id": "it"}))
    (told,) = asked
    document = explained(twins, "it")
    last = document["decisions"][-1]
    assert (last["kind"], last["model"]) == ("failover", "small")
    assert last["token"] == told.summary["failover"]["token"]
    failed = [call for call in document["calls"] if call["outcome"] == "failed"]
    assert {call["model"] for call in failed} == {"large"}
    assert all(call["attempts"][-1]["outcome"] == "failed" for call in failed)
    assert document["outcome"] == "kept" and round(document["cost"]["usd"] * 10**12) == told.cost


def test_one_that_failed_for_good_says_what_it_failed_with(twins: House) -> None:
    for server in twins.large:
        server.breaks(FAULTS["reset before headers"], times=10**6)
    with settled(twins) as asked:
        asked.append(twins.ask(stream=False, headers={"X-Request-Id": "it"}))
    document = explained(twins, "it")
    assert document["outcome"] == "failed" and document["error"]["type"] == "EngineLost"
    assert [each["outcome"] for each in attempts(document)] == ["failed", "failed"]
