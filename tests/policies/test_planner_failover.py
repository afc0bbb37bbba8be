"""`auto` where the way that it took fails before its first word: another one is taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.engines.fake import Fake
from app.errors import BadRequest, EngineError
from app.explaining import explained
from app.gateway import Answer
from policies.plans.fitted import fitted
from policies.plans.pace import Slower
from tests.policies.autos import SURVEYED, auto, engine, fleet, way_of
from tests.policies.measured import measured
from tests.policies.scripts import read, text, usd

FAILS: dict[str, Any] = {"fails_after": 0}


def broken(*names: str, **more: Any) -> Fake:
    return engine(**{**dict.fromkeys(names, FAILS), **more})


def asked(fake: Fake) -> list[str]:
    return [call.model for call in fake.calls]


async def test_the_best_of_the_others_answers() -> None:
    fake = broken("large")
    answer = auto(SURVEYED, fake)
    chunks = await read(answer)
    assert text(chunks).startswith("s0 s1") and way_of(answer) == "server"
    # Economy would have asked what has failed just now.
    assert asked(fake) == ["large", "server"] and answer.outcome == "kept"
    (decision,) = answer.decisions
    assert (decision.kind, decision.model, decision.steered) == ("plan", "server", False)
    assert decision.detail.startswith("server: large failed (EngineError); the best that fits; ")
    assert answer.promise is not None
    assert (answer.promise.kind, answer.promise.after) == ("failover", ("large",))


async def test_how_long_it_took_to_fail_says_nothing_of_the_other_s_pace() -> None:
    catalog = measured(fleet(), large=1.0, server=0.7)
    await read(auto(catalog, engine(large={**FAILS, "delay": 0.02})))
    pace = fitted(catalog, (), False, None).pace
    assert pace.of(("server",)) == Slower()
    await read(auto(catalog))
    assert pace.of(("large",)) != Slower()


async def test_its_fidelity_is_that_of_who_answers() -> None:
    catalog = measured(fleet(), server=1.0, economy=0.8)
    answer = auto(catalog, broken("server"))
    await read(answer)
    assert way_of(answer) == "economy" and answer.fidelity == "approximate"


async def test_what_has_begun_is_not_begun_again() -> None:
    fake = engine(large={"fails_after": 3})
    answer = auto(SURVEYED, fake)
    with pytest.raises(EngineError):
        await read(answer)
    assert asked(fake) == ["large"] and way_of(answer) == "large"


async def test_where_all_fail_it_is_told_why_the_first_one_did() -> None:
    fake = engine(large={"context": 3}, server=FAILS, small=FAILS)
    with pytest.raises(EngineError, match="the script says"):
        await read(auto(SURVEYED, fake))
    assert asked(fake) == ["server", "small"]


async def test_it_tries_no_more_than_three_others() -> None:
    dials = {f"economy;raise_at={n}.0": 0.5 + n / 100 for n in range(1, 9)}
    catalog = measured(fleet(), **dials)
    # What the models fail in is nothing that tells which one did.
    fake = Unsaid(engine().scripts)
    with pytest.raises(BadRequest, match="not today"):
        await read(auto(catalog, fake))
    assert len(fake.asked) == 4


class Unsaid(Fake):
    """Refuses every call."""

    asked: list[str]

    async def generate(self, call: Any) -> Any:
        self.asked = [*getattr(self, "asked", []), call.model]
        raise BadRequest("not today")
        yield


async def test_what_one_refuses_another_may_take() -> None:
    fake = engine(server={"native": True})
    answer = auto(SURVEYED, fake, extra={"min_tokens": 3})
    await read(answer)
    assert way_of(answer) == "server" and answer.promise is not None
    assert answer.promise.after == ("large",)


async def test_it_has_what_was_held_for_the_first_one() -> None:
    fake = broken("small")
    answer = auto(SURVEYED, fake, quality=0.5)
    await read(answer)
    # The cheapest is held for: the other one has no more, and keeps to that.
    assert way_of(answer) == "server" and asked(fake) == ["small", "server"]
    assert answer.outcome == "cut" and answer.budget is None
    assert 0 < answer.spent <= answer.estimate


async def test_strict_is_kept_to() -> None:
    with pytest.raises(EngineError, match="the script says"):
        await read(auto(SURVEYED, broken("small"), quality=0.5, strict=True))
    answer = auto(SURVEYED, broken("large"), strict=True)
    await read(answer)
    assert way_of(answer) == "server" and answer.outcome == "kept"


async def test_several_answers_are_by_one_way_all_of_them() -> None:
    fake = broken("large")
    answer = auto(SURVEYED, fake, choices=3)
    chunks = await read(answer)
    assert {chunk.model for chunk in chunks if chunk.tokens} == {"server"}
    assert {chunk.index for chunk in chunks if chunk.finish} == {0, 1, 2}
    best = auto(SURVEYED, broken("large"), best_of=3)
    assert text(await read(best)).startswith("s0 s1")


async def test_its_prompt_is_shown_by_who_answers() -> None:
    answer = auto(SURVEYED, broken("large"), prompt="why is it", messages=(), echo=True)
    chunks = await read(answer)
    assert chunks[0].echo and chunks[0].model == "server"


@pytest.mark.parametrize("error", [EngineError, BadRequest])
async def test_who_cannot_even_count_is_not_asked(error: type[Exception]) -> None:
    class Mute(Fake):
        async def count(self, call: Any) -> int:
            if call.model == "large":
                raise error("it does not count")
            return await super().count(call)

    fake = Mute(engine().scripts)
    answer = auto(SURVEYED, fake)
    await read(answer)
    assert way_of(answer) == "economy" and asked(fake)[0] == "small"


async def test_the_log_tells_who_was_drawn_and_who_answered() -> None:
    answer = auto(SURVEYED, broken("server"), usd=usd(800), options={"explore": 0.1}, id="answer-1")
    await read(answer)
    told = explained_of(answer)
    way = told["plan"]["way"]
    assert (way["name"], way["why"], way["after"]) == ("small", "failover", ["server"])
    ways = {one["name"]: one for one in told["alternatives"] if one["kind"] == "preset"}
    assert [name for name, one in ways.items() if one["chosen"]] == ["small"]
    assert ways["server"]["reason"] == "it failed before its first word (EngineError)"
    # How likely each was to be taken at first: all that came of it is that one's.
    assert sum(one["propensity"] for one in ways.values()) == pytest.approx(1)
    assert ways["server"]["propensity"] == 0.95


def explained_of(answer: Answer) -> Any:
    return json.loads(explained(answer, answer.bill, answer.outcome))
