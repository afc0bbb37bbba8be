"""When one of the two models fails, the other one ends the answer; and only then."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from app.engines.fake import Fake, Script
from app.errors import (
    BadRequest,
    DeadlineExceeded,
    EngineError,
    EngineLost,
    EngineUnavailable,
    FarthingError,
    Overloaded,
    Unaffordable,
    UnknownModel,
)
from app.gateway import Answer, Gateway, Order
from app.types import Call, Capabilities, Chunk, Token
from tests.policies.scripts import LENGTH, ask, call, engine, fleet, read, text, usd


@dataclass
class Failing(Fake):
    """The next calls of a model fail: after so many tokens, with this error."""

    fails: dict[str, list[tuple[int, FarthingError]]] = field(default_factory=dict)

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        plan = self.fails.get(call.model)
        after, error = plan.pop(0) if plan else (-1, EngineError(""))
        written = 0
        async with aclosing(super().generate(call)) as stream:
            async for chunk in stream:
                if written == after:
                    raise error
                yield chunk
                written += len(chunk.tokens)


def failing(small: Any = (), large: Any = (), **more: Any) -> Failing:
    return Failing(engine(**more).scripts, fails={"small": list(small), "large": list(large)})


def asked(fake: Fake, order: Order) -> Answer:
    return ask(Gateway(fake, fleet()), order)


def authors(chunks: list[Chunk]) -> str:
    return "".join(word[0] for word in text(chunks).split())


LATE = DeadlineExceeded("late")
GONE = EngineError("it broke off")
DOWN = EngineUnavailable("it is down")
UNSURE = {"small": [9.0] * LENGTH, "large": [9.0] * LENGTH}


@pytest.mark.parametrize("error", [GONE, DOWN, EngineLost("it is lost"), Overloaded("busy")])
@pytest.mark.parametrize("after", [1, 7])
@pytest.mark.parametrize("start", ["small", "large"])
async def test_in_mid_answer_the_other_one_goes_on(
    start: str, after: int, error: FarthingError
) -> None:
    fake = failing(**{start: [(after, error)]})
    answer = asked(fake, Order(call(), options={"start": start, "lower_at": "-inf"}))
    chunks = await read(answer)
    other = {"small": "large", "large": "small"}[start]
    assert authors(chunks) == start[0] * after + other[0] * (LENGTH - after)
    assert [word[1:] for word in text(chunks).split()] == [str(i) for i in range(LENGTH)]
    (decision,) = answer.decisions
    assert (decision.kind, decision.model, decision.token) == ("failover", other, after)
    assert (decision.entropy, decision.threshold) == (None, None)
    assert chunks[-1].finish == "stop" and fake.open == 0


@pytest.mark.parametrize("start", ["small", "large"])
@pytest.mark.parametrize("error", [GONE, DOWN])
async def test_before_the_first_token_too(start: str, error: FarthingError) -> None:
    fake = failing(**{start: [(0, error)]})
    answer = asked(fake, Order(call(), options={"start": start}))
    chunks = await read(answer)
    assert authors(chunks) == {"small": "l", "large": "s"}[start] * LENGTH
    assert answer.decisions[0].kind == "failover" and answer.decisions[0].token == 0


async def test_who_is_busy_before_the_first_token_had_better_be_asked_again() -> None:
    answer = asked(failing(small=[(0, Overloaded("busy", retry_after=3))]), Order(call()))
    with pytest.raises(Overloaded, match="busy") as raised:
        await read(answer)
    assert raised.value.retry_after == 3
    assert answer.decisions == []


async def test_a_model_that_is_taken_out_of_the_catalog_in_mid_answer_is_done_without() -> None:
    """A reload may end a model; what it began, the other one ends."""
    fake = engine(small=[9.0] * LENGTH)
    answer = asked(fake, Order(call(), options={"lower_at": "64"}))
    chunks = [await anext(answer) for _ in range(12)]  # large writes since its 10th
    del fake.scripts["small"]  # type: ignore[attr-defined]
    chunks += await read(answer)
    assert authors(chunks) == "s" * 10 + "l" * (LENGTH - 10)
    assert [decision.kind for decision in answer.decisions] == ["switch", "switch", "failover"]


async def test_a_model_that_never_was_is_unknown() -> None:
    fake = engine()
    del fake.scripts["small"]  # type: ignore[attr-defined]
    with pytest.raises(UnknownModel):
        await read(asked(fake, Order(call())))


@pytest.mark.parametrize(
    ("error", "after"), [(BadRequest("no"), 0), (DeadlineExceeded("late"), 0), (LATE, 3)]
)
async def test_what_the_other_would_answer_alike_is_not_asked_of_it(
    error: FarthingError, after: int
) -> None:
    fake = failing(small=[(after, error)])
    with pytest.raises(type(error)):
        await read(asked(fake, Order(call())))
    assert [asked.model for asked in fake.calls] == ["small"]


async def test_what_one_refuses_in_mid_answer_the_other_has_taken() -> None:
    fake = failing(small=[(3, BadRequest("no"))])
    answer = asked(fake, Order(call()))
    assert authors(await read(answer)) == "s" * 3 + "l" * (LENGTH - 3)
    assert [decision.kind for decision in answer.decisions] == ["failover"]


@pytest.mark.parametrize(("small", "large"), [(0, 0), (0, 5), (4, 0), (4, 5)])
async def test_when_both_fail_the_last_error_is_told(small: int, large: int) -> None:
    fake = failing(small=[(small, GONE)] * 9, large=[(large, DOWN)] * 9)
    answer, chunks = asked(fake, Order(call())), []
    with pytest.raises(EngineUnavailable, match="it is down"):
        async for chunk in answer:
            chunks.append(chunk)
    assert authors(chunks) == "s" * small + "l" * large
    assert [called.model for called in fake.calls] == ["small", "large"] and fake.open == 0


async def test_who_is_alone_stays_alone() -> None:
    """However unsure it is, and though the other one might be well again."""
    fake = failing(small=[(3, GONE)])
    fake.scripts = engine(**UNSURE).scripts
    answer = asked(fake, Order(call()))
    chunks = await read(answer)
    assert authors(chunks) == "sss" + "l" * (LENGTH - 3)
    assert fake.calls[-1].decoding.stop is None
    fake = failing(large=[(3, GONE)])
    fake.scripts = engine(**UNSURE).scripts
    chunks = await read(asked(fake, Order(call(), options={"start": "large"})))
    assert authors(chunks) == "lll" + "s" * (LENGTH - 3)


async def test_max_tokens_count_for_both_together() -> None:
    fake = failing(small=[(7, GONE)])
    chunks = await read(asked(fake, Order(call(max_tokens=12))))
    assert authors(chunks) == "s" * 7 + "l" * 5 and chunks[-1].finish == "length"


async def test_the_budget_holds_for_both_together() -> None:
    for budget in range(20, 400, 13):
        fake = failing(small=[(7, GONE)])
        answer = asked(fake, Order(call(max_tokens=LENGTH), usd=usd(budget)))
        chunks = await read(answer)
        assert answer.spent <= usd(budget)
        assert chunks[-1].reason == ("budget" if len(authors(chunks)) < LENGTH else None)


@pytest.mark.parametrize("start", ["small", "large"])
async def test_no_money_for_the_only_one_left_is_no_empty_answer(start: str) -> None:
    """The prompt and one token of the large model cost 70, and nothing was written before."""
    fake = failing(small=[(0, DOWN)] * 9)
    order = Order(call(), options={"start": start}, usd=usd(60))
    with pytest.raises(Unaffordable):
        await read(asked(fake, order))


async def test_no_money_for_the_only_one_left_in_mid_answer_ends_it() -> None:
    fake = failing(small=[(3, GONE)])
    chunks = await read(asked(fake, Order(call(), usd=usd(60))))
    assert authors(chunks) == "sss"
    assert (chunks[-1].finish, chunks[-1].reason) == ("length", "budget")


@dataclass
class Stopping(Fake):
    """Stops as our plugin does: before it has drawn the token at which the mean crosses."""

    reports: bool = True

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        """One chunk later than it could: only then is it known whether it is the last one."""
        held: Chunk | None = None
        async with aclosing(super().generate(call)) as stream:
            async for chunk in stream:
                if chunk.finish == "entropy" and call.decoding.stop is not None:
                    assert held is not None
                    self.note(held)
                    bits = self.bits[-call.decoding.stop.window :]
                    yield replace(chunk, mean=sum(bits) / len(bits))
                    return
                if held is not None:
                    self.note(held)
                    yield held if self.reports else blind(held)
                held = chunk
        if held is not None:
            yield held

    def note(self, chunk: Chunk) -> None:
        for token in chunk.tokens:
            assert token.entropy is not None
            self.bits.append(token.entropy[0])

    def __post_init__(self) -> None:
        self.bits: list[float] = []


def blind(chunk: Chunk) -> Chunk:
    return replace(chunk, tokens=tuple(replace(t, entropy=None) for t in chunk.tokens))


@pytest.mark.parametrize("reports", [True, False])
async def test_an_engine_may_stop_before_the_token_and_say_the_mean(reports: bool) -> None:
    """As the same engine would switch that reports the token: at 13, for a mean of 2.4."""
    scripts = engine([0.0] * 10 + [3.0] * 30, [9.0] * LENGTH).scripts
    answer = asked(Stopping(scripts, reports=reports), Order(call()))
    chunks = await read(answer)
    assert authors(chunks) == "s" * 13 + "l" * (LENGTH - 13)
    (decision,) = answer.decisions
    assert (decision.token, decision.threshold) == (13, 2.0)
    assert decision.entropy == pytest.approx(4 * 3.0 / 5)


@dataclass
class Vague(Fake):
    """Knows only bounds: the entropy may be 5 bits more."""

    def _token(self, call: Call, script: Script, position: int) -> Token:
        token = super()._token(call, script, position)
        if token.entropy is None:
            return token
        return replace(token, entropy=(token.entropy[0], token.entropy[0] + 5))

    def capabilities(self, model: str) -> Capabilities:
        return replace(super().capabilities(model), entropy="bounds", stop_on_entropy=False)


@pytest.mark.parametrize(("low", "switches"), [(1.9, 0), (2.1, 1)])
async def test_of_bounds_the_lower_one_counts(low: float, switches: int) -> None:
    scripts = engine([low] * LENGTH, [9.0] * LENGTH).scripts
    answer = asked(Vague(scripts), Order(call()))
    await read(answer)
    assert len(answer.decisions) == switches


async def test_a_model_with_less_room_leaves_the_rest_to_the_one_that_has_it() -> None:
    fake = engine(small=[9.0] * LENGTH)
    fake.scripts["large"] = replace(fake.scripts["large"], context=12)  # type: ignore[index]
    answer = asked(fake, Order(call(), options={"d_min": 5}))
    chunks = await read(answer)
    # The prompt's five words and seven more fill the large model's context.
    assert authors(chunks) == "s" * 5 + "l" * 2 + "s" * (LENGTH - 7)
    assert chunks[-1].finish == "stop"
    assert [decision.kind for decision in answer.decisions] == ["switch", "failover"]
