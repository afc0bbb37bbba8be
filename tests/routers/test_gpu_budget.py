"""X-Budget-Gpu-Seconds: kept exactly, beside a budget in USD, by models that say what they take."""

import pytest

from app.catalog import Catalog, GpuSeconds
from app.engines.fake import Script
from tests.conftest import LARGE
from tests.routers.reading import QUESTION, asking, events
from tests.routers.test_bad_input import refused

HEADER = "X-Budget-Gpu-Seconds"
WORDS = len(LARGE.split())
TAKEN = {
    "small": GpuSeconds(input=1, output=30),  # seconds per million tokens: microseconds of one
    "large": GpuSeconds(input=4, cached_input=4, output=300),
}


@pytest.fixture
def catalog(catalog: Catalog) -> Catalog:
    models = {
        name: card.model_copy(update={"gpu_seconds": TAKEN[name]})
        for name, card in catalog.models.items()
    }
    return Catalog(models, catalog.presets)


def budget(us, **more):
    return {HEADER: f"{us / 10**6:.6f}", **more}


def us(usage):
    return round(usage["cost_details"]["gpu_seconds"] * 10**6)


@pytest.mark.parametrize(("spare", "written"), [(0, 7), (299, 7), (300, 8), (-1, 6)])
async def test_an_answer_is_cut_where_the_next_token_would_pass_it(house, spare, written):
    answer = (await house.ask(model="large", headers=budget(5 * 4 + 7 * 300 + spare))).json()
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["finish_details"]) == ("length", {"reason": "budget"})
    assert answer["usage"]["completion_tokens"] == written
    assert us(answer["usage"]) == 5 * 4 + written * 300


async def test_one_that_is_large_enough_changes_nothing(house):
    free, bounded = [
        (await house.ask(model="large", headers=headers)).json()
        for headers in ({}, budget(5 * 4 + WORDS * 300))
    ]
    assert bounded["choices"] == free["choices"]
    assert us(bounded["usage"]) == 5 * 4 + WORDS * 300


@pytest.mark.parametrize(
    ("usd", "written"),
    # The prompt costs 50 millionths of a USD, a token 20.
    [("0.00011", 3), ("0.001", 7), ("0.00019", 7), ("0.000189", 6)],
)
async def test_of_two_bounds_the_nearer_one_counts(house, usd, written):
    headers = budget(5 * 4 + 7 * 300, **{"X-Budget-Usd": usd})
    usage = (await house.ask(model="large", headers=headers)).json()["usage"]
    assert usage["completion_tokens"] == written
    assert us(usage) <= 5 * 4 + 7 * 300 and usage["cost"] <= float(usd)


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("/v1/chat/completions", {"messages": QUESTION}),
        ("/v1/completions", {"prompt": "why is the sky blue"}),
        ("/v1/responses", {"input": "why is the sky blue"}),
        ("/v1/messages", {"messages": QUESTION, "max_tokens": 100}),
    ],
)
async def test_the_body_may_say_it_in_every_shape(house, url, fields):
    body = {"model": "large", **fields, "budget": {"gpu_seconds": "0.00062"}}
    usage = (await house.visitor.post(url, json=body)).json()["usage"]
    assert us(usage) == 20 + 2 * 300


async def test_a_prompt_that_it_does_not_pay_for_is_refused_by_its_name(house, fake):
    for headers in (budget(5 * 4 + 299), budget(0), {HEADER: "1e-13"}):
        refused(await house.ask(model="large", headers=headers), 402, HEADER, "budget_exceeded")
    assert fake.produced == {}


async def test_strict_refuses_what_might_not_fit(house, fake):
    most = 5 * 4 + 10 * 300
    for short, status in ((1, 402), (0, 200)):
        headers = budget(most - short, **{"X-Budget-Fallback": "strict"})
        answer = await house.ask(model="large", headers=headers, max_tokens=10)
        assert answer.status_code == status
        if status == 402:
            refused(answer, 402, HEADER, "budget_exceeded")
            assert "0.003020000 accelerator-seconds" in answer.json()["error"]["message"]
            assert fake.produced == {}


async def test_a_preset_steers_to_the_model_that_takes_less(house):
    """Its small model writes from where the large one is no longer paid for."""
    free = (await house.ask(model="economy")).json()
    assert free["farthing"]["models"]["large"] > 0
    most = us(free["usage"]) - 600
    headers = budget(most, **{"X-Debug": "1"})
    answer = (await house.ask(model="economy", headers=headers)).json()
    assert us(answer["usage"]) <= most
    assert answer["farthing"]["models"] != free["farthing"]["models"]
    assert answer["farthing"]["models"]["small"] > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices_share_it_fairly(house, stream):
    most = 3 * (5 * 4 + 4 * 300)
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = await house.ask(model="large", headers=budget(most), n=3, **more)
    documents = events(answer.text) if stream else [answer.json()]
    usage = documents[-1]["usage"]
    assert usage["completion_tokens"] == 12 and us(usage) == most
    ends = [c for d in documents for c in d["choices"] if c.get("finish_reason")]
    assert [end["finish_details"] for end in ends] == [{"reason": "budget"}] * 3


async def test_too_little_for_every_choice_is_refused(house):
    headers = budget(3 * (5 * 4 + 300) - 1)
    refused(await house.ask(model="large", headers=headers, n=3), 402, HEADER, "budget_exceeded")


@pytest.mark.parametrize("model", ["small", "economy", "entropy_switch/large"])
async def test_a_model_that_does_not_say_what_it_takes_is_400(serve, catalog, model):
    catalog.models["small"] = catalog.models["small"].model_copy(update={"gpu_seconds": None})
    house = await serve()
    answer = await house.ask(model=model, headers=budget(10**6))
    refused(answer, 400, HEADER)
    assert "small" in answer.json()["error"]["message"]
    assert (await house.ask(model="large", headers=budget(10**6))).status_code == 200


async def test_a_header_that_is_sent_twice_is_400(house):
    headers = [(HEADER, "1"), (HEADER, "2")]
    answer = await house.visitor.post("/v1/chat/completions", json=asking(), headers=headers)
    refused(answer, 400, HEADER)


async def test_a_vector_and_a_prompt_s_own_probabilities_are_paid_for_too(house, fake):
    fake.scripts = {"large": Script(["a", "b"], vector=[1.0, 0.0])}
    body = {"model": "large", "input": "why is the sky blue"}
    scored = {"model": "large", "prompt": "why is the sky blue", "echo": True, "logprobs": 1}
    for url, asked, least in (
        ("/v1/embeddings", body, 20),
        ("/v1/completions", {**scored, "max_tokens": 0}, 20),
        ("/v1/completions", {**scored, "max_tokens": 1}, 20 + 20 + 300),
    ):
        strict = {"X-Budget-Fallback": "strict"}
        answer = await house.visitor.post(url, json=asked, headers=budget(least, **strict))
        assert answer.status_code == 200, answer.text
        assert us(answer.json()["usage"]) == least
        answer = await house.visitor.post(url, json=asked, headers=budget(least - 1, **strict))
        refused(answer, 402, HEADER, "budget_exceeded")
