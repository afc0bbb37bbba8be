"""`auto`: which of the measured ways answers a request, and what is told of that."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import BudgetExceeded
from app.gateway import Answer
from app.types import Load
from tests.policies.autos import CODE, SURVEYED, auto, engine, fleet, soon, taken, way_of
from tests.policies.measured import interval, known, law, measured, way
from tests.policies.scripts import read, text, usd


async def test_the_best_way_answers_where_nothing_limits_it() -> None:
    fake = engine()
    answer = auto(SURVEYED, fake)
    chunks = await read(answer)
    assert text(chunks).startswith("l0 l1") and set(fake.produced) == {"large"}
    (decision,) = answer.decisions
    assert (decision.kind, decision.model, decision.steered) == ("plan", "large", False)
    assert decision.detail.startswith("large: the best that fits; expected: quality 1, ")
    assert (answer.policy, answer.policy_name, answer.preset) == ("auto", "planner", "auto")
    assert answer.fidelity == "exact" and answer.outcome == "kept"


async def test_an_answer_has_the_fidelity_of_the_way_that_is_taken() -> None:
    catalog = measured(fleet(), economy=1.0, large=0.8)
    assert auto(catalog).fidelity == "approximate"
    answer = auto(catalog)
    await read(answer)
    assert way_of(answer) == "economy" and answer.fidelity == "approximate"
    exact = auto(catalog, options={"exact": True})
    await read(exact)
    assert way_of(exact) == "large" and exact.fidelity == "exact"


# 40 tokens after a prompt of some words: more than 800 of large, 320 of server, 80 of small.
@pytest.mark.parametrize(
    ("micro", "name"), [(1500, "large"), (600, "server"), (300, "small"), (50, "small")]
)
async def test_the_best_that_the_budget_pays_for_answers(micro: float, name: str) -> None:
    answer = auto(usd=usd(micro))
    await read(answer)
    assert way_of(answer) == name
    assert 0 < answer.spent <= usd(micro)
    assert answer.outcome == ("cut" if micro == 50 else "kept")
    assert answer.decisions[0].steered == (micro == 50)


@pytest.mark.parametrize(
    ("quality", "name"), [(0.0, "small"), (0.5, "small"), (0.6, "server"), (0.9, "large")]
)
async def test_the_cheapest_way_that_is_good_enough_answers(quality: float, name: str) -> None:
    assert await taken(quality=quality) == name
    assert await taken(options={"quality": quality}) == name
    assert await taken(options={"quality": 1.0}, quality=quality) == name  # the request's counts


async def test_the_best_that_is_quick_enough_answers() -> None:
    quick = way(SURVEYED, "small", 0.5, latency=law(0.1), first_token=law(0.01))
    slow = way(SURVEYED, "large", 1.0, latency=law(3.0, 0.01), first_token=law(0.5))
    catalog = known(fleet(), slow, quick)
    assert await taken(catalog, deadline=soon(30)) == "large"
    assert await taken(catalog, deadline=soon(2)) == "small"
    assert await taken(catalog, first_token=soon(0.6)) == "large"
    assert await taken(catalog, first_token=soon(0.4)) == "small"
    # How often they take longer counts, if that is known: it is 0.16 of the time, then 0.41.
    quick = way(SURVEYED, "small", 0.7, latency=law(0.1))
    doubtful = slow.model_copy(update={"latency": law(3.0, high=20.0)})
    assert await taken(known(fleet(), doubtful, quick), deadline=soon(30)) == "large"
    assert await taken(known(fleet(), doubtful, quick), deadline=soon(5)) == "small"
    bold = {"options": {"cautious": False}}
    assert await taken(known(fleet(), doubtful, quick), deadline=soon(5), **bold) == "large"


async def test_how_sure_it_is_to_be_can_be_set() -> None:
    quick = way(SURVEYED, "small", 0.5, latency=law(0.1))
    slow = way(SURVEYED, "large", 1.0, latency=law(3.0, high=2.0))
    catalog, as_measured = known(fleet(), slow, quick), {"paced": False}
    for sure, seconds, name in (
        *((0.9, 7, "large"), (0.98, 7, "small"), (0.98, 10, "large")),
        *((0.5, 4, "large"), (0.9, 4, "small")),
    ):
        options = as_measured | {"sure": sure}
        assert await taken(catalog, deadline=soon(seconds), options=options) == name
    assert await taken(catalog, deadline=soon(2.9), options=as_measured) == "small"
    assert await taken(catalog, deadline=soon(3.5), options=as_measured) == "large"
    # Who would have nothing cut has none that is not nearly sure.
    strict = as_measured | {"sure": 0.5}
    answer = auto(catalog, deadline=soon(7), options=strict, strict=True)
    await read(answer)
    assert way_of(answer) == "small"


async def test_a_long_answer_takes_longer_and_max_tokens_bounds_it() -> None:
    wordy = way(SURVEYED, "large", 1.0, length=1000, latency=law(0.0, 0.0, 0.01))
    quick = way(SURVEYED, "small", 0.5, latency=law(0.1))
    catalog = known(fleet(), wordy, quick)
    asked = {"deadline": soon(5), "max_tokens": None}
    assert await taken(catalog, **asked) == "small"
    assert await taken(catalog, **asked | {"max_tokens": 100}) == "large"


async def test_what_it_is_about_decides_where_qualities_differ_by_kind() -> None:
    large = way(SURVEYED, "large", {"chat": interval(0.9), "code": interval(0.5)})
    server = way(SURVEYED, "server", {"chat": interval(0.6), "code": interval(0.8)})
    catalog = known(fleet(), large, server)
    assert await taken(catalog) == "large"
    code = ({"role": "user", "content": CODE},)
    assert await taken(catalog, messages=code) == "server"


async def test_it_counts_on_no_more_than_is_known() -> None:
    doubtful = way(SURVEYED, "server", {"chat": interval(0.99, 0.6)})
    best = way(SURVEYED, "large", {"chat": interval(0.9, 0.1)})
    catalog = known(fleet(), best, doubtful)
    assert await taken(catalog) == "large"
    assert await taken(catalog, options={"cautious": False}) == "server"
    assert await taken(catalog, quality=0.9) == "large"
    assert await taken(catalog, quality=0.9, options={"cautious": False}) == "server"


async def test_a_busy_engine_is_slower() -> None:
    shared = law(1.0, load=1.0)
    ways = [way(SURVEYED, name, q, latency=shared) for name, q in (("large", 1.0), ("server", 0.7))]
    catalog, five = known(fleet(), *ways), {"deadline": soon(5), "options": {"paced": False}}
    assert await taken(catalog, **five) == "large"
    for busy in (Load(running=6), Load(waiting=6)):
        assert await taken(catalog, engine({"large": busy}), **five) == "server"
        # Embedded models share a machine, servers do not.
        assert await taken(catalog, engine({"small": busy}), **five) == "server"
        assert await taken(catalog, engine({"server": busy}), **five) == "large"


async def test_what_an_answer_takes_from_others_counts() -> None:
    """Nobody has set a bound: with six others, large keeps each of these waiting for 4 s more, as
    it takes turns with what runs there, or for 2 s, where that is itself."""
    shared = {"large": law(4.0, load=0.5), "server": law(1.0, load=0.2)}
    ways = [
        way(SURVEYED, name, quality, latency=shared[name])
        for name, quality in (("large", 1.0), ("server", 0.7))
    ]
    busy = engine({"small": Load(running=4, waiting=2)})
    as_measured = {"paced": False}
    assert await taken(known(fleet(), *ways), options=as_measured) == "large"
    free = as_measured | {"delay_price": 0}
    assert await taken(known(fleet(), *ways), busy, options=free) == "large"
    catalog = known(fleet(), *ways)
    answer = auto(catalog, busy, options=as_measured)
    await read(answer)
    assert answer.notes.planned is not None
    large, server = answer.notes.planned.considered()
    assert (large.delay, server.delay) == (pytest.approx(24.0), 0.0)
    assert server.chosen and large.fits
    assert large.reason == "others would wait 24 s for it, 0 for server"
    itself = engine({"large": Load(running=4, waiting=2)})
    joining = auto(known(fleet(), *ways), itself, options=as_measured)
    await read(joining)
    assert joining.notes.planned is not None
    assert joining.notes.planned.considered()[0].delay == pytest.approx(12.0)
    # Who comes when they have gone keeps those waiting that come next.
    assert await taken(catalog, options=as_measured) == "server"
    assert await taken(catalog, quality=0.9, options=as_measured) == "large"  # a bound as ever


@pytest.mark.parametrize(
    ("asked", "options", "name"),
    [
        ({}, {}, "large"),  # for it takes milliseconds, not 40 s
        ({}, {"paced": False}, "server"),
        ({"choices": 2}, {}, "server"),  # each of several takes longer than one: they teach nothing
        ({"usd": usd(100)}, {}, "server"),  # nor do answers of the server
    ],
)
async def test_it_learns_how_quick_a_machine_is(
    asked: dict[str, Any], options: dict[str, Any], name: str
) -> None:
    large = way(SURVEYED, "large", 1.0, latency=law(40.0))
    server = way(SURVEYED, "server", 0.5, latency=law(1.0), cost=law(1e-6))
    catalog = known(fleet(), large, server)
    for _ in range(20):
        await taken(catalog, **asked)
    assert await taken(catalog, deadline=soon(30), options=options) == name


async def test_what_does_not_answer_is_not_asked() -> None:
    ill = Load(healthy=False)
    assert await taken(fake=engine({"large": ill})) == "server"
    assert await taken(fake=engine({"large": ill, "server": ill})) == "small"
    everything = dict.fromkeys(("small", "large", "server"), ill)
    assert await taken(fake=engine(everything)) == "large"  # the engine will say why not


async def test_what_the_context_does_not_hold_is_not_asked() -> None:
    assert await taken(fake=engine(large={"context": 5})) == "server"


async def test_a_form_is_kept_by_a_way_that_keeps_forms() -> None:
    catalog = measured(fleet(), economy=1.0, server=0.7)
    fake = engine(server={"native": True})
    formed = {"response_format": {"type": "json_object"}}
    assert await taken(catalog, fake) == "economy"
    assert await taken(catalog, fake, extra=formed) == "server"
    assert fake.calls[-1].decoding.native


async def test_pictures_are_for_who_reads_them() -> None:
    fake = engine(server={"native": True})
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {}}]
    seen = ({"role": "user", "content": parts},)
    assert await taken(SURVEYED, fake, messages=seen) == "server"
    assert (
        await taken(SURVEYED, fake, messages=({"role": "user", "content": parts[:1]},)) == "large"
    )


async def test_several_answers_cost_several_times_as_much() -> None:
    assert await taken(usd=usd(1500)) == "large"
    answer = auto(usd=usd(1500), choices=3)
    chunks = await read(answer)
    assert way_of(answer) == "server"
    assert {chunk.index for chunk in chunks if chunk.finish} == {0, 1, 2}
    assert [decision.kind for decision in answer.decisions] == ["plan"]
    best = auto(usd=usd(1500), best_of=3)
    await read(best)
    assert way_of(best) == "server"


async def test_nothing_is_admitted_that_might_be_cut_where_that_is_refused() -> None:
    probe = auto(options={"ways": "server"})
    await read(probe)
    answer = auto(usd=probe.estimate, strict=True)
    await read(answer)
    assert way_of(answer) == "server" and answer.outcome == "kept"
    assert await taken(usd=probe.estimate - 1, strict=True) == "small"
    with pytest.raises(BudgetExceeded) as refused:
        await read(auto(usd=usd(50), strict=True))
    assert refused.value.param == "X-Budget-Usd"


@pytest.mark.parametrize(
    ("goal", "param"),
    [
        ({"deadline": 0.05}, "X-Budget-Latency-Ms"),
        ({"first_token": 0.05}, "X-Budget-Ttft-Ms"),
        ({"quality": 0.9, "usd": usd(600)}, "X-Budget-Quality"),
    ],
)
async def test_strict_refuses_what_no_way_keeps_to(goal: dict[str, Any], param: str) -> None:
    def asked(**more: Any) -> Answer:
        timed = {name: soon(goal[name]) for name in ("deadline", "first_token") if name in goal}
        return auto(**{**goal, **timed, **more})

    with pytest.raises(BudgetExceeded) as refused:
        await read(asked(strict=True))
    assert refused.value.param == param
    answer = asked()
    await read(answer)
    assert answer.promise is not None and answer.promise.kind == "short"
    assert not answer.decisions[0].steered  # it was not for want of money
