"""Verifiers as clients ask for them over HTTP: what is run for whom, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.catalog import Catalog
from app.engines.fake import Fake, Script
from app.factory import create_app
from app.sandbox import Limits, matching, python
from app.settings import Settings
from tests.routers.reading import asking


@pytest.fixture
def fake() -> Fake:
    variants = (Script(["x", "=", "1"]), Script(["x", "=", "2"]), Script(["x", "=", "3"]))
    return Fake({"large": Script(["x", "=", "0"], variants=variants), "small": Script(["No"])})


POLICIES: dict[str, dict[str, Any]] = {
    "best_of_n": {"n": 4, "together": 1, "choose": "verify"},
    "refine": {"check": "verify"},
}


async def sent(app: FastAPI, policy: str, stream: bool, **verifier: Any) -> httpx.Response:
    chosen = {"name": policy, **POLICIES[policy], "verifier": verifier}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://farthing") as client:
        body = asking("large", policy=chosen, stream=stream)
        return await client.post("/v1/chat/completions", json=body)


async def asked(
    settings: Settings,
    catalog: Catalog,
    fake: Fake,
    policy: str = "best_of_n",
    stream: bool = False,
    **verifier: Any,
) -> httpx.Response:
    app = create_app(settings, catalog=catalog, engine=fake)
    return await sent(app, policy, stream, **verifier)


async def test_code_is_run_where_the_operator_allows_it(
    settings: Settings, catalog: Catalog, fake: Fake
) -> None:
    allowing = replace(catalog, sandbox=Limits(seconds=5))
    given = await asked(settings, allowing, fake, kind="tests", tests="assert x == 2")
    assert given.status_code == 200, given.text
    assert given.json()["choices"][0]["message"]["content"].strip() == "x = 2"


async def test_and_nowhere_else(settings: Settings, catalog: Catalog, fake: Fake) -> None:
    given = await asked(settings, catalog, fake, kind="tests", tests="assert x == 2")
    error = given.json()["error"]
    assert (given.status_code, error["param"]) == (400, "policy")
    assert "[sandbox]" in error["message"] and fake.calls == []


@pytest.mark.parametrize(
    ("verifier", "why"),
    [
        ({"kind": "regex", "pattern": "(?=x)"}, "look-around"),
        ({"kind": "schema", "schema": {"type": "point"}}, "no JSON schema"),
        ({"kind": "schema", "schema": {"$schema": "http://127.0.0.1:1/x"}}, "json-schema.org"),
        ({"kind": "schema"}, "has `schema`"),
        ({"kind": "oracle"}, "'schema', 'regex', 'tests' or 'judge'"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_anything_is_asked(
    settings: Settings, catalog: Catalog, fake: Fake, verifier: dict[str, Any], why: str
) -> None:
    given = await asked(settings, catalog, fake, **verifier)
    error = given.json()["error"]
    assert (given.status_code, error["param"]) == (400, "policy")
    assert why in error["message"] and "verifier" in error["message"] and fake.calls == []


async def test_a_judge_that_there_is_not(settings: Settings, catalog: Catalog, fake: Fake) -> None:
    given = await asked(settings, catalog, fake, kind="judge", judge="nobody")
    assert given.status_code == 404 and fake.calls == []


async def test_a_judge_is_paid_for(settings: Settings, catalog: Catalog, fake: Fake) -> None:
    given = await asked(settings, catalog, fake, kind="judge", judge="small")
    models = given.json()["usage"]["cost_details"]["models"]
    assert given.status_code == 200
    assert models["small"]["completion_tokens"] == 4 and models["small"]["prompt_tokens"] > 0


@pytest.mark.parametrize("policy", ["best_of_n", "refine"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"$ref": "http://127.0.0.1:1/x.json"}, "disabled"),
        ({"properties": {"x": {"$ref": "#/$defs/none"}}}, "/$defs/none"),
    ],
)
async def test_a_schema_that_refers_to_nothing_is_refused_before_anything_is_spent(
    settings: Settings,
    catalog: Catalog,
    fake: Fake,
    policy: str,
    stream: bool,
    schema: dict[str, Any],
    why: str,
) -> None:
    verifier = {"kind": "schema", "schema": schema}
    given = await asked(settings, catalog, fake, policy, stream, **verifier)
    error = given.json()["error"]
    assert (given.status_code, error["param"]) == (400, "policy")
    assert why in error["message"] and "verifier: schema" in error["message"]
    assert fake.calls == []


@pytest.mark.parametrize("policy", ["best_of_n", "refine"])
@pytest.mark.parametrize(
    "verifier",
    [
        {"kind": "tests", "tests": "pass"},
        {"kind": "regex", "pattern": "x"},
        {"kind": "schema", "schema": {}},
    ],
)
async def test_where_no_verifier_can_be_started_nothing_is_spent(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    catalog: Catalog,
    fake: Fake,
    policy: str,
    verifier: dict[str, Any],
) -> None:
    monkeypatch.setattr(matching, "_MATCHER", ("/nonexistent",))
    allowing = replace(catalog, sandbox=Limits())
    app = create_app(settings, catalog=allowing, engine=fake)
    monkeypatch.setattr(python, "_INSIDE", ("/nonexistent",))  # it has gone since the start
    given = await sent(app, policy, False, **verifier)
    assert (given.status_code, given.json()["error"]["code"]) == (503, "sandbox_unavailable")
    assert fake.calls == []
