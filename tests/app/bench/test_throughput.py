"""What the bench of throughput asks a gateway, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bench import throughput
from app.bench.throughput import Asking, Plan, Point, Sample, figures, pasted, points, rounds, run
from app.cli import main
from app.errors import ConfigError

PLAN = Plan(("slow", "quick", "preset"), calls=(1, 4), rounds=3, tokens=10, turns=2)
COSTS = {"slow": 0.2, "quick": 0.1, "preset": 0.125}  # seconds that an answer takes of the machine


class Gateway:
    """One machine that answers, whose time is our clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.waiting = self.most = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.keys.add(request.headers.get("Authorization"))
        if request.method == "GET":
            name = request.url.path.rpartition("/")[2]
            if name not in COSTS:
                return httpx.Response(404, json={"error": {"message": f"no {name}"}})
            kind = "preset" if name == "preset" else "model"
            return httpx.Response(200, json={"farthing": {"kind": kind}})
        body = json.loads(request.content)
        self.asked.append(body)
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(0)
        self.waiting -= 1
        self.now += COSTS[body["model"]]
        return httpx.Response(200, json={"usage": {"completion_tokens": body["max_tokens"]}})


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    found, client = Gateway(), httpx.AsyncClient
    transport = httpx.MockTransport(found)
    monkeypatch.setattr(httpx, "AsyncClient", lambda **more: client(transport=transport, **more))
    monkeypatch.setattr(throughput, "perf_counter", lambda: found.now)
    return found


async def measured(gateway: Gateway, plan: Plan = PLAN) -> list[throughput.Round]:
    async with httpx.AsyncClient(base_url="http://gateway") as http:
        return await rounds(Asking(http, plan, lambda: gateway.now), plan, lambda _: None)


async def test_pace_is_all_tokens_over_the_time_from_the_first_to_the_last(
    gateway: Gateway,
) -> None:
    found = await measured(gateway)
    assert len(found) == 3 and set(found[0]) == set(points(PLAN, 0))
    for one in found:
        for point, sample in one.items():
            assert sample.tokens == point.calls * 2 * 10
            assert sample.seconds == pytest.approx(point.calls * 2 * COSTS[point.model])
            assert sample.pace == pytest.approx(10 / COSTS[point.model])
    alone = found[0][Point("slow", 1)]
    assert alone.each == pytest.approx(0.2)
    assert found[0][Point("slow", 4)].each > 2 * alone.each
    assert gateway.most == 4


async def test_no_prompt_begins_as_another_did_and_all_answers_are_as_long(
    gateway: Gateway,
) -> None:
    await measured(gateway)
    begins = {body["messages"][0]["content"].split(")")[0] for body in gateway.asked}
    assert len(begins) == len(gateway.asked) == 3 * 2 * (4 + 3 * (1 + 4))
    assert all(body["ignore_eos"] and body["max_tokens"] == 10 for body in gateway.asked)


def test_models_take_turns_in_each_round() -> None:
    order = [[point.model for point in points(PLAN, number)] for number in range(3)]
    assert order[0] == ["slow", "quick", "preset"] * 2
    assert order[1] == ["quick", "preset", "slow"] * 2
    assert order[2] == ["preset", "slow", "quick"] * 2
    assert [point.calls for point in points(PLAN, 1)] == [1, 1, 1, 4, 4, 4]


def test_ratios_are_those_of_each_round_with_intervals() -> None:
    """A machine that is slower in one round is so for both."""
    one, other = Point("one", 1), Point("other", 1)
    found = [
        {one: Sample(100, took, took), other: Sample(100, took * by, took * by)}
        for took, by in ((1.0, 2.0), (4.0, 2.0), (2.0, 2.0))
    ]
    said = figures(found)
    assert said[one].pace.mean == pytest.approx(300 / 7)
    assert said[one].pace.low < said[one].pace.mean < said[one].pace.high
    times = said[one].times["other"]
    assert times.low == times.mean == times.high == pytest.approx(2.0)
    assert said[other].answer_times["one"].mean == pytest.approx(2.0)
    assert said[one].answer_s.mean == pytest.approx(7 / 3)


def test_what_it_prints_can_be_pasted_and_is_of_models_alone(
    gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    run("http://gateway/v1", PLAN, key="sk-1", json_file=file)
    said = capsys.readouterr().out
    table = tomllib.loads(said[said.index("[models.") :])
    assert table == {
        "models": {
            "slow": {"throughput": {"1": 50, "4": 50}},
            "quick": {"throughput": {"1": 100, "4": 100}},
        }
    }
    assert gateway.keys == {"Bearer sk-1"}
    rows = json.loads(file.read_text())["figures"]
    assert {(row["model"], row["calls"]) for row in rows} == {
        (name, calls) for name in PLAN.models for calls in PLAN.calls
    }
    (slow,) = [row for row in rows if (row["model"], row["calls"]) == ("slow", 4)]
    assert slow["times"]["quick"]["mean"] == pytest.approx(0.5)
    assert set(slow["times"]) == {"quick", "preset"}


def test_a_model_that_is_not_there_or_writes_nothing_ends_it(gateway: Gateway) -> None:
    with pytest.raises(ConfigError, match="the gateway answered 404: .*no nobody"):
        run("http://gateway", Plan(("slow", "nobody")))
    assert gateway.asked == []
    with pytest.raises(ConfigError, match="slow wrote nothing"):
        run("http://gateway", Plan(("slow",), tokens=0))


def test_no_gateway_is_said_so() -> None:
    with pytest.raises(ConfigError, match="the gateway at http://127.0.0.1:9"):
        run("http://127.0.0.1:9", PLAN)


@pytest.mark.parametrize("calls", ["", "0", "1.5", "inf", "nan", "two"])
def test_calls_are_counts(
    calls: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["farthing", "bench", "throughput", "m", "--calls", calls])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "calls: must" in capsys.readouterr().err.replace("\n", " ")


def test_the_command_hands_on_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Plan]] = []
    monkeypatch.setattr(throughput, "run", lambda url, plan, **_: asked.append((url, plan)))
    options = ["a", "b", "a", "--calls", "8,1,8", "--rounds", "2", "--url", "http://g"]
    monkeypatch.setattr("sys.argv", ["farthing", "bench", "throughput", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert asked == [("http://g", Plan(("a", "b"), calls=(1, 8), rounds=2))]


def test_a_preset_has_no_table_of_its_own() -> None:
    found = figures([{Point("a", 1): Sample(10, 1.0, 1.0), Point("b", 1): Sample(20, 1.0, 1.0)}])
    assert list(pasted(found, ["b"])) == ["[models.b]", "throughput = { 1 = 20 }"]
