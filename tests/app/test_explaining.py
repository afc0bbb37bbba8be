"""What an explanation holds: what was weighed, and not a word of what was said."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.budget import Purse
from app.catalog import Catalog, GpuSeconds
from app.engines.fake import Fake, Script
from app.errors import FarthingError
from app.explaining import explained
from app.gateway import Answer, Gateway
from app.orders import Order
from app.trail import Attempt
from app.types import Alternative, Call, Chunk, Goals, Sampling
from tests.policies.scripts import LENGTH, call, engine, fleet, price, read, usd
from tests.policies.test_kv_prediction import KV, order, predicting

TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}
_word = st.from_regex(r"zq[a-z0-9]{12,24}", fullmatch=True)


async def told(fake: Fake, asked: Order, catalog: Catalog | None = None) -> dict[str, Any]:
    answer = Gateway(fake, catalog or fleet()).answer(asked, Purse())
    await read(answer)
    return of(answer)


def of(answer: Answer, outcome: str = "kept") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(explained(answer, answer.bill, outcome))
    return document


def named(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {way["name"]: way for way in document["alternatives"]}


async def test_where_one_model_answers_alone_it_says_what_the_budget_bought_of_each() -> None:
    asked = Order(call(extra=TOOLS, max_tokens=LENGTH), usd=usd(400))
    document = await told(engine(native=True), asked)
    assert document["plan"]["whole"] and document["request"]["structured"]
    ways = named(document)
    assert list(ways) == ["economy", "small", "large"] or list(ways) == [
        "economy",
        "large",
        "small",
    ]
    large, small = ways["large"], ways["small"]
    assert (large["chosen"], large["fits"], large["usd"]) == (False, False, 0.00085)
    assert (small["chosen"], small["fits"], small["usd"]) == (True, True, 0.000085)
    assert (large["tokens"], small["tokens"]) == (18, 198)
    assert large["reason"] == "small was asked first, and did not fail"
    (decided,) = document["decisions"]
    assert (decided["kind"], decided["model"]) == ("whole", "small")


async def test_one_that_failed_first_says_so_and_without_a_budget_nothing_has_to_fit() -> None:
    fake = engine(native=True)
    fake.scripts["large"] = Script(["x"], native=True, fails_after=0)  # type: ignore[index]  # a dict
    document = await told(fake, Order(call(extra=TOOLS, max_tokens=LENGTH)))
    ways = named(document)
    assert ways["large"]["reason"] == "it failed before its first word (EngineError)"
    assert ways["small"]["chosen"] and "fits" not in ways["small"] and "tokens" not in ways["small"]
    assert [(each["model"], each["outcome"]) for each in document["calls"]] == [
        ("large", "failed"),
        ("small", "ok"),
    ]


async def test_how_a_prompt_is_read_stands_with_when_the_answer_would_begin() -> None:
    goals = Goals(first_token=time.monotonic() + 16.0)  # exactly 20 s, by 20 layers 14.6, by 8 7.4
    document = await told(predicting(reading=0.1), order(goals=goals))
    ways = named(document)
    exact, chosen = ways["exact"], ways["layers-20"]
    assert (exact["kind"], exact["chosen"], exact["fits"]) == ("reading", False, False)
    assert exact["first_token_s"] == 20.0
    assert (chosen["chosen"], chosen["fits"]) == (True, True)
    assert 14.6 < chosen["first_token_s"] <= 16.0
    assert "layers-8" not in ways  # nobody had to look at it
    assert document["decisions"][0]["kind"] == "predict"
    assert document["decisions"][0]["saves_s"] > 0


async def test_too_late_any_way_the_quickest_is_taken_and_too_early_the_exact_one() -> None:
    goals = Goals(first_token=time.monotonic() + 1.0)
    ways = named(await told(predicting(reading=0.1), order(goals=goals)))
    read_by = {name: way["fits"] for name, way in ways.items() if way["kind"] == "reading"}
    assert read_by == dict.fromkeys(("exact", "layers-20", "layers-8"), False)
    assert [name for name, way in ways.items() if way["chosen"]] == ["kv_prediction", "layers-8"]
    goals = Goals(first_token=time.monotonic() + 60.0)
    ways = named(await told(predicting(reading=0.1), order(goals=goals)))
    assert ways["exact"]["chosen"] and ways["exact"]["fits"] and "layers-20" not in ways
    ways = named(await told(predicting(), order(prompt=99)))
    assert ways["exact"]["chosen"] and "below 100" in ways["exact"]["reason"]


async def test_gpu_seconds_count_towards_what_fits() -> None:
    taken = GpuSeconds(input=10, output=1000)
    models = {
        name: card.model_copy(update={"gpu_seconds": taken})
        for name, card in fleet().models.items()
    }
    catalog = Catalog(models, dict(fleet().presets))
    asked = Order(call(max_tokens=10), gpu=9_000 * 10**6, usd=usd(10_000))
    document = await told(engine(), asked, catalog)
    bound = document["estimate"]["budget_gpu_seconds"]
    assert 0.0089 < bound <= 0.009 < document["estimate"]["worst_gpu_seconds"]
    assert [way["fits"] for way in document["alternatives"]] == [False] * 3
    asked = Order(call(max_tokens=10), gpu=10**12, usd=usd(10_000))
    document = await told(engine(), asked, catalog)
    assert [way["fits"] for way in document["alternatives"]] == [True] * 3


async def test_what_a_policy_of_tomorrow_weighs_is_shown_with_its_estimates() -> None:
    answer = Gateway(engine(), fleet()).answer(Order(call("economy", max_tokens=3)), Purse())
    await read(answer)
    way = Alternative(
        "preset", "thrifty", False, "its quality is below 0.9",
        cost=usd(12), fits=True, first_token=0.2, latency=1.25, quality=0.83,
    )  # fmt: skip
    answer.notes.note(Chunk(considered=(way,)))
    assert of(answer)["alternatives"][-1] == {
        "kind": "preset",
        "name": "thrifty",
        "chosen": False,
        "reason": "its quality is below 0.9",
        "usd": 0.000012,
        "fits": True,
        "first_token_s": 0.2,
        "latency_s": 1.25,
        "quality": 0.83,
    }


async def test_all_choices_of_a_prompt_read_it_once_where_the_engine_makes_them_itself() -> None:
    for native, prompts in ((True, 1), (False, 3)):
        fake = engine(native=native)
        document = await told(fake, Order(call("economy", choices=3, max_tokens=10)))
        alone = named(document)["large"]["usd"]
        assert alone == (prompts * 5 * 10 + 3 * 10 * 20) / 10**6


async def test_who_had_a_part_is_named_with_our_words_and_never_with_a_server_s() -> None:
    answer = Gateway(engine(), fleet()).answer(Order(call("small")), Purse())
    await read(answer)
    answer.calls[0].attempts += [
        Attempt("a:8000", "failed", time.monotonic(), "The engine of small broke off"),
        Attempt("b:8000", "refused", time.monotonic(), "'zqsecret' is not a valid role"),
        Attempt("c:8000", "ok", time.monotonic()),
    ]
    attempts = of(answer)["calls"][0]["attempts"]
    assert [(each["server"], each["outcome"], each.get("error")) for each in attempts] == [
        ("a:8000", "failed", "The engine of small broke off"),
        ("b:8000", "refused", None),
        ("c:8000", "ok", None),
    ]


@settings(max_examples=60)
@given(data=st.data())
def test_nothing_of_what_was_said_is_in_it(data: st.DataObject) -> None:
    """Words of prompts, answers, tools, stop strings and options, however the answer ended."""
    said = data.draw(st.lists(_word, min_size=9, max_size=9, unique=True))
    system, prompt, stop, tool, schema, user, conversation, before, body = said
    words = data.draw(st.lists(_word, min_size=1, max_size=20))
    model, policy = data.draw(
        st.sampled_from(
            [
                ("small", "direct"),
                ("economy", None),
                ("large", "speculative"),
                ("large", "kv_prediction"),
                ("large", "entropy_switch"),
            ]
        )
    )
    chat = ({"role": "system", "content": system}, {"role": "user", "content": prompt})
    function = {"name": tool, "parameters": {"properties": {schema: {"type": "string"}}}}
    extra = {"user": user, "tools": [{"type": "function", "function": function}]}
    asked = Call(
        model,
        () if data.draw(st.booleans()) else chat,
        prompt=None,
        said=before,
        sampling=Sampling(stop=(stop,), logprobs=data.draw(st.sampled_from([None, 2]))),
        max_tokens=data.draw(st.integers(1, 30)),
        extra=extra if data.draw(st.booleans()) else {"user": user},
        body={"messages": body},
    )
    options = {"conversation": conversation} if policy == "kv_prediction" else {}
    fake = Fake(
        {
            name: Script(
                words,
                data.draw(st.lists(st.sampled_from([0.1, 9.0]), max_size=20)),
                fails_after=data.draw(st.sampled_from([None, 0, 3])),
                native=data.draw(st.booleans()),
                structured=data.draw(st.booleans()),
                predictors=KV,
            )
            for name in ("small", "large")
        }
    )
    budget = data.draw(st.sampled_from([None, usd(20), usd(10_000)]))
    strict = data.draw(st.booleans())
    order = Order(asked, policy=policy, options=options, usd=budget, strict=strict)

    async def document() -> str:
        answer = Gateway(fake, fleet(price(1, 2), price(10, 20))).answer(order, Purse())
        with suppress(FarthingError):
            async for _ in answer:
                if data.draw(st.integers(0, 9)) == 0:
                    break
        await answer.aclose()
        return explained(answer, answer.bill, "kept")

    text = asyncio.run(document())
    assert json.loads(text)["request"]["model"] == model
    assert text.isascii() and [word for word in (*said, *words) if word in text] == []
