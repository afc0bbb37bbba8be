"""Which precision answers at which load, and that it stays with it."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import policies
from app.budget import Meter
from app.catalog import Catalog
from app.engines.fake import Fake, Script
from app.types import Load
from policies.precision import Precision, nominal, total
from tests.policies.precisions import Busy, answer, card, decided, engine, fleet, pair
from tests.policies.scripts import call, read


@pytest.mark.parametrize(
    ("calls", "tokens"), [(1, 50), (2, 100), (5, 150), (8, 200), (9, 225), (16, 400), (99, 400)]
)
def test_between_measured_loads_throughput_is_interpolated(calls: int, tokens: float) -> None:
    assert total({2: 100, 8: 200, 16: 400}, calls) == pytest.approx(tokens)


@pytest.mark.parametrize(
    ("running", "chosen"),
    [
        ({}, "w4"),
        ({"w4": 2}, "w4"),
        ({"w4": 3}, "w8"),  # the new one is the fourth
        ({"w4": 1, "w8": 14}, "w8"),
        ({"w8": 1}, "w8"),
        ({"w4": 1, "w8": 2}, "w8"),
    ],
)
async def test_few_calls_go_to_the_quickest_one_many_to_that_which_gets_most_done(
    running: dict[str, int], chosen: str
) -> None:
    assert await decided(engine(**running)) == chosen


async def test_calls_that_wait_count_too() -> None:
    fake = engine()
    fake.loads["w4"] = Load(running=1, waiting=2)
    assert await decided(fake) == "w8"


@pytest.mark.parametrize(
    ("running", "chosen"),
    [
        ({}, "w4"),
        ({"w4": 1}, "w4"),  # 120 tokens/s for two, as much as 60 for one: it stays
        ({"w4": 2}, "w8"),  # 60 alone, not a third of 140
        ({"w4": 1, "w8": 1}, "w4"),  # 60 for each of two there, (60 + 49.3) / 2 here
        ({"w4": 8, "w8": 8}, "w8"),
    ],
)
async def test_of_machines_of_their_own_each_call_s_speed_counts(
    running: dict[str, int], chosen: str
) -> None:
    assert await decided(engine(**running), shared=False, margin=0) == chosen


@pytest.mark.parametrize(
    ("margin", "running", "chosen"),
    [
        (0.0, {"w4": 2}, "w8"),
        (0.1, {"w4": 2}, "w8"),  # 158.7 tokens/s against 140
        (0.14, {"w4": 2}, "w4"),
        (0.14, {"w4": 1, "w8": 1}, "w8"),  # as many here as there
        (0.14, {"w8": 2}, "w8"),
        (0.2, {"w8": 1}, "w8"),  # 120 against 109.3
        (0.05, {"w8": 1}, "w4"),
    ],
)
async def test_what_most_calls_run_on_stays_until_another_is_better_by_the_margin(
    margin: float, running: dict[str, int], chosen: str
) -> None:
    assert await decided(engine(**running), margin=margin) == chosen


def chosen_by(policy: Precision, running: list[str]) -> str:
    fake = engine(w4=running.count("w4"), w8=running.count("w8"))
    ranking = policy.ranked(call("w4"), Meter(fake, pair().prices()))
    try:
        ranking.send(None)
    except StopIteration as done:  # where nothing limits it, it waits for nobody
        return str(done.value.models[0])
    raise AssertionError("it waits")


def fitted(catalog: Catalog, **options: Any) -> Precision:
    found = policies.load("precision", options).fit(catalog, "w4")
    assert isinstance(found, Precision)
    return found


@given(
    crossing=st.integers(2, 14),
    here=st.floats(50, 500),
    before=st.floats(0.88, 1.0),
    after=st.floats(1.0, 1.14),
    first=st.sampled_from(["w4", "w8"]),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 99)), min_size=20, max_size=60),
)
def test_around_where_two_are_equal_the_choice_does_not_flap(
    crossing: int,
    here: float,
    before: float,
    after: float,
    first: str,
    steps: list[tuple[bool, int]],
) -> None:
    """One ends, one comes: the load is one more or less than that at which both are as good."""
    loads = (crossing - 1, crossing, crossing + 1)
    solo = {at: here * at for at in loads}
    busy = {at: solo[at] * by for at, by in zip(loads, (before, 1.0, after), strict=True)}
    policy, running = fitted(pair(solo, busy)), [first] * (crossing - 1)
    for comes, which in steps:
        comes = (comes or len(running) <= crossing - 2) and len(running) <= crossing
        if comes:
            running.append(chosen_by(policy, running))
        elif running:
            running.pop(which % len(running))
        # Where nothing runs, nothing can stay.
        assume(running)
        assert set(running) == {first}


def test_without_a_margin_it_would() -> None:
    policy = fitted(pair({4: 400, 6: 600}, {4: 390, 6: 610}), margin=0)
    assert [chosen_by(policy, ["w4"] * running) for running in (3, 5, 3, 5)] == [
        *("w4", "w8", "w4", "w8")
    ]


def test_as_load_comes_and_goes_it_changes_once_each_way() -> None:
    policy, running, chosen = fitted(pair()), list[str](), list[tuple[int, str]]()
    for calls in (*range(1, 17), *range(16, 0, -1)):
        running = running[len(running) - calls + 1 :] if len(running) >= calls else running
        running.append(chosen_by(policy, running))
        chosen.append((len(running), running[-1]))
    up, down = chosen[:16], chosen[16:]
    assert [calls for calls, model in up if model == "w8"] == list(range(4, 17))
    assert [calls for calls, model in down if model == "w8"] == list(range(16, 1, -1))


async def test_it_goes_by_the_calls_that_truly_run() -> None:
    fake = Fake({name: Script(["x"] * 9) for name in ("w4", "w8")})
    async with AsyncExitStack() as stack:
        writers = []
        for _ in range(6):
            found = answer(fake)
            await stack.enter_async_context(aclosing(found))
            await anext(found)
            writers += [decision.model for decision in found.decisions]
        assert writers == ["w4", "w4", "w4", "w8", "w8", "w8"]
        assert fake.running == {"w4": 3, "w8": 3}
    assert fake.open == 0 and await decided(fake) == "w4"


@pytest.mark.parametrize(
    ("hardware", "running", "chosen"),
    [
        ("high", 0, "w4a16"),
        ("high", 31, "fp8"),
        ("mid", 0, "w4a16"),
        ("mid", 31, "w4a16"),
    ],
)
@pytest.mark.parametrize("without", [0, 1, 2])
async def test_without_tables_the_paper_s_guideline_decides(
    hardware: str, running: int, chosen: str, without: int
) -> None:
    """Weights of 4 bits for one request at a time, and on mid-tier GPUs; 8 bits for many on
    high-end ones."""
    names = ("bf16", "w8a8", "fp8", "w4a16")
    cards = {n: card(n, n, {1: 1e6} if at < without else None) for at, n in enumerate(names)}
    fake = Busy({name: Script(["x"]) for name in names}, loads={"bf16": Load(running=running)})
    found = answer(fake, fleet(**cards), model="bf16", options={"hardware": hardware})
    await read(found)
    (one,) = found.decisions
    assert one.model == chosen and "nominally" in one.detail
    ways = found.notes.considered[0]
    assert {way.latency for way in ways} == {None} and len(ways) == 4


@pytest.mark.parametrize("hardware", ["mid", "high"])
@pytest.mark.parametrize("calls", [1, 2, 8, 32, 500])
def test_precisions_that_are_the_same_are_as_quick(hardware: Any, calls: int) -> None:
    for one, other in (("int8", "w8a8"), ("int4", "w4a16"), ("fp16", "bf16"), ("unknown", "bf16")):
        assert total(nominal(one, hardware), calls) == total(nominal(other, hardware), calls)
    assert total(nominal("fp32", hardware), calls) < total(nominal("bf16", hardware), calls)
