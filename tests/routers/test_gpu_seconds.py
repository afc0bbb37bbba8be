"""Idealized accelerator time: told beside the USD by every shape of answer, and on record."""

import csv
import io
import json

import pytest
from sqlalchemy import select

from app.catalog import Catalog, GpuSeconds
from app.engines.fake import Script
from app.storage.tables import lines, settlements
from tests.conftest import LARGE, card, price
from tests.routers.reading import QUESTION, events

WORDS = len(LARGE.split())
TAKEN = GpuSeconds(input=4, cached_input=1, output=300)  # seconds per million tokens


@pytest.fixture
def catalog(catalog: Catalog) -> Catalog:
    """Only the large model says what it takes."""
    large = card("large", price("10", "1", "20"), gpu_seconds=TAKEN)
    return Catalog({**catalog.models, "large": large}, catalog.presets)


async def recorded(house, table, id):
    column = table.c.id if table is settlements else table.c.settlement_id
    query = select(table.c.gpu_us).where(column == id)
    return (await house.accounts.ledger.database.read(lambda c: c.execute(query).all()))[0][0]


def shown(usage):
    """What it took by model, and in all, for an answer of the large model."""
    details = usage["cost_details"]
    (line,) = details["models"].values()
    return {name: one["gpu_seconds"] for name, one in (("line", line), ("all", details))}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("/v1/chat/completions", {"messages": QUESTION}),
        ("/v1/completions", {"prompt": "why is the sky blue", "max_tokens": 100}),
        ("/v1/responses", {"input": "why is the sky blue"}),
        ("/v1/messages", {"messages": QUESTION, "max_tokens": 100}),
    ],
)
async def test_every_shape_tells_it(house, url, fields, stream):
    options = {"stream_options": {"include_usage": True}} if url.endswith("completions") else {}
    asked = {"model": "large", **fields, **(options | {"stream": True} if stream else {})}
    answer = await house.visitor.post(url, json=asked)
    assert answer.status_code == 200, answer.text
    if not stream:
        usage = answer.json()["usage"]
    elif options:
        usage = events(answer.text)[-1]["usage"]
    else:
        usage = last_usage(answer.text)
    took = (5 * 4 + WORDS * 300) / 10**6
    assert shown(usage) == {"line": took, "all": took}


def last_usage(text):
    """Of a stream of typed events: with its last response, or with the delta that ends it."""
    found = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
    usages = [(one.get("response") or one).get("usage") for one in found]
    return [usage for usage in usages if usage][-1]


async def test_a_vector_s_prompt_takes_its_time(house, fake):
    fake.scripts = {"large": Script(["a"], vector=[1.0, 0.0])}
    body = {"model": "large", "input": "why is the sky blue"}
    answer = await house.visitor.post("/v1/embeddings", json=body)
    assert shown(answer.json()["usage"]) == {"line": 20e-6, "all": 20e-6}


async def test_the_ledger_keeps_what_the_client_was_told(house):
    answers = [(await house.ask(model="large")).json() for _ in range(2)]
    for answer, cached in zip(answers, (0, 4), strict=True):
        us = round(answer["usage"]["cost_details"]["gpu_seconds"] * 10**6)
        assert us == (5 - cached) * 4 + cached * 1 + WORDS * 300
        assert await recorded(house, settlements, answer["id"]) == us
        assert await recorded(house, lines, answer["id"]) == us
    counted = (await house.visitor.get("/metrics")).text
    told = sum(answer["usage"]["cost_details"]["gpu_seconds"] for answer in answers)
    labels = 'model="large",policy="direct",preset="none"'
    (line,) = [x for x in counted.splitlines() if x.startswith("farthing_gpu_seconds_total{")]
    assert line.partition("{")[2].partition("}")[0] == labels
    assert float(line.split()[-1]) == pytest.approx(told, rel=1e-12)


async def test_where_one_model_does_not_say_the_sum_is_not_known(house):
    answer = (await house.ask(model="economy")).json()
    details = answer["usage"]["cost_details"]
    assert "gpu_seconds" not in details and "gpu_seconds" not in details["models"]["small"]
    assert details["models"]["large"]["gpu_seconds"] > 0
    assert await recorded(house, settlements, answer["id"]) is None


async def test_usage_adds_up_what_is_known(serve, ledger_url):
    house = await serve(ledger=ledger_url)
    token = await house.token()
    told = 0.0
    for model in ("large", "small", "economy"):
        models = (await house.ask(token, model)).json()["usage"]["cost_details"]["models"]
        told += models.get("large", {}).get("gpu_seconds", 0)
    body = (await house.get("/v1/usage?by=model", token)).json()
    rows = {row["model"]: row for row in body["data"]}
    assert rows["large"]["gpu_seconds"] == body["total"]["gpu_seconds"] == pytest.approx(told)
    assert "gpu_seconds" not in rows["small"]
    answer = await house.get("/v1/usage?by=model&format=csv", token)
    (_, *found) = csv.reader(io.StringIO(answer.text))
    assert {row[0]: row[-1] for row in found} == {"large": f"{told:.6f}", "small": ""}


async def test_the_list_of_models_says_it(house):
    models = (await house.get("/v1/models")).json()["data"]
    listed = {model["id"]: model["farthing"] for model in models}
    assert listed["large"]["gpu_seconds"] == {
        "per": "million tokens",
        "input": 4.0,
        "cached_input": 1.0,
        "output": 300.0,
        "drafted": 4.0,
        "predicted": 4.0,
    }
    assert "gpu_seconds" not in listed["small"]
