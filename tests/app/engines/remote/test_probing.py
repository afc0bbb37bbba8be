"""What a server can do is found out by trying, since what it lists is not what it does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.engines.remote.entropy import MOST_VOCABULARY
from app.engines.remote.probing import Abilities, probe
from app.engines.remote.rendering import Renderer, Renderings
from app.errors import BadRequest, EngineError, EngineUnavailable, EngineUnsupported, FarthingError
from app.vllm_plugins import asks
from app.vllm_plugins.asks import Report, format_report
from tests.app.engines.remote.toy import END, ToyOrigin, choice, event, usage

BOS = 2  # <bos>, the reserved token of this server


@dataclass
class Server:
    """A vLLM server, as far as a probe looks at it."""

    most_logprobs: int = 20  # more are refused
    gives_logprobs: int = 20  # of more, none are given
    plugin: bool = True
    idle: bool = False  # it has the plugin, and speculates: nobody calls it
    reports: bool = True
    details: bool = True  # says what was cached
    caches: bool = True
    tells_vocabulary: bool = True
    tells_usage: bool = True
    ids: bool = True
    metrics: str = "vllm:num_requests_running 0\n"
    routes: dict[str, Any] = field(default_factory=dict)
    asked: list[Mapping[str, Any]] = field(default_factory=list)

    def tokenize(self, body: Mapping[str, Any]) -> Any:
        if "messages" in body:
            return {"tokens": [BOS, 3]}
        return {"tokens": [BOS] if body["prompt"] == "<bos>" else [0, 1, 3]}

    def origin(self) -> ToyOrigin:
        answers = {
            "/v1/models": {"data": [{"id": "served", "max_model_len": 2048}]},
            "/version": {"version": "0.32.0"},
            "/v1/chat/completions/render": BadRequest("403"),
            "/tokenize": self.tokenize,
            "/detokenize": lambda body: {"prompt": "<bos>"},
            "/metrics": self.metrics,
            asks.PREDICTS_PATH: EngineUnsupported("404"),
        }
        return ToyOrigin(answers={**answers, **self.routes}, serve=self.serve)

    def serve(self, body: Mapping[str, Any]) -> Iterable[bytes] | FarthingError:
        self.asked.append(body)
        xargs = body.get("vllm_xargs", {})
        if self.plugin and asks.HELLO in xargs:
            return BadRequest(f"{asks.MARKER} vllm=0.32.0")
        if (body.get("logprobs") or 0) > self.most_logprobs:
            return BadRequest("Requested sample logprobs is greater than max allowed")
        if "logit_bias" in body:
            words = "token_id out of vocab. Vocabulary size: 49152"
            return BadRequest(words if self.tells_vocabulary else "no")
        return self.stream(body, asks.CALL in xargs and not self.idle)

    def stream(self, body: Mapping[str, Any], watched: bool) -> Iterable[bytes]:
        cached = len(self.asked) > 3 and self.caches and len(body["prompt"]) > 100
        told = usage(len(body["prompt"]), 2, 144 * cached if self.details else None)
        wanted = body.get("logprobs")
        given = wanted is not None and wanted <= self.gives_logprobs
        scores = {"logprobs": {"tokens": ["a"]} if given else None}
        if watched and self.reports:
            yield format_report(Report(0, (1.0, 2.0), 2.0))
        ids = [1, END if not watched else body["vllm_xargs"][asks.STOP_ID]]
        ended = {"stop_reason": ids[1]} if watched else {}
        one = choice(ids if self.ids else (), "b", finish_reason="stop", **scores, **ended)
        yield event({"choices": [one]})
        yield event({"choices": [], **({"usage": told} if self.tells_usage else {})})
        yield event("[DONE]")


async def probed(server: Server) -> tuple[Abilities, Renderer]:
    origin = server.origin()
    renderer = Renderer(origin, "served", Renderings())  # type: ignore[arg-type]
    found = await probe(origin, "served", renderer)  # type: ignore[arg-type]
    assert not origin.open
    return found, renderer


async def test_all_that_a_server_can_do() -> None:
    found, renderer = await probed(Server())
    assert (found.version, found.context, found.vocabulary) == ("0.32.0", 2048, 49152)
    assert (found.top, found.counts_cached, found.caches) == (20, True, True)
    assert (found.sentinel, found.reports, found.speculates) == (BOS, True, False)
    assert not found.renders and not renderer.has_render
    assert renderer.separator == (BOS, "<bos>")


async def test_one_completion_is_asked_for_as_every_call_will_ask() -> None:
    server = Server()
    await probed(server)
    for body in server.asked:
        assert body["model"] == "served" and body["stream"]
        assert body["return_token_ids"] and body["return_tokens_as_token_ids"]
        assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.parametrize(("most", "top"), [(20, 20), (19, 5), (5, 5), (4, 1), (0, 0)])
async def test_as_many_logprobs_as_the_server_gives(most: int, top: int) -> None:
    for server in (Server(most_logprobs=most), Server(gives_logprobs=most)):
        found, _ = await probed(server)
        assert found.top == top


@pytest.mark.parametrize(
    ("server", "sentinel", "reports"),
    [
        (Server(plugin=False), None, False),
        (Server(idle=True), None, False),  # a server that speculates drops it in silence
        (Server(reports=False), BOS, False),
        (Server(), BOS, True),
    ],
)
async def test_the_plugin_must_be_seen_to_work(
    server: Server, sentinel: int | None, reports: bool
) -> None:
    found, _ = await probed(server)
    assert (found.sentinel, found.reports) == (sentinel, reports)


async def test_without_a_reserved_token_the_plugin_cannot_end_a_call() -> None:
    """What a chat begins with is a word here, and no usual name is one token."""
    routes = {"/detokenize": {"prompt": "Hello"}, "/tokenize": {"tokens": [0, 1, 3]}}
    found, renderer = await probed(Server(routes=routes))
    assert renderer.separator is None and found.sentinel is None


async def test_what_is_cached() -> None:
    found, _ = await probed(Server(details=False))
    assert (found.counts_cached, found.caches) == (False, False)
    found, _ = await probed(Server(caches=False))
    assert (found.counts_cached, found.caches) == (True, False)


async def test_a_vocabulary_that_stays_unknown_is_taken_for_a_large_one() -> None:
    found, _ = await probed(Server(tells_vocabulary=False))
    assert found.vocabulary == MOST_VOCABULARY


SPECULATES = "vllm:spec_decode_num_drafts_total 0\n"


@pytest.mark.parametrize("answer", [EngineUnsupported("404"), [], {"longest": "5"}])
async def test_a_server_that_speculates_as_vllm_does(answer: Any) -> None:
    routes = {asks.SPECULATES_PATH: answer}
    found, _ = await probed(Server(metrics=SPECULATES, routes=routes))
    assert found.speculates and found.speculation is None


async def test_a_server_that_speculates_by_request() -> None:
    said = asks.Speculating(longest=6, sampled=True, level=0.7)
    routes = {asks.SPECULATES_PATH: json.loads(said.to_json())}
    found, _ = await probed(Server(metrics=SPECULATES, routes=routes))
    assert found.speculates and found.speculation == said


@pytest.mark.parametrize("answer", [EngineUnsupported("404"), [], {"shares": {"layers-20": 0}}])
async def test_a_server_that_predicts_nothing(answer: Any) -> None:
    found, _ = await probed(Server(routes={asks.PREDICTS_PATH: answer}))
    assert found.prediction is None


async def test_a_server_that_predicts_by_request() -> None:
    said = asks.Predicting({"layers-20": 0.7})
    routes = {asks.PREDICTS_PATH: json.loads(said.to_json())}
    found, _ = await probed(Server(routes=routes))
    assert found.prediction == said


async def test_the_render_endpoint_and_a_version_that_is_not_told() -> None:
    routes = {
        "/v1/chat/completions/render": {"token_ids": [1]},
        "/version": EngineUnavailable("404"),
    }
    found, renderer = await probed(Server(routes=routes))
    assert found.renders and renderer.has_render and found.version == "unknown"


async def test_equal_tokenizers_have_equal_fingerprints() -> None:
    found, _ = await probed(Server())
    same, _ = await probed(Server(plugin=False))
    other, _ = await probed(Server(routes={"/tokenize": {"tokens": [1, 1, 3]}}))
    assert found.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize("server", [Server(ids=False), Server(tells_usage=False)])
async def test_without_ids_or_usage_it_cannot_serve(server: Server) -> None:
    with pytest.raises(EngineError, match="no token ids or no running usage"):
        await probed(server)


async def test_another_model_than_the_catalogs_is_named() -> None:
    models = {"data": [{"id": "a", "max_model_len": 1}, {"id": "b", "max_model_len": 1}]}
    with pytest.raises(EngineUnavailable, match="does not serve 'served', only a, b"):
        await probed(Server(routes={"/v1/models": models}))


async def test_a_refusal_within_a_stream_is_a_refusal() -> None:
    """vLLM checks some fields when status 200 has gone out already."""
    server = Server()
    plain = server.serve

    def serve(body: Mapping[str, Any]) -> Any:
        answer = plain(body)
        if isinstance(answer, FarthingError):
            return [event({"error": {"message": answer.message, "code": 400}})]
        return answer

    server.serve = serve  # type: ignore[method-assign]
    found, _ = await probed(server)
    assert (found.sentinel, found.vocabulary) == (BOS, 49152)
