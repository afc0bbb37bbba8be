"""What `farthing replay` makes of `auto` itself: what was taken is taken again."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from app.errors import BudgetExceeded, EngineUnsupported
from app.explaining import explained
from app.gateway import Answer
from app.replay.decisions import Log
from app.replay.evaluating import evaluate
from app.replay.targets import parse
from app.types import Load
from tests.policies.autos import auto, engine, fleet, soon
from tests.policies.measured import interval, known, law, way
from tests.policies.scripts import read, usd

# Of the best one little is known; what is expected of it and what it may take are far apart.
DOUBTFUL = known(
    fleet(),
    way(fleet(), "large", {"chat": interval(0.9, 0.3)}, latency=law(1.0, load=0.5, high=3.0)),
    way(fleet(), "economy", {"chat": interval(0.85, 0.05)}, latency=law(2.0, high=1.2)),
    way(fleet(), "server", {"chat": interval(0.7, 0.02)}, latency=law(0.5, 0.0, 0.01)),
    way(fleet(), "small", {"chat": interval(0.5, 0.1)}, latency=law(0.1, 0.0, 0.01, high=4.0)),
)


def wishes() -> Iterator[dict[str, Any]]:
    drawn = random.Random(0)
    for number in range(80):
        every: dict[str, Any] = {
            "usd": usd(drawn.choice([100, 500, 1000, 3000])),
            "quality": drawn.choice([0.3, 0.6, 0.9]),
            "deadline": soon(drawn.choice([0.3, 1, 2.5, 10])),
            "first_token": soon(drawn.choice([0.05, 1])),
            "strict": True,
            "extra": {"response_format": {"type": "json_object"}},
        }
        asked = {name: value for name, value in every.items() if drawn.random() < 0.4}
        options = {"explore": 0.2, "cautious": drawn.random() < 0.7}
        yield {**asked, "options": options, "id": f"answer-{number}"}


async def logged(**wish: Any) -> dict[str, Any]:
    answer = auto(DOUBTFUL, engine({"large": Load(running=2)}), **wish)
    with suppress(BudgetExceeded, EngineUnsupported):  # what a refused one weighed counts too
        await read(answer)
    return {**explained_of(answer), "id": wish["id"]}


def explained_of(answer: Answer) -> Any:
    return json.loads(explained(answer, answer.bill, answer.outcome))


async def test_the_planner_as_it_was_set_takes_what_it_took() -> None:
    log = Log()
    for wish in wishes():
        log.add(await logged(**wish), wish["id"])
    again = parse("auto;explore=0.2", log.decided)
    assert len(log.decided) > 50 and len({one.taken.name for one in log.decided}) == 4
    for one in log.decided:
        likely = {way.name: way.propensity for way in one.alternatives if way.propensity}
        assert dict(again.choose(one)) == pytest.approx(likely), one.id
    found = evaluate(log, again, draws=10)
    assert found.unsupported == 0 and not found.by_expectation
    assert found.effective == pytest.approx(len(log.decided))


async def test_what_came_of_a_way_that_failed_is_what_came_of_drawing_it() -> None:
    fake = engine(server={"fails_after": 0})
    answer = auto(DOUBTFUL, fake, options={"ways": "server,small"}, id="answer-1")
    await read(answer)
    log = Log()
    log.add({**explained_of(answer), "id": "answer-1"}, "answer-1")
    (one,) = log.decided
    assert (one.taken.name, one.taken.propensity) == ("server", 1.0)
    assert [way.name for way in one.alternatives if way.chosen] == ["small"]


async def test_a_stream_begins_when_its_client_sees_it() -> None:
    """A cascade judges an answer before it shows any of it."""
    scripts = {"server": {"delay": 0.001}, "large": {"delay": 0.001}}
    answer = auto(
        known(fleet(), way(fleet(), "sturdy", 1.0)), engine(**scripts), id="a", stream=True
    )
    await read(answer)
    log = Log()
    log.add({**explained_of(answer), "id": "a"}, "a")
    (one,) = log.decided
    seen, began = one.first, one.times.first_token_s
    assert seen is not None and began is not None and seen > began
