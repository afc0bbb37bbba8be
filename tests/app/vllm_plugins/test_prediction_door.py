"""The middleware says by which predictors prompts can be read, and refuses what would not be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from app.vllm_plugins import asks
from app.vllm_plugins.asks import Predicting
from app.vllm_plugins.door import PredictionDoor

STATE = Predicting({"layers-20": 0.7})
SALT = "kvp:x"


async def _echo(request: Request) -> JSONResponse:
    return JSONResponse({"length": len(await request.body())})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "prediction"
    path.write_text(STATE.to_json())
    return path


@pytest.fixture
async def http(path: Path) -> AsyncIterator[httpx.AsyncClient]:
    route = Route("/{rest:path}", _echo, methods=["GET", "POST"])
    transport = httpx.ASGITransport(PredictionDoor(Starlette(routes=[route]), str(path)))
    async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as client:
        yield client


async def test_it_says_what_there_is(http: httpx.AsyncClient, path: Path) -> None:
    answer = await http.get(asks.PREDICTS_PATH)
    assert (answer.status_code, Predicting.read(answer.json())) == (200, STATE)
    for text in ("{", "[]", '{"shares": {"a": 0}}', '{"shares": {"a": "1"}}', '{"shares": 3}'):
        path.write_text(text)
        assert (await http.get(asks.PREDICTS_PATH)).status_code == 404


def request(field: str, xargs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {field: xargs if field == "vllm_xargs" else {"extra_args": xargs}, **more}


@pytest.mark.parametrize("field", ["vllm_xargs", "sampling_params"])
@pytest.mark.parametrize(
    ("xargs", "salted", "why"),
    [
        ({asks.KV: "layers-20"}, {}, "cache_salt"),
        ({asks.KV: "layers-20"}, {"cache_salt": "theirs"}, "cache_salt"),
        ({asks.KV: "layers-20"}, {"cache_salt": ["kvp:x"]}, "cache_salt"),
        ({asks.KV: "layers-3"}, {"cache_salt": SALT}, "layers-20, exact"),
        ({asks.KV: "layers-20", asks.KV_LAST: 0}, {"cache_salt": SALT}, asks.KV_LAST),
        ({asks.KV_FIRST: 1}, {"cache_salt": SALT}, asks.KV),
    ],
    ids=str,
)
async def test_what_would_not_be_done_is_refused(
    http: httpx.AsyncClient, field: str, xargs: dict[str, Any], salted: Any, why: str
) -> None:
    answer = await http.post("/v1/completions", json=request(field, xargs, **salted))
    assert answer.status_code == 400
    assert why in answer.json()["error"]["message"]


async def test_where_there_is_no_prediction_none_is_passed_on(
    http: httpx.AsyncClient, path: Path
) -> None:
    path.unlink()
    asked = request("vllm_xargs", {asks.KV: "layers-20"}, cache_salt=SALT)
    assert (await http.post("/v1/completions", json=asked)).status_code == 400


@pytest.mark.parametrize("field", ["vllm_xargs", "sampling_params"])
async def test_the_rest_is_passed_on(http: httpx.AsyncClient, field: str) -> None:
    fine = {asks.KV: "layers-20", asks.KV_LAST: 9, asks.KV_FIRST: 2, asks.KV_CALL: "c", "other": 1}
    for body in (
        request(field, fine, cache_salt=SALT),
        request(field, {"other": 1}),
        {"prompt": "what is farthing_kv?"},
    ):
        answer = await http.post("/v1/completions", json=body)
        assert answer.json()["length"] > 10
