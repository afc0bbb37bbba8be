"""Which policy answers, what a client may learn of it, and how an answer ends."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest

from app.budget import Meter, Purse
from app.engines.fake import Fake, Script
from app.errors import (
    BadRequest,
    BudgetExceeded,
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    FarthingError,
    Overloaded,
    UnknownModel,
)
from app.gateway import Answer, Gateway, Order, Plan
from app.trail import CallRecord
from app.types import Chunk, Decision, Fidelity, Goals, Usage
from policies.base import Policy
from tests.policies.scripts import ask, call, engine, fleet, read, usd


@dataclass
class Watcher:
    outcomes: list[str] = field(default_factory=list)

    def calling(self, answer: Answer, record: CallRecord) -> None:
        pass

    def called(self, answer: Answer, record: CallRecord) -> None:
        pass

    def decided(self, answer: Answer, decision: Decision) -> None:
        pass

    def answered(self, answer: Answer, outcome: str) -> None:
        self.outcomes.append(outcome)


def gateway(fake: Fake | None = None, watcher: Watcher | None = None) -> Gateway:
    return Gateway(fake or engine(), fleet(), watcher)


@pytest.mark.parametrize(
    ("model", "policy", "options", "name"),
    [
        ("small", None, {}, "direct"),
        ("economy", None, {}, "economy"),
        ("economy", "entropy_switch", {"raise_at": "3"}, "entropy_switch"),
        ("large", "economy", {}, "economy"),
        ("large", "entropy_switch", {}, "entropy_switch"),
        ("entropy_switch/large", None, {}, "entropy_switch"),
        ("direct/small", None, {}, "direct"),
    ],
)
def test_names_lead_to_policies(model, policy, options, name):
    plan = gateway().plan(Order(call(model), policy=policy, options=options))
    assert plan.name == name


def test_options_beside_a_preset_override_its_own_and_leave_the_others():
    plan = gateway().plan(Order(call("economy"), policy="economy", options={"raise_at": "3"}))
    assert (plan.policy.raise_at, plan.policy.lower_at) == (3.0, 0.5)


@pytest.mark.parametrize("model", ["nope", "", "no_policy/large", "direct/nope", "a/b/c"])
def test_an_unknown_model_is_refused_at_once(model):
    with pytest.raises(UnknownModel):
        gateway().answer(Order(call(model)), None)


@pytest.mark.parametrize("policy", ["nope", "../etc", "base", "__init__", "direct "])
def test_an_unknown_policy_is_refused_at_once_naming_where_it_stood(policy):
    with pytest.raises(BadRequest) as refusal:
        gateway().answer(Order(call("large"), policy=policy, policy_param="X-Policy"), None)
    assert refusal.value.param == "X-Policy"


def test_a_preset_and_another_policy_contradict_each_other():
    with pytest.raises(BadRequest, match="not the policy of preset"):
        gateway().answer(Order(call("economy"), policy="direct"), None)


async def test_the_bill_sums_to_the_cost_and_shows_the_prompt_once():
    answer = ask(gateway(engine([3.0] * 20, [0.0] * 40)), Order(call()))
    await read(answer)
    bill = answer.bill
    assert (bill.prompt, bill.completion) == (5, 40)
    assert bill.cost == answer.spent == sum(line.cost for line in bill.lines)
    assert sum(line.visible for line in bill.lines) == 40
    assert 0 <= bill.overhead < 60 and len(bill.prices) == 12


async def test_switches_are_stamped_with_the_rest_of_the_budget():
    answer = ask(gateway(engine([3.0] * 20)), Order(call(), usd=usd(5000)))
    await read(answer)
    assert 0 < answer.decisions[0].rest_usd < 0.005


async def test_the_estimate_never_passes_the_budget_and_is_known_at_the_first_chunk():
    answer = ask(gateway(), Order(call("large"), usd=usd(500)))
    await anext(answer)
    assert answer.estimate == usd(500)
    await answer.aclose()
    answer = ask(gateway(), Order(call("large", max_tokens=2), usd=usd(500)))
    await anext(answer)
    assert answer.estimate == usd(50 + 40)
    await answer.aclose()


async def test_the_account_is_charged_once_at_the_end_however_it_ends():
    for stop_after in (1, 5, None):
        fake, order = engine(), Order(call("large"))
        answer = ask(gateway(fake), order)
        if stop_after is None:
            await read(answer)
        else:
            for _ in range(stop_after):
                await anext(answer)
        await answer.aclose()
        await answer.aclose()
        assert answer._account.spent == answer.spent > 0


class Leaky(Policy):
    """Abandons the stream it opened, as a policy must not."""

    fidelity: ClassVar[Fidelity] = "exact"

    def worst_case(self, model, prompt, completion):
        return {"small": Usage(prompt=prompt, completion=completion)}

    async def run(self, call, engine):
        abandoned = engine.generate(call.to("small"))
        yield await anext(abandoned)
        yield Chunk(finish="stop")


async def test_a_stream_that_a_policy_abandoned_is_closed_with_the_answer():
    fake = engine()
    order, plan = Order(call("small")), Plan("", "leaky", Leaky(), "small")
    answer = Answer(order, plan, Meter(fake, fleet().prices()), "v1", Purse(), None)
    await read(answer)
    assert fake.open == 0


def within(seconds: float) -> Goals:
    return Goals(deadline=time.monotonic() + seconds)


async def test_a_deadline_before_the_first_token_is_an_error():
    fake = engine(delay=5.0)
    with pytest.raises(DeadlineExceeded):
        await anext(ask(gateway(fake), Order(call("large", goals=within(0.02)))))
    assert fake.open == 0


async def test_a_chunk_that_shows_nothing_is_not_the_first():
    """Else status 200 would go out before the prompt is read."""

    class Announcing(Fake):
        async def generate(self, call):
            yield Chunk(model=call.model, usage=Usage(prompt=5))
            async for chunk in super().generate(call):
                yield replace(chunk, usage=Usage(completion=chunk.usage.completion))

    fake = Announcing(engine(delay=5.0).scripts)
    with pytest.raises(DeadlineExceeded):
        await anext(ask(gateway(fake), Order(call("large", goals=within(0.02)))))
    answer = ask(gateway(Announcing(engine().scripts)), Order(call("large")))
    assert (await anext(answer)).tokens
    await answer.aclose()
    assert answer.bill.prompt == 5 and answer.bill.lines[0].usage.prompt == 5


async def test_nor_is_a_decision():
    """Steered off a large model that cannot be paid, before there is a token."""
    options = {"start": "large"}
    order = Order(call(goals=within(0.02)), options=options, usd=usd(60))
    with pytest.raises(DeadlineExceeded):
        await anext(ask(gateway(engine(delay=5.0)), order))
    answer = ask(gateway(), Order(call(), options=options, usd=usd(60)))
    chunks = await read(answer)
    assert chunks[0].decision.kind == "steer" and chunks[1].tokens


async def test_a_deadline_in_mid_answer_cuts_it_and_stops_the_engine():
    fake = Fake({"small": Script(["s"] * 100000, context=200000), "large": Script(["l"])})
    chunks = await read(ask(gateway(fake), Order(call("small", goals=within(0.2)))))
    assert (chunks[-1].finish, chunks[-1].reason) == ("length", "deadline")
    assert len(chunks) > 1 and fake.open == 0


@pytest.mark.parametrize("after", [0, 3])
async def test_a_stopped_answer_ends_at_once_with_what_it_has_and_frees_the_engine(after):
    class Stuck(Fake):
        async def generate(self, call):
            async with contextlib.aclosing(super().generate(call)) as chunks:
                async for chunk in chunks:
                    if chunk.tokens and chunk.tokens[0].id == after:
                        await asyncio.sleep(60)
                    yield chunk

    watcher, fake = Watcher(), Stuck(engine().scripts)
    answer = gateway(fake, watcher).answer(Order(call("large")), Purse())
    chunks = [await anext(answer) for _ in range(after)]
    waiting = asyncio.ensure_future(anext(answer))
    await asyncio.sleep(0.01)
    answer.stop()
    last = await waiting
    assert (last.finish, last.reason) == ("length", "cancelled")
    assert await anext(answer, None) is None
    answer.stop()  # too late, and harmless
    assert answer.ended and watcher.outcomes == ["closed"] and not fake.open
    assert answer.bill.completion == sum(len(chunk.tokens) for chunk in chunks) == after


async def test_a_deadline_that_is_kept_changes_nothing():
    chunks = await read(ask(gateway(), Order(call("small", goals=within(60)))))
    assert chunks[-1].reason is None


@pytest.mark.parametrize(
    ("fake", "order", "outcome"),
    [
        (engine(), Order(call("large")), "kept"),
        (engine(), Order(call("large"), usd=usd(100)), "cut"),
        (engine(), Order(call("large"), usd=usd(10)), "refused"),
        (engine(fails_after=2), Order(call("large")), "failed"),
        (
            engine(large=[9.0] * 40),
            Order(call(max_tokens=40), policy="economy", options={"start": "large"}, usd=usd(500)),
            "steered",
        ),
    ],
)
async def test_the_observer_hears_how_it_ended(fake, order, outcome):
    watcher = Watcher()
    with contextlib.suppress(BudgetExceeded, EngineError):
        await read(ask(gateway(fake, watcher), order))
    assert watcher.outcomes == [outcome]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        *((ContextOverflow("long"), "refused"), (Overloaded("full"), "refused")),
        *((EngineUnavailable("none"), "failed"), (FarthingError("a bug"), "failed")),
    ],
)
async def test_what_an_engine_refuses_for_its_client_s_fault_is_no_failure(error, outcome):
    class Refusing(Fake):
        async def generate(self, call):
            raise error
            yield

    watcher = Watcher()
    with pytest.raises(type(error)):
        await read(ask(gateway(Refusing(engine().scripts), watcher), Order(call("large"))))
    assert watcher.outcomes == [outcome]


async def test_a_bug_of_ours_counts_as_a_failure_and_is_paid_for():
    class Broken(Fake):
        async def generate(self, call):
            async for chunk in super().generate(call):
                yield chunk
                raise ZeroDivisionError

    watcher = Watcher()
    answer = ask(gateway(Broken(engine().scripts), watcher), Order(call("large")))
    with pytest.raises(ZeroDivisionError):
        await read(answer)
    assert watcher.outcomes == ["failed"] and answer.spent > 0


async def test_the_observer_hears_that_the_client_left():
    watcher = Watcher()
    answer = ask(gateway(engine(), watcher), Order(call("large")))
    await anext(answer)
    await answer.aclose()
    assert watcher.outcomes == ["closed"]


async def test_max_tokens_beyond_the_context_reaches_the_engine_which_refuses_it():
    """What is held for the answer must not hide it."""
    fake = engine()
    answer = ask(gateway(fake), Order(call("large", max_tokens=9000)))
    await anext(answer)
    assert fake.calls[0].max_tokens == 9000
    await answer.aclose()


class Bounding(Fake):
    """The large model's entropies are known within bounds only."""

    async def generate(self, call):
        async for chunk in super().generate(call):
            if call.model == "large":
                tokens = [replace(t, entropy=(t.entropy[0], 9.0)) for t in chunk.tokens]
                chunk = replace(chunk, tokens=tuple(tokens))
            yield chunk


