"""Who writes which token under entropy switching."""

from dataclasses import replace

import pytest

from app.engines.fake import Fake, Script
from app.errors import BadRequest, EngineError
from app.gateway import Gateway, Order
from app.types import Call
from tests.policies.scripts import LENGTH, ask, call, card, engine, fleet, price, read, text, usd

pytestmark = pytest.mark.parametrize("stops_by_itself", [True, False])


async def answered(fake: Fake, order: Order):
    answer = ask(Gateway(fake, fleet()), order)
    chunks = await read(answer)
    return text(chunks).split(), answer


def words(*runs: tuple[str, int, int]) -> list[str]:
    return [f"{who}{i}" for who, first, last in runs for i in range(first, last)]


async def test_small_writes_alone_while_it_is_sure(stops_by_itself):
    said, answer = await answered(engine(stop_on_entropy=stops_by_itself), Order(call()))
    assert said == words(("s", 0, LENGTH))
    assert answer.decisions == []


async def test_large_takes_over_at_the_token_where_the_mean_crosses(stops_by_itself):
    """Entropy 3 from token 10 on: of the window of 5 four must be high, at 13, which is discarded
    and written by the large model."""
    fake = engine([0.0] * 10 + [3.0] * 30, [9.0] * LENGTH, stop_on_entropy=stops_by_itself)
    said, answer = await answered(fake, Order(call()))
    assert said == words(("s", 0, 13), ("l", 13, LENGTH))
    (switch,) = answer.decisions
    assert (switch.token, switch.model, switch.kind) == (13, "large", "switch")
    assert switch.entropy == pytest.approx(4 * 3.0 / 5) and switch.threshold == 2.0


async def test_the_discarded_token_is_paid_for_and_not_shown(stops_by_itself):
    fake = engine([0.0] * 10 + [3.0] * 30, [9.0] * LENGTH, stop_on_entropy=stops_by_itself)
    _, answer = await answered(fake, Order(call()))
    small, large = answer.bill.lines
    assert (small.usage.completion, small.visible) == (14, 13)
    assert (large.usage.completion, large.visible) == (LENGTH - 13, LENGTH - 13)
    assert answer.bill.completion == LENGTH


async def test_catch_up_is_counted_as_what_the_other_wrote(stops_by_itself):
    fake = engine([0.0] * 10 + [3.0] * 30, [9.0] * LENGTH, stop_on_entropy=stops_by_itself)
    _, answer = await answered(fake, Order(call()))
    small, large = answer.bill.lines
    assert (small.usage.prompt, large.usage.prompt) == (5, 5 + 13)
    assert answer.bill.prompt == 5


async def test_goes_back_when_the_large_model_is_sure_after_d_min_tokens(stops_by_itself):
    fake = engine([3.0] * 20, [0.0] * LENGTH, stop_on_entropy=stops_by_itself)
    said, _ = await answered(fake, Order(call()))
    assert said == words(("s", 0, 10), ("l", 10, 20), ("s", 20, LENGTH))


async def test_no_two_switches_are_closer_than_d_min(stops_by_itself):
    fake = engine([9.0] * LENGTH, [0.0] * LENGTH, stop_on_entropy=stops_by_itself)
    _, answer = await answered(fake, Order(call()))
    assert [decision.token for decision in answer.decisions] == [10, 20, 30]


async def test_switch_at_switches_there_and_nowhere_else(stops_by_itself):
    fake = engine([9.0] * LENGTH, [0.0] * LENGTH, stop_on_entropy=stops_by_itself)
    order = Order(call(), policy="economy", options={"switch_at": [3, 7]})
    said, answer = await answered(fake, order)
    assert said == words(("s", 0, 3), ("l", 3, 7), ("s", 7, LENGTH))
    assert all(line.usage.completion == line.visible for line in answer.bill.lines)


async def test_max_tokens_bounds_the_whole_answer(stops_by_itself):
    fake = engine([3.0] * LENGTH, [9.0] * LENGTH, stop_on_entropy=stops_by_itself)
    for limit in (9, 10, 11, 25):
        said, _ = await answered(fake, Order(call(max_tokens=limit)))
        assert len(said) == limit


async def test_large_named_and_small_filled_in_with_the_cheapest_kin(stops_by_itself):
    fake = engine([3.0] * LENGTH, stop_on_entropy=stops_by_itself)
    _, answer = await answered(fake, Order(call("entropy_switch/large")))
    assert {line.model for line in answer.bill.lines} == {"small", "large"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"raise_at": "nan"}, "raise_at"),
        ({"raise_at": -1}, "raise_at"),
        ({"window": 11}, "window must not exceed d_min"),
        ({"switch_at": [7, 3]}, "switch_at must rise"),
        ({"small": "large"}, "nothing to switch to"),
        ({"small": "stranger", "switch_at": [7]}, "not of one family"),
    ],
)
def test_options_that_cannot_be_are_refused(options, complaint, stops_by_itself):
    catalog = fleet()
    strange = card("stranger", price(1, 1), family="other")
    catalog = replace(catalog, models={**catalog.models, "stranger": strange})
    order = Order(call(), policy="economy", options=options, policy_param="X-Policy")
    with pytest.raises(BadRequest, match=complaint):
        ask(Gateway(engine(), catalog), order)


