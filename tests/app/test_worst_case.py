"""What is held for a request that names no budget is enough: it changes nothing of the answer."""

import asyncio
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from app.budget import Purse
from app.engines.fake import Fake, Script
from app.gateway import Gateway, Order
from app.types import Call
from tests.policies.scripts import SPECULATES, fleet, price, read


@dataclass
class Held:
    amount: int

    async def settle(self, receipt):
        pass


@dataclass
class Rich(Purse):
    """Holds far more than any answer costs."""

    async def reserve(self, wanted):
        return Held(10**30)


def answered(gateway, order, account):
    """The tokens, who wrote them, how it ended, and what it cost, beside the estimate."""

    async def run():
        answer = gateway.answer(order, account)
        chunks = await read(answer)
        tokens = [(chunk.model, token.id) for chunk in chunks for token in chunk.tokens]
        decided = [replace(decision, rest_usd=None) for decision in answer.decisions]
        ending = (chunks[-1].finish, chunks[-1].reason)
        return (tokens, decided, ending, answer.spent), answer.estimate

    return asyncio.run(run())


bits = st.lists(st.floats(0, 6), max_size=80)
dollars = st.decimals(min_value=0, max_value=100, places=6)


@st.composite
def prices(draw):
    """Of a small and a large model; a token of the large one costs at least as much."""
    low, high = sorted((draw(dollars), draw(dollars)))
    guess = st.none() | dollars
    return price(draw(dollars), low, None, draw(guess)), price(
        draw(dollars), high, None, draw(guess)
    )


@settings(max_examples=300)
@given(
    prices=prices(),
    entropies=st.tuples(bits, bits),
    words=st.integers(1, 60),
    length=st.integers(1, 80),
    room=st.integers(1, 120),
    max_tokens=st.none() | st.integers(1, 80),
    model=st.sampled_from(["economy", "small", "large", "speculative/large"]),
    start=st.sampled_from(["small", "large"]),
    window=st.integers(1, 5),
    d_min=st.integers(5, 12),
    stops_by_itself=st.booleans(),
    guesses=st.lists(st.integers(0, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))),
)
def test_the_worst_case_is_never_felt(
    prices, entropies, words, length, room, max_tokens, model, start, window, d_min,
    stops_by_itself, guesses,
):  # fmt: skip
    scripts = {
        name: Script(
            [f"{name}{i}" for i in range(length)],
            each,
            context=words + room,
            stop_on_entropy=stops_by_itself,
            speculates=SPECULATES,
            guesses=guesses,
        )
        for name, each in zip(("small", "large"), entropies, strict=True)
    }
    message = {"role": "user", "content": "word " * words}
    options = {"start": start, "window": window, "d_min": d_min} if model == "economy" else {}
    order = Order(Call(model, (message,), max_tokens=max_tokens), options=options)
    gateways = [Gateway(Fake(scripts), fleet(*prices)) for _ in range(2)]
    bounded, estimate = answered(gateways[0], order, Purse())
    free, _ = answered(gateways[1], order, Rich())
    assert bounded == free
    assert bounded[-1] <= estimate
