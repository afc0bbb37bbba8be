"""Vectors by servers: what they are asked for, and what is made of their answers."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest

from app.engines.remote.origin import UNTOLD
from app.engines.remote.probing import probe_vectors
from app.errors import BadRequest, EngineError, EngineUnsupported
from app.types import Call, Chunk, Decoding, Usage
from tests.app.engines import test_upstream, test_vllm
from tests.app.engines.remote.toy import ToyOrigin, collected

VECTORS = {"data": [{"index": 0, "embedding": [0.1]}, {"index": 1, "embedding": [0.2]}]}
SERVERS = {
    "vllm": lambda: test_vllm.server(test_vllm.PLAIN, embeds="only"),
    "openai": lambda: test_upstream.server("llamacpp"),
}


def call(**fields: Any) -> Call:
    body = {"model": "ours", "input": ["a", "b"], "dimensions": 4}
    given = {"prompt": "a", "beside": ("b",), "max_tokens": 0, "embeds": True, "whole": True}
    return Call("m", choices=2, body=body, decoding=Decoding(native=True), **{**given, **fields})


async def asked(server: str, answer: Any, **fields: Any) -> tuple[list[Chunk], ToyOrigin]:
    one, origin = SERVERS[server]()
    origin.serve = None
    origin.plays = deque([[json.dumps(answer).encode()]])
    return await collected(one.generate(call(**fields))), origin


@pytest.mark.parametrize("server", SERVERS)
async def test_the_clients_body_goes_through_and_the_answer_comes_back(server: str) -> None:
    answer = {**VECTORS, "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    chunks, origin = await asked(server, answer)
    (request,) = [each for each in origin.asked if each.path == "/v1/embeddings"]
    served = "served" if server == "vllm" else "theirs"
    assert request.body == {"model": served, "input": ["a", "b"], "dimensions": 4}
    assert json.loads(chunks[-1].raw or b"") == answer
    assert (chunks[-1].usage, chunks[-1].finish) == (Usage(prompt=7), "stop")


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "many"}, {"prompt_tokens": 0}])
async def test_who_tells_no_usage_is_paid_what_was_counted(usage: Any) -> None:
    chunks, _ = await asked("vllm", {**VECTORS, "usage": usage})
    assert chunks[-1].usage == Usage(prompt=UNTOLD)


@pytest.mark.parametrize(
    "answer", [{}, [], None, {"data": None}, {"data": []}, {"data": [{}] * 3}, {"error": "x"}]
)
async def test_an_answer_without_a_vector_for_each_is_the_engines_fault(answer: Any) -> None:
    with pytest.raises(EngineError):
        await asked("vllm", answer)


async def test_a_server_that_embeds_writes_nothing_and_the_reverse() -> None:
    with pytest.raises(EngineUnsupported) as refusal:
        await asked("vllm", VECTORS, embeds=False)
    assert refusal.value.param == "model"
    one, _ = test_vllm.server()
    with pytest.raises(EngineUnsupported):
        await collected(one.generate(call()))
    assert not one.capabilities("m").embeds


async def test_a_probe_of_a_server_that_only_embeds_is_one_vector() -> None:
    one, origin = test_vllm.server(None, embeds="only")
    origin.answers |= {
        "/v1/models": {"data": [{"id": "served", "max_model_len": 512}]},
        "/v1/embeddings": {"data": [{}]},
        "/version": {"version": "0.32.0"},
    }
    await one.probe()
    able = one.capabilities("m")
    assert (able.context, able.embeds, able.entropy) == (512, True, None)
    assert not [path for path in origin.paths() if "completions" in path]
    origin.answers["/v1/embeddings"] = {"data": []}
    with pytest.raises(EngineError):
        await probe_vectors(origin, "served", one._renderer)  # type: ignore[arg-type]


async def test_so_is_the_probe_of_another_server_whose_card_says_so() -> None:
    one, origin = test_upstream.server("llamacpp", embeds="only")
    origin.answers = {"/v1/embeddings": {"data": [{}]}}
    await one.probe()
    assert one.load("m").healthy
    assert origin.paths() == ["/v1/embeddings"]
    origin.answers = {"/v1/embeddings": BadRequest("no")}
    with pytest.raises(BadRequest):
        await one.probe()