async def test_goes_on_small_when_large_is_no_longer_affordable(stops_by_itself):
    """Large from the start; the money for 40 of its tokens is not there, for small's it is."""
    fake = engine(large=[9.0] * LENGTH, stop_on_entropy=stops_by_itself)
    options = {"start": "large"}
    order = Order(call(max_tokens=LENGTH), policy="economy", options=options, usd=usd(500))
    said, answer = await answered(fake, order)
    (steer,) = answer.decisions
    assert steer.kind == "steer" and steer.model == "small" and steer.token > 0
    assert said == words(("l", 0, steer.token), ("s", steer.token, LENGTH))
    assert answer.spent <= usd(500)


async def test_what_the_small_model_could_end_alone_is_not_cut_by_a_switch(stops_by_itself):
    """At 1.5 times what small alone costs and up, every answer is whole, and money is used."""
    shares = []
    for budget in range(130, 1500, 15):
        fake = engine([9.0] * LENGTH, [9.0] * LENGTH, stop_on_entropy=stops_by_itself)
        said, answer = await answered(fake, Order(call(max_tokens=LENGTH), usd=usd(budget)))
        assert len(said) == LENGTH, budget
        shares.append(sum(word[0] == "l" for word in said))
    assert shares[0] == 0 and shares[-1] == LENGTH - 10
    # Catch-up is not paid for a run that the money then ends at once.
    assert min(share for share in shares if share) >= 9


async def test_what_was_steered_to_the_small_model_stays_there(stops_by_itself):
    fake = engine([9.0] * LENGTH, [9.0] * LENGTH, stop_on_entropy=stops_by_itself)
    options = {"start": "large", "expected_tokens": 20}
    for budget in range(200, 900, 20):
        order = Order(call(), policy="economy", options=options, usd=usd(budget))
        _, answer = await answered(fake, order)
        kinds = [decision.kind for decision in answer.decisions]
        assert "steer" not in kinds[:-1]


async def test_a_budget_below_the_large_models_price_still_gets_a_whole_answer(stops_by_itself):
    fake = engine([3.0] * LENGTH, [9.0] * LENGTH, stop_on_entropy=stops_by_itself)
    order = Order(call(max_tokens=LENGTH), usd=usd(120))
    said, answer = await answered(fake, order)
    assert said == words(("s", 0, LENGTH))
    assert answer.spent <= usd(120)


async def test_raise_at_rises_as_the_money_runs_short(stops_by_itself):
    """The same uncertainty that switches with money does not with little of it."""
    unsure = [2.2] * LENGTH
    fake = engine(unsure, [9.0] * LENGTH, stop_on_entropy=stops_by_itself)
    rich, _ = await answered(fake, Order(call(max_tokens=LENGTH)))
    poor, _ = await answered(fake, Order(call(max_tokens=LENGTH), usd=usd(450)))
    assert rich == words(("s", 0, 10), ("l", 10, LENGTH))
    assert len([word for word in poor if word[0] == "l"]) < LENGTH - 10


async def test_an_error_of_both_engines_reaches_the_client_and_closes_both(stops_by_itself):
    scripts = {
        "small": Script(["s"] * 20, [3.0] * 20, fails_after=12, stop_on_entropy=stops_by_itself),
        "large": Script(["l"] * 40, fails_after=3, stop_on_entropy=stops_by_itself),
    }
    fake = Fake(scripts)
    with pytest.raises(EngineError, match="the script says: fail"):
        answer = ask(Gateway(fake, fleet()), Order(call(), options={"raise_at": "inf"}))
        await read(answer)
    assert fake.open == 0
    assert [(d.kind, d.model, d.token) for d in answer.decisions] == [("failover", "large", 12)]


@pytest.mark.parametrize(
    ("length", "context", "budget", "small", "large"),
    [
        (
            None,
            14,
            267,
            [6, 3, 3, 9, 6, 9, 3, 9, 9, 0.5, 6, 0.5, 6],
            [3, 0.1, 0.1, 0.1, 0.6, 0.1, 0.6, 0.6, 0.1, 3, 0.6, 3, 3],
        ),
        (
            16,
            4096,
            518,
            [3, 3, 6, 9, 0.5, 0.5, 0.5, 6, 9, 6, 3, 0.5, 0.5, 3, 6, 9, 6],
            [0.1, 3, 0.6, 3, 0.1, 0.6, 0.6, 0.6, 0.6, 0.6, 0.1, 3, 3, 3, 0.1, 0.1, 3],
        ),
    ],
    ids=["context", "max_tokens"],
)
async def test_an_engine_that_stops_on_entropy_at_the_last_token_ends_the_answer(
    length, context, budget, small, large, stops_by_itself
):
    """Its level had been paced up meanwhile, so that nobody takes over, and no token may follow."""
    scripts = {
        name: Script(
            [f"{name}{i}" for i in range(40)],
            bits,
            context=context,
            stop_on_entropy=stops_by_itself,
        )
        for name, bits in (("small", small), ("large", large))
    }
    message = {"role": "user", "content": "w w"}
    order = Order(
        Call("economy", (message,), max_tokens=length),
        options={"d_min": 5, "expected_tokens": 24},
        usd=usd(budget),
    )
    chunks = await read(ask(Gateway(Fake(scripts), fleet()), order))
    assert sum(len(chunk.tokens) for chunk in chunks) == (length or context - 2)
    assert (chunks[-1].finish, chunks[-1].reason) == ("length", None)
