"""Whatever comes, a policy around whole answers keeps to its budget and its calls, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import policies
from app.errors import BudgetExceeded, ContextOverflow
from app.types import Decision
from tests.app.test_worst_case import Rich
from tests.policies.worlds import (
    Moody,
    Seen,
    World,
    answer,
    cancelled,
    nothing_left,
    options,
    surveyed,
    watch,
    worlds,
)

BY_TOKEN = ("direct", "entropy_switch", "kv_prediction", "speculative")
STRATEGIES = [name for name in policies.names() if name not in BY_TOKEN]
FEW, MANY = 50, 3000
# To shrink whole worlds takes minutes: those that are found are told as they are.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

every_strategy = pytest.mark.parametrize(
    ("name", "examples"),
    [
        *((name, FEW) for name in STRATEGIES),
        *(pytest.param(name, MANY, marks=pytest.mark.slow) for name in STRATEGIES),
    ],
)


def ended(
    world: World, name: str, chosen: dict[str, Any], client: Callable[[Seen], Awaitable[None]]
) -> tuple[Seen, Moody]:
    """What the client saw, and the engine, when nothing of the answer is left."""

    async def run() -> tuple[Seen, Moody]:
        engine = world.engine()
        order = world.order(name, chosen)
        seen = Seen(answer(world, engine, order))
        with nothing_left(engine):
            await client(seen)
        within(seen, engine, order.usd, order.gpu)
        return seen, engine

    return asyncio.run(run())


def within(seen: Seen, engine: Moody, usd: int | None, gpu: int | None) -> None:
    """It has kept to its budgets, to its estimate, and to its number of calls."""
    bill = seen.answer.bill
    assert bill.cost == sum(line.cost for line in bill.lines)
    assert bill.cost <= seen.answer.estimate
    assert usd is None or bill.cost <= usd
    assert gpu is None or sum(line.gpu_us or 0 for line in bill.lines) * 10**6 <= gpu
    notes, promise = seen.answer.notes, seen.answer.promise
    tried = promise is not None and promise.after  # other ways, which failed before a first word
    policy = notes.plan.policy if tried else notes.serving
    most = policy.most_calls(seen.answer.order.call)
    assert most is not None
    assert len(engine.begun) <= most * seen.answer.order.call.choices


def examples_of(
    name: str, examples: int, check: Callable[..., None], **drawn: st.SearchStrategy[Any]
) -> None:
    if name == "planner":
        drawn["world"] = drawn["world"].map(surveyed)
    settings(max_examples=examples, phases=PHASES)(given(chosen=options(name), **drawn)(check))()


@every_strategy
def test_it_answers_within_its_budget(name: str, examples: int) -> None:
    def check(world: World, chosen: dict[str, Any]) -> None:
        seen, engine = ended(world, name, chosen, watch)
        if seen.error is None:
            assert seen.over and seen.ended_well()
        else:
            # Nothing was begun that would not be shown.
            assert isinstance(seen.error, BudgetExceeded | ContextOverflow)
            assert not seen.chunks and not engine.calls

    examples_of(name, examples, check, world=worlds(bounded=True))


@every_strategy
def test_what_it_may_take_is_never_felt(name: str, examples: int) -> None:
    """Where no budget is named, an account that would pay for more gets the same answer."""

    def check(world: World, chosen: dict[str, Any]) -> None:
        # Of several choices nobody knows which comes first, and says what its model says first.
        world = replace(world, call=replace(world.call, choices=1))
        if name == "planner":
            chosen = {**chosen, "paced": False}  # else the first answer's times count for the other

        def told(rich: bool) -> tuple[object, ...]:
            async def run() -> Seen:
                account = Rich() if rich else None
                seen = Seen(answer(world, world.engine(), world.order(name, chosen), account))
                await watch(seen)
                return seen

            seen = asyncio.run(run())
            decided = [without_rest(decision) for decision in seen.answer.decisions]
            said = [(c.index, c.model, c.text, c.finish, c.reason) for c in seen.chunks]
            lines = [(line.model, line.usage) for line in seen.answer.bill.lines]
            return said, decided, lines, str(seen.error)

        assert told(rich=False) == told(rich=True)

    examples_of(name, examples, check, world=worlds())


def without_rest(decision: Decision) -> Decision:
    return replace(decision, rest_usd=None)


@every_strategy
def test_models_that_fail_leave_nothing_open(name: str, examples: int) -> None:
    def check(world: World, chosen: dict[str, Any]) -> None:
        seen, _ = ended(world, name, chosen, watch)
        assert seen.error is not None or seen.ended_well()

    examples_of(name, examples, check, world=worlds(fails=True, bounded=True))


@every_strategy
def test_who_leaves_after_any_chunk_leaves_nothing_open(name: str, examples: int) -> None:
    def check(world: World, chosen: dict[str, Any], after: int) -> None:
        ended(world, name, chosen, lambda seen: watch(seen, after))

    drawn = {"world": worlds(fails=True, bounded=True), "after": st.integers(0, 8)}
    examples_of(name, examples, check, **drawn)


@every_strategy
def test_who_is_cut_off_at_any_moment_leaves_nothing_open(name: str, examples: int) -> None:
    def check(world: World, chosen: dict[str, Any], steps: int) -> None:
        ended(world, name, chosen, lambda seen: cancelled(seen, steps))

    drawn = {"world": worlds(fails=True, bounded=True), "steps": st.integers(0, 100)}
    examples_of(name, examples, check, **drawn)


@every_strategy
def test_a_deadline_at_any_moment_ends_it(name: str, examples: int) -> None:
    def check(world: World, chosen: dict[str, Any]) -> None:
        seen, _ = ended(world, name, chosen, watch)
        assert seen.error is not None or seen.ended_well()
        assert seen.error is None or not seen.chunks

    examples_of(name, examples // 3, check, world=worlds(bounded=True, slow=True))
