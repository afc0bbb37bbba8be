"""Servers that are lost and come back: others take over, and nobody asks a dead one for long."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.chaos.houses import BUDGET, CHAT, QUESTION, House, house, settled
from tests.upstreams.faults import FAULTS
from tests.upstreams.script import TEXT, UNSURE_AT
from tests.upstreams.server import Upstream, wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path, [Upstream("small")], [Upstream("large")]) as found:
        yield found


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[House]:
    """Two servers of each model."""
    small = [Upstream("small"), Upstream("small")]
    with house(tmp_path, small, [Upstream("large"), Upstream("large")]) as found:
        yield found


def ask(home: House, model: str = "large", *, stream: bool = True, **more: Any) -> Any:
    with settled(home) as asked:
        asked.append(home.ask(model, stream=stream, **more))
    return asked[0]


def state(home: House, upstream: Upstream) -> str:
    return next(s["state"] for s in home.servers() if s["url"] == upstream.url)


def reason(home: House, upstream: Upstream) -> str:
    return next(s["reason"] for s in home.servers() if s["url"] == upstream.url)


@contextmanager
def answering(home: House, model: str) -> Iterator[list[Any]]:
    """A slow stream under way, its first words read; what came of it is in the list afterwards."""
    told: list[Any] = []
    thread = threading.Thread(target=lambda: told.append(home.ask(model, stream=True)))
    for upstream in home.upstreams:
        upstream.pace = 0.02
    thread.start()
    wait_for(lambda: any(server.running for server in home.app.state.front.servers()))
    threading.Event().wait(0.15)
    yield told
    thread.join(60)
    for upstream in home.upstreams:
        upstream.pace = 0.0
    assert told


@pytest.mark.parametrize(
    "fault",
    ["reset before headers", "reset after headers", "status 500"],
)
def test_a_server_that_fails_again_and_again_is_left_alone_until_it_is_well(
    home: House, fault: str
) -> None:
    large = home.large[0]
    large.breaks(FAULTS[fault], times=10**6)
    for _ in range(3):
        assert state(home, large) == "ready"
        assert ask(home).error
    wait_for(lambda: state(home, large) == "open")
    assert "3 calls in a row failed" in reason(home, large) or "broke off" in reason(home, large)
    # From now on only the probes ask it: a client is refused at once.
    before = len([r for r in large.calls() if r.path == CHAT])
    told = ask(home)
    assert told.status == 503 and told.error["code"] == "engine_unavailable"
    assert int(told.headers["retry-after"]) >= 1
    assert len([r for r in large.calls() if r.path == CHAT]) == before
    # The other model answers alone, and says so.
    told = ask(home, "economy")
    assert told.right and told.summary["failover"] == {"token": UNSURE_AT, "model": "small"}
    large.heal()
    wait_for(lambda: state(home, large) == "ready")
    assert ask(home).right
    assert "failover" not in ask(home, "economy").summary


def test_a_server_that_breaks_off_every_answer_is_left_alone_too(home: House) -> None:
    """That it begins them well is no excuse."""
    large = home.large[0]
    large.breaks(FAULTS["reset in mid-answer"], times=10**6)
    for _ in range(3):
        assert state(home, large) == "ready"
        assert ask(home).error
    wait_for(lambda: state(home, large) == "open")
    large.heal()
    wait_for(lambda: state(home, large) == "ready")


@pytest.mark.parametrize("fault", ["status 400", "status 429", "an error of the client's first"])
def test_what_a_server_refuses_does_not_count_against_it(home: House, fault: str) -> None:
    for _ in range(5):
        home.large[0].breaks(FAULTS[fault])
        assert ask(home).status in (400, 429)
    assert state(home, home.large[0]) == "ready" and ask(home).right


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_server_that_is_not_there(home: House, stream: bool) -> None:
    """Refused connections: an error at once, and an answer by the one that is left."""
    for upstream, model, left in (
        (home.large[0], "large", "small"),
        (home.small[0], "small", "large"),
    ):
        upstream.stop()
        told = ask(home, model, stream=stream)
        assert (told.status, told.error["code"]) == (503, "engine_unavailable")
        told = ask(home, "economy", stream=stream)
        assert told.right and told.summary["failover"]["model"] == left
        wait_for(lambda: state(home, upstream) == "open")  # noqa: B023
        assert ask(home, "economy", stream=stream).summary["failover"]["model"] == left
        upstream.start()
        wait_for(lambda: state(home, upstream) == "ready")  # noqa: B023
        assert ask(home, model, stream=stream).right


def test_when_no_server_is_there_it_is_said_before_the_first_byte(home: House) -> None:
    for upstream in home.upstreams:
        upstream.stop()
    for model in ("small", "large", "economy"):
        told = ask(home, model)
        assert (told.status, told.error["code"]) == (503, "engine_unavailable")
    for upstream in home.upstreams:
        upstream.start()
    wait_for(lambda: set(home.states()) == {"ready"})
    assert ask(home, "economy").right


def test_servers_may_come_after_the_gateway(tmp_path: Path) -> None:
    small, large = Upstream("small"), Upstream("large")
    with house(tmp_path, [small], [large], start=False) as home:
        assert home.states() == ["probing", "probing"]
        assert ask(home, "economy").status == 503
        for upstream in home.upstreams:
            upstream.start()
        try:
            wait_for(lambda: set(home.states()) == {"ready"})
            assert ask(home, "economy").right
        finally:
            for upstream in home.upstreams:
                upstream.stop()


@pytest.mark.parametrize("model", ["large", "economy"])
def test_a_server_that_is_killed_in_mid_answer_and_started_again(home: House, model: str) -> None:
    writer = home.large[0] if model == "large" else home.small[0]
    with answering(home, model) as told:
        writer.kill()
        writer.start()
    if model == "large":
        assert told[0].status == 200 and told[0].done and told[0].text
        assert told[0].error["type"] == "engine_error"
    else:
        assert told[0].right and told[0].summary["failover"]["model"] == "large"
    home.quiet()
    wait_for(lambda: set(home.states()) == {"ready"})
    assert ask(home, model).right


def test_a_process_that_is_killed_and_started_again(tmp_path: Path) -> None:
    """kill -9, not only a thread that ends."""
    large = Upstream("large")

    def start() -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "tests.upstreams", "large", str(large.port), "0.02"]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout and process.stdout.readline() == "ready\n"
        return process

    process = start()
    small = Upstream("small")
    small.start()
    try:
        with house(tmp_path, [small], [large], start=False) as home:
            wait_for(lambda: set(home.states()) == {"ready"})
            with answering(home, "large") as told:
                process.kill()
                process.communicate()
            assert told[0].done and told[0].error["type"] == "engine_error"
            wait_for(lambda: state(home, large) == "open")
            assert ask(home, "economy").summary["failover"]["model"] == "small"
            process = start()
            wait_for(lambda: state(home, large) == "ready")
            assert ask(home).right
    finally:
        process.kill()
        process.communicate()
        small.stop()


@pytest.mark.parametrize("model", ["large", "economy"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_of_two_servers_one_may_die_unseen(twins: House, model: str, stream: bool) -> None:
    for upstream in (twins.large[0], twins.small[1]):
        upstream.stop()
    for _ in range(8):
        told = ask(twins, model, stream=stream)
        assert told.right and "failover" not in told.summary
    assert twins.states().count("open") <= 2
    for upstream in (twins.large[0], twins.small[1]):
        upstream.start()


@pytest.mark.parametrize(
    "fault",
    ["reset before headers", "closed before headers", "status 500", "status 503", "status 429",
     "status 401", "connection dropped when reused", "no HTTP"],
)  # fmt: skip
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_before_the_first_byte_another_server_is_asked_once(
    twins: House, fault: str, stream: bool
) -> None:
    twins.large[0].breaks(FAULTS[fault], times=10**6)
    twins.large[0].requests.clear()
    for number in range(6):
        told = ask(twins, stream=stream, messages=[{"role": "user", "content": f"why {number}"}])
        assert told.right
        asked = [
            r.body["messages"][0]["content"] for r in twins.large[0].requests if r.path == CHAT
        ]
        assert asked.count(f"why {number}") <= 1


def test_when_both_servers_fail_each_was_asked_once(twins: House) -> None:
    for upstream in twins.large:
        upstream.breaks(FAULTS["reset before headers"], times=10**6)
        upstream.requests.clear()
    assert ask(twins).status == 502
    asked = [[r for r in upstream.requests if r.path == CHAT] for upstream in twins.large]
    assert [len(requests) for requests in asked] == [1, 1]


def test_after_the_first_byte_nobody_else_is_asked(twins: House) -> None:
    for upstream in twins.large:
        upstream.breaks(FAULTS["reset in mid-answer"], times=10**6)
        upstream.requests.clear()
    told = ask(twins)
    assert told.status == 200 and told.error and told.done
    assert sum(r.path == CHAT for upstream in twins.large for r in upstream.requests) == 1


@pytest.mark.parametrize("fault", ["status 500", "status 200 in HTML", "reset before headers"])
def test_a_server_that_cannot_count_is_passed_over(twins: House, fault: str) -> None:
    paths = ["/v1/chat/completions/render", "/tokenize"]
    twins.small[0].breaks(FAULTS[fault], times=10**6, paths=paths)
    for number in range(4):
        more = {"messages": [{"role": "user", "content": f"why {number}"}]}
        assert ask(twins, "economy", **more).error is None
    twins.small[0].heal()


@pytest.mark.parametrize("fault", ["status 500", "reset before headers", "an empty body"])
def test_where_one_model_cannot_count_the_other_does(home: House, fault: str) -> None:
    paths = ["/v1/chat/completions/render", "/tokenize"]
    home.small[0].breaks(FAULTS[fault], times=10**6, paths=paths)
    told = ask(home, "economy")
    assert told.right and told.cost is not None
    home.small[0].heal()


def test_a_server_with_another_model_is_out_of_service(home: House) -> None:
    """Started anew for something else: its clients are not to blame, and it is not asked on."""
    home.large[0].served = "another"
    for _ in range(3):
        told = ask(home)
        assert told.status == 503, told
    wait_for(lambda: state(home, home.large[0]) == "open")
    assert ask(home, "economy").summary["failover"]["model"] == "small"
    home.large[0].served = ""
    wait_for(lambda: state(home, home.large[0]) == "ready")
    assert ask(home).right


def test_a_key_that_is_not_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_KEY", "sesame")
    small, large = Upstream("small", key="sesame"), Upstream("large", key="sesame")
    with house(tmp_path, [small], [large], key="STAND_IN_KEY") as home:
        assert ask(home, "economy").right
        large.key = "another"
        for _ in range(3):
            told = ask(home)
            assert told.status == 503 and "sesame" not in json.dumps(told.error)
        wait_for(lambda: state(home, large) == "open")
        assert "credentials" in reason(home, large)


@pytest.mark.parametrize("how", [{"scale_out": False}, {"plugin": True}])
def test_servers_of_other_kinds(tmp_path: Path, how: dict[str, bool]) -> None:
    """Without the render endpoint; and with our plugin, which ends calls by itself."""
    small, large = Upstream("small", **how), Upstream("large", **how)
    with house(tmp_path, [small], [large]) as home:
        for stream in (True, False):
            told = ask(home, "economy", stream=stream)
            assert told.right and told.summary["models"]["large"] == 12
        for upstream, begins in ((small, 0), (large, UNSURE_AT)):
            for fault in ("reset before headers", "reset in mid-answer", "byte by byte", "CRLF"):
                upstream.breaks(FAULTS[fault])
                told = ask(home, "economy")
                assert told.right
                assert ("failover" in told.summary) == fault.startswith("reset")
                assert told.summary.get("failover", {"token": begins})["token"] >= begins
                home.ready()


def test_the_official_client_understands_it(home: House) -> None:
    with openai.OpenAI(base_url=f"{home.url}/v1", api_key="none", max_retries=0) as sdk:
        chat = {"messages": QUESTION, "max_tokens": 60, "temperature": 0}
        chat |= {"extra_headers": {"X-Budget-Usd": BUDGET}}
        whole = sdk.chat.completions.create(model="economy", **chat)
        assert whole.choices[0].message.content == TEXT
        home.large[0].breaks(FAULTS["reset in mid-answer"])
        parts = sdk.chat.completions.create(model="economy", stream=True, **chat)
        chunks = list(parts)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == TEXT and chunks[-1].farthing["failover"]["model"] == "small"
        home.large[0].breaks(FAULTS["reset in mid-answer"])
        with pytest.raises(openai.APIError, match="broke off"):
            list(sdk.chat.completions.create(model="large", stream=True, **chat))
        home.large[0].breaks(FAULTS["status 503"])
        with pytest.raises(openai.InternalServerError) as caught:
            sdk.chat.completions.create(model="large", stream=True, **chat)
        assert caught.value.status_code == 503
    # One that tries again by itself, as clients do, sees nothing of it.
    home.large[0].breaks(FAULTS["status 503"])
    with openai.OpenAI(base_url=f"{home.url}/v1", api_key="none", max_retries=2) as sdk:
        whole = sdk.chat.completions.create(model="large", **chat)
        assert whole.choices[0].message.content == TEXT
    home.quiet()
    assert httpx.get(f"{home.url}/health").status_code == 200