@pytest.mark.parametrize(
    ("kind", "model", "small", "known"),
    [
        (Fake, "large", [], None),
        (Fake, "economy", [9.0] * 20, "exact"),
        (Bounding, "economy", [], "exact"),  # the large one never wrote
        (Bounding, "economy", [9.0] * 20, "bounds"),
    ],
)
async def test_an_answer_says_whether_its_entropies_were_exact(kind, model, small, known):
    answer = ask(gateway(kind(engine(small=small).scripts)), Order(call(model)))
    await read(answer)
    assert answer.shown.entropy == known


async def test_an_answer_is_asked_for_in_its_accounts_name():
    fake = engine()
    answer = gateway(fake).answer(Order(call("small")), Purse(id="key-1"))
    await read(answer)
    assert [made.account for made in fake.calls] == ["key-1"]


@pytest.mark.parametrize("up", ["large", None])
async def test_a_prompt_is_counted_by_whichever_model_can(up):
    class Half(Fake):
        async def count(self, call):
            if call.model != up:
                raise EngineError("down")
            return await super().count(call)

    answer = ask(gateway(Half(engine().scripts)), Order(call("economy")))
    if up is None:
        with pytest.raises(EngineError, match="down"):
            await read(answer)
        return
    chunks = await read(answer)
    assert {chunk.model for chunk in chunks if chunk.tokens} == {"large"}
    assert [decision.kind for decision in answer.decisions] == ["failover"]
