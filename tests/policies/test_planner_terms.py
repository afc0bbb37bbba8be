"""Whom `auto` answers, with which options, what it explores, and what is told of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

import policies
from app.budget import Purse
from app.catalog import GpuSeconds, Preset
from app.errors import BadRequest, Forbidden, KeySpent, UnknownModel
from app.explaining import explained
from app.gateway import Answer, Gateway, Order
from app.types import Call, Goals
from tests.policies.autos import SURVEYED, auto, engine, fleet, soon, taken, way_of
from tests.policies.measured import known, law, measured, way
from tests.policies.scripts import ask, call, card, price, read, text, usd


class Poor(Purse):
    """Has no more than this, and may name these alone."""

    def __init__(self, left: int | None = None, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.left, self.names = left, names

    def allows(self, name: str) -> bool:
        return not self.names or name in self.names

    async def reserve(self, wanted: Any) -> Any:
        if self.left is not None and self.left < wanted.least:
            raise KeySpent("it leaves less")
        held = await super().reserve(wanted)
        held.amount = min(held.amount, held.amount if self.left is None else self.left)
        return held


async def test_where_the_account_has_less_another_way_is_planned() -> None:
    answer = auto(account=Poor(usd(700)))
    await read(answer)
    assert way_of(answer) == "server" and answer.outcome == "kept"
    assert answer.spent <= answer.estimate <= usd(700) and answer.budget == usd(700)


async def test_an_account_that_pays_for_a_token_of_the_cheapest_way_is_answered() -> None:
    # Of the best one not even the prompt: 5 tokens for 10 each.
    answer = auto(account=Poor(usd(40)))
    await read(answer)
    assert way_of(answer) == "small" and answer.outcome == "cut"
    assert 0 < answer.spent <= usd(40)
    with pytest.raises(KeySpent):
        await read(auto(account=Poor(usd(6))))


@pytest.mark.parametrize(
    ("names", "name"),
    [(("auto",), "large"), (("server", "small"), "server"), (("economy",), "economy")],
)
async def test_a_key_is_answered_in_ways_that_it_may_name(names: Any, name: str) -> None:
    assert await taken(account=Poor(names=names)) == name


async def test_a_key_that_may_name_none_of_them_is_refused() -> None:
    with pytest.raises(Forbidden, match="'auto'"):
        auto(account=Poor(names=("nothing",)))
    # What changes `auto` brings nothing along.
    with pytest.raises(Forbidden):
        auto(account=Poor(names=("auto",)), options={"explore": 0.1})


async def test_a_budget_in_accelerator_seconds_is_kept_by_ways_that_say_them() -> None:
    timed = {
        name: SURVEYED.models[name].model_copy(
            update={"gpu_seconds": GpuSeconds(input=each, output=each)}
        )
        for name, each in (("large", 100), ("server", 50))
    }
    catalog = measured(
        replace(fleet(), models={**fleet().models, **timed}), small=1.0, large=0.9, server=0.5
    )
    pico = 10**12
    for gpu, name in ((pico, "large"), (4 * 10**9, "server")):
        answer = auto(catalog, gpu=gpu)
        await read(answer)
        assert way_of(answer) == name
        assert sum(line.gpu_us or 0 for line in answer.bill.lines) * 10**6 <= gpu


async def test_what_has_changed_since_it_was_measured_is_not_taken() -> None:
    models = {**SURVEYED.models, "large": card("large", price(10, 21))}
    assert await taken(replace(SURVEYED, models=models)) == "server"
    gone = {"small": SURVEYED.models["small"]}
    assert await taken(replace(SURVEYED, models=gone, presets={})) == "small"
    others = {"large": card("large", price(10, 21))}
    with pytest.raises(BadRequest, match="run `farthing calibrate` again"):
        auto(replace(SURVEYED, models=others, presets={}))


async def test_a_preset_that_asks_other_models_by_now_is_another_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The small model of this preset is the cheapest of the family, whichever that is.
    open_preset = Preset(name="economy", policy="entropy_switch", large="large")
    before = measured(replace(fleet(), presets={"economy": open_preset}), economy=1.0, large=0.9)
    assert await taken(before) == "economy"
    tiny = {**before.models, "tiny": card("tiny", price(0.1, 0.2))}
    after = replace(before, models=tiny)
    assert await taken(after, engine(tiny={})) == "large"
    assert "economy: it asks tiny, large now, and asked small, large" in caplog.text
    with pytest.raises(BadRequest, match="economy is not as it was measured: it asks tiny"):
        auto(after, options={"ways": "economy"})


async def test_what_nobody_told_counts_as_the_worst_that_is_known() -> None:
    untold = {"cost": law(), "first_token": law(), "latency": law()}
    ways = (way(fleet(), "large", 1.0, **untold), way(fleet(), "small", 0.5, latency=law(2.0)))
    catalog = known(fleet(), *ways)
    assert await taken(catalog) == "large"
    # 40 tokens of the large one cost 800, and what they take is at least what the small one's do.
    assert await taken(catalog, usd=usd(300)) == "small"
    assert await taken(catalog, quality=0.4) == "small"
    answer = auto(catalog, deadline=soon(1))
    await read(answer)
    assert answer.promise is not None and answer.promise.kind == "short"
    free = {**fleet().models, "large": card("large", price(0, 0))}
    cheap = replace(fleet(), models=free)
    cheap = known(cheap, way(cheap, "large", 1.0, **untold), ways[1])
    assert await taken(cheap, usd=usd(300)) == "large"


def test_without_a_profile_there_is_no_auto_and_it_says_how_to_get_one() -> None:
    with pytest.raises(UnknownModel, match=r"run `farthing calibrate`.*\[planner\]"):
        auto(fleet())
    with pytest.raises(BadRequest, match=r"run `farthing calibrate`.*\[planner\]"):
        gateway = Gateway(engine(), fleet())
        ask(gateway, Order(call("large"), policy="planner"))
    assert "auto" not in fleet().offered and "auto" in SURVEYED.offered


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ways": "nobody"}, "ways: the profile has no 'nobody'; it has: large"),
        ({"ways": "economy", "exact": True}, "of the measured ways none is exact"),
        ({"explore": 0.5}, "explore"),
        ({"quality": 2}, "quality"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        auto(options=options)


async def test_beside_a_model_it_chooses_among_the_ways_in_which_that_may_answer() -> None:
    def asked(model: str, **more: Any) -> Answer:
        return ask(Gateway(engine(), SURVEYED), Order(call(model, **more), policy="planner"))

    answer = asked("small", max_tokens=40)
    await read(answer)
    assert way_of(answer) == "economy"
    with pytest.raises(BadRequest, match="none is left with sturdy-server"):
        cards = {**SURVEYED.models, "sturdy-server": card("sturdy-server", price(1, 1))}
        catalog = replace(SURVEYED, models=cards)
        ask(Gateway(engine(), catalog), Order(call("sturdy-server"), policy="planner"))


async def test_ways_may_be_named_and_presets_have_options_of_their_own() -> None:
    assert await taken(options={"ways": "small, server"}) == "server"
    thrifty = Preset(name="thrifty", policy="planner", quality=0.6)
    catalog = replace(SURVEYED, presets={**SURVEYED.presets, "thrifty": thrifty})
    answer = ask(Gateway(engine(), catalog), Order(call("thrifty", max_tokens=40)))
    await read(answer)
    assert way_of(answer) == "server" and answer.policy == "thrifty"


async def test_a_dial_is_a_way_of_its_own() -> None:
    dialled = "economy;raise_at=9.0"
    catalog = measured(fleet(), **{dialled: 1.0, "large": 0.9})
    answer = auto(catalog)
    await read(answer)
    assert way_of(answer) == dialled
    assert answer.promise is not None and answer.promise.preset == "economy"
    assert answer.notes.serving.raise_at == 9.0  # type: ignore[attr-defined]


async def test_it_explores_what_fits_as_often_as_it_says() -> None:
    options = {"explore": 0.2}
    seen = Counter[str]()
    for number in range(400):
        answer = auto(options=options, usd=usd(800), id=f"answer-{number}")
        await read(answer)
        assert answer.promise is not None
        seen[way_of(answer), answer.promise.kind] += 1  # type: ignore[index]
    assert set(seen) == {("server", "best"), ("small", "explored")}
    assert 20 <= seen["small", "explored"] <= 60  # type: ignore[index]
    again = {await taken(options=options, usd=usd(800), id="answer-7") for _ in range(3)}
    assert len(again) == 1  # the same request is answered in the same way


async def test_a_fleet_that_changes_has_its_own_profile() -> None:
    assert await taken(SURVEYED) == "large"
    assert await taken(measured(fleet(), small=1.0, large=0.5)) == "small"
    assert await taken(SURVEYED) == "large"


async def test_run_by_itself_it_does_the_same() -> None:
    fake = engine()
    fitted = policies.load("planner", {}).fit(SURVEYED, None)
    gateway = Gateway(fake, SURVEYED)
    meter = ask(gateway, Order(call("large")))._meter
    chunks = [chunk async for chunk in fitted.run(call("", max_tokens=9), meter)]
    assert chunks[0].decision is not None and chunks[0].decision.kind == "plan"
    assert [way.name for way in chunks[0].considered if way.chosen] == ["large"]
    assert text(chunks).split() == [f"l{i}" for i in range(9)]


async def test_a_prompt_is_shown_again_by_the_model_that_answers() -> None:
    answer = auto(prompt="why is it", messages=(), echo=True, options={"ways": "server"})
    chunks = await read(answer)
    assert chunks[0].echo and chunks[0].model == "server"


async def test_the_decision_log_tells_every_way_and_how_likely_it_was() -> None:
    answer = auto(usd=usd(800), options={"explore": 0.1})
    await read(answer)
    told = explained_of(answer)
    assert told["plan"]["policy"] == "planner" and told["plan"]["preset"] == "auto"
    chosen = told["plan"]["way"]
    assert (chosen["name"], chosen["preset"], chosen["why"]) == ("server", "server", "best")
    assert chosen["models"] == ["server"] and chosen["expected_usd"] > 0
    ways = {way["name"]: way for way in told["alternatives"] if way["kind"] == "preset"}
    assert list(ways) == ["large", "economy", "server", "small"]
    assert {name: way["propensity"] for name, way in ways.items()} == {
        "large": 0.0,
        "economy": 0.0,
        "server": 0.95,
        "small": 0.05,
    }
    assert [way["fits"] for way in ways.values()] == [False, False, True, True]
    assert [way["chosen"] for way in ways.values()] == [False, False, True, False]
    assert ways["large"]["reason"].startswith("it may cost ")
    assert ways["server"]["reason"] == "the best that fits"
    assert all(way["quality"] and way["latency_s"] and way["usd"] for way in ways.values())
    (plan,) = [way for way in told["alternatives"] if way["kind"] == "plan"]
    assert plan["name"] == "auto" and plan["fits"]


def explained_of(answer: Answer) -> Any:
    return json.loads(explained(answer, answer.bill, answer.outcome))


def test_it_embeds_nothing() -> None:
    with pytest.raises(BadRequest, match="name a model"):
        ask(Gateway(engine(), SURVEYED), Order(Call("auto", prompt="a", embeds=True)))


def test_a_quality_is_for_the_planner_alone() -> None:
    with pytest.raises(BadRequest) as refused:
        goals = Goals(quality=0.5)
        ask(Gateway(engine(), SURVEYED), Order(call("large", goals=goals)))
    assert refused.value.param == "X-Budget-Quality"
