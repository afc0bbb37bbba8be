"""Each window is replayed in every way, on the same terms, and never in part."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app.bench import items
from app.bench.folders import alone_in
from app.bench.goodput.demands import Slo
from app.bench.goodput.outcomes import outcomes
from app.bench.goodput.replays import Plan, gather
from app.bench.ways import Way
from app.cli import cli
from app.engines.fake import Fake, Script
from app.errors import ConfigError
from app.factory import create_app
from app.settings import Settings
from tests.policies.scripts import fleet
from tests.running import running

QUESTIONS = tuple(one for one in items.shipped() if one.task.name == "math")
WAYS = tuple(Way(name, name) for name in ("auto", "small", "large"))
RICH = Slo("rich", first_token=30.0, latency=60.0, usd=10**11)
POOR = Slo("poor", usd=50_000_000)  # the large model's prompt alone is dearer


def scripted() -> Fake:
    return Fake({"small": Script(["It", "is", "4"]), "large": Script(["12"])})


@pytest.fixture
def fake() -> Fake:
    return scripted()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", no_auth=True)


@pytest.fixture
async def http(settings: Settings, fake: Fake) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, catalog=fleet(), engine=fake)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(
        ways=WAYS,
        auto="auto",
        trace=[float(n) for n in range(50)],
        questions=QUESTIONS,
        slos=(RICH, POOR),
        requests=6,
        rate=200.0,
        seeds=2,
        seed=3,
        answers=tmp_path / "answers.jsonl",
    )


def quiet(more: int, turn: str) -> None:
    pass


async def test_all_ways_are_asked_the_same_on_the_same_terms(
    http: httpx.AsyncClient, plan: Plan
) -> None:
    found = await gather(http, plan, quiet)
    assert set(found) == {(seed, way.name) for seed in (3, 4) for way in WAYS}
    windows = dict(plan.windows())
    for (seed, way), part in found.items():
        assert [kept.number for kept in part] == [0, 1, 2, 3, 4, 5]
        assert [kept.answer.question for kept in part] == [
            one.question.number for one in windows[seed]
        ]
        assert {kept.way for kept in part} == {way}
        assert all(0 <= kept.lag < 5 for kept in part)
    slos = [one.slo.name for one in windows[3]]
    assert set(slos) == {"rich", "poor"}
    for kept, slo in zip(found[3, "large"], slos, strict=True):
        assert kept.answer.failed.startswith("402") == (slo == "poor"), kept.answer
        assert kept.explained and kept.explained["way"] is None
    for kept, slo in zip(found[3, "auto"], slos, strict=True):
        assert kept.explained and kept.explained["usd"] == kept.answer.cost
        way = kept.explained["way"]
        assert way["name"] == ("large" if slo == "rich" else "small")
        assert 0 < way["expected_usd"] <= way["high_usd"] and way["high_latency_s"] > 0


async def test_fixed_ways_are_kept_to_the_same_terms(
    http: httpx.AsyncClient, plan: Plan, fake: Fake
) -> None:
    """The budget buys some twenty of forty words at 20 USD per million; and they come slowly."""
    words = [f"w{n}" for n in range(40)]
    few = Slo("few", usd=500_000_000)
    plan = replace(plan, ways=WAYS[2:], questions=QUESTIONS[:1], seeds=1, slos=(few,))
    fake.scripts = {"small": Script(words), "large": Script(words)}
    found = await gather(http, plan, quiet)
    cut = await outcomes(found, dict(plan.windows()), right=0.5)
    assert {one.why for one in cut} == {"budget"}
    assert all(one.used and 0.9 < one.used <= 1 for one in cut)
    fake.scripts = {"large": Script(words, delay=0.1)}
    plan = replace(plan, slos=(Slo("soon", latency=0.3),))
    late = await outcomes(await gather(http, plan, quiet), dict(plan.windows()), right=0.5)
    assert {one.why for one in late} == {"deadline"}
    assert all(one.cost and not one.over for one in late)


async def test_ways_take_their_turns_in_an_order_of_each_seed(plan: Plan) -> None:
    orders = [[way.name for way in plan.order(seed)] for seed in range(12)]
    assert len({tuple(order) for order in orders}) > 2
    assert all(sorted(order) == ["auto", "large", "small"] for order in orders)


async def test_whole_replays_are_not_made_again(
    http: httpx.AsyncClient, plan: Plan, fake: Fake
) -> None:
    first = await gather(http, plan, quiet)
    lines = plan.answers.read_text().splitlines(keepends=True)
    assert len(lines) == 2 * 3 * 6
    asked, told = len(fake.calls), list[int]()
    again = await gather(http, plan, lambda more, turn: told.append(more))
    assert again == first and len(fake.calls) == asked and sum(told) == 36
    # One that was broken off is made again as a whole, and so is one on other terms.
    plan.answers.write_text("".join(lines[:-1]))
    await gather(http, plan, quiet)
    assert len(plan.answers.read_text().splitlines()) == 35 + 6
    await gather(http, replace(plan, slos=(RICH,), seeds=1), quiet)
    assert len(plan.answers.read_text().splitlines()) == 35 + 6 + 18


async def test_another_file_is_refused(http: httpx.AsyncClient, plan: Plan) -> None:
    plan.answers.write_text('{"seed": 1}\n')
    with pytest.raises(ValueError, match=r"jsonl:1: is no answer of a replay"):
        await gather(http, plan, quiet)


async def test_a_way_that_does_not_answer_is_found_before_hours_are_spent(
    http: httpx.AsyncClient, plan: Plan
) -> None:
    with pytest.raises(ConfigError, match="huge does not answer: 404"):
        await gather(http, replace(plan, ways=(*WAYS, Way("huge", "huge"))), quiet)
    assert not plan.answers.exists()


class TestWithoutALog:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return Settings(state_dir=tmp_path, ledger="off", no_auth=True)

    async def test_nothing_is_explained(self, http: httpx.AsyncClient, plan: Plan) -> None:
        found = await gather(http, replace(plan, seeds=1), quiet)
        assert {kept.explained for part in found.values() for kept in part} == {None}


@pytest.fixture
def url(settings: Settings, fake: Fake) -> Iterator[str]:
    with running(create_app(settings, catalog=fleet(), engine=fake), settings) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    lines = [f"2023-11-16 18:00:{n % 60:02}.5,10,10\n" for n in range(50)]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(lines))
    return path


def goodput(trace: Path, url: str, out: Path, *more: str) -> Any:
    asked = ("--trace", str(trace), "--url", url, "--out", str(out), "--rate", "100")
    return CliRunner().invoke(
        cli, ["bench", "goodput", *asked, "--requests", "6", "--seeds", "1", *more]
    )


def test_two_at_once_in_one_folder(trace: Path, url: str, tmp_path: Path, fake: Fake) -> None:
    with alone_in(tmp_path / "out"):
        done = goodput(trace, url, tmp_path / "out")
    assert isinstance(done.exception, ConfigError) and "another run" in str(done.exception)
    assert not fake.calls


def test_the_command(trace: Path, url: str, tmp_path: Path, fake: Fake) -> None:
    out, more = (
        tmp_path / "out",
        ("--slo", "rich;latency=60;usd=0.001", "--slo", "poor;usd=0.00005"),
    )
    done = goodput(trace, url, out, *more)
    assert done.exit_code == 0, done.output
    assert "4 replays of 6 requests: about 0 minutes" in done.output
    assert "No request cost more than its budget, of 24 whose cost is known." in done.output
    told = json.loads((out / "report.json").read_text())
    assert [row["way"] for row in told["figures"]][0] == "auto"
    assert {row["way"] for row in told["figures"]} == {"auto", "small", "large", "economy"}
    assert set(told["foretold"]) == {"cost", "seconds", "first_s"}
    assert told["asked"]["requests"] == 6 and "key" not in told["asked"]
    assert (out / "foretold.png").read_bytes()[:4] == b"\x89PNG"
    assert "auto has more right" in (out / "report.txt").read_text()
    asked = len(fake.calls)
    assert goodput(trace, url, out, *more).exit_code == 0 and len(fake.calls) == asked


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--slo", "a;usd=1", "--slo", "a"), "--slo: each class once, not a, a"),
        (("--way", "small", "--way", "small=large"), "--way: each name once"),
        (("--way", "huge"), "huge does not answer: 404"),
        (("--requests", "99"), "the trace has 50 arrivals, and 99"),
        (("--task", "gsm8k"), "--task: must look like"),
        (("--trace", "none.csv"), "none.csv: no such file"),
    ],
)
def test_what_cannot_be(
    trace: Path, url: str, tmp_path: Path, more: tuple[str, ...], why: str
) -> None:
    done = goodput(trace, url, tmp_path / "out", *more)
    assert done.exit_code == 1 and why in str(done.exception)


def test_no_gateway(trace: Path, tmp_path: Path) -> None:
    done = goodput(trace, "http://127.0.0.1:9", tmp_path / "out")
    assert isinstance(done.exception, ConfigError) and "the gateway" in str(done.exception)
