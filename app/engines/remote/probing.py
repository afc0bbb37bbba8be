"""What a vLLM server can do, found out by trying: a list of routes promises more than it keeps."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.engines.remote.entropy import MOST_VOCABULARY
from app.engines.remote.events import Events, payload
from app.engines.remote.origin import Arrivals, Origin, refusal_in_stream
from app.engines.remote.rendering import Renderer
from app.errors import BadRequest, EngineError, EngineUnavailable, FarthingError
from app.vllm_plugins import asks

_TOPS = (100, 20, 5, 1, 0)  # numbers of likeliest tokens to try, most first
_LONG = 160  # tokens of a prompt that fills a block of any usual prefix cache
_RESERVED = ("<|im_start|>", "<|begin_of_text|>", "<bos>", "<s>")
# Of a token that ends answers the plugin would make one that never comes.
_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "</s>", "<eos>")
_VOCABULARY = re.compile(r"[Vv]ocabulary size: (\d+)")
_SPECULATES = "vllm:spec_decode_num_drafts"
_SAMPLE = (
    "The quick brown fox, 3.14159 + ½ = 42; naïve café, Ελληνικά, Русский, 日本語, العربية,"
    " 😀👩‍🚀\n\tdef f(x):\n\t\treturn x ** 2  # done"
)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What one server can do."""

    version: str
    context: int  # tokens, prompt and answer together
    vocabulary: int  # ids; an upper bound where the server does not tell
    renders: bool  # has the scale-out endpoints
    top: int  # likeliest tokens with their logprobs, at most
    counts_cached: bool  # says how much of a prompt was cached
    caches: bool  # and did cache one
    times: bool  # reports times of single requests
    speculates: bool
    sentinel: int | None  # the reserved id by which our plugin ends a call; None: no plugin
    reports: bool  # our plugin's entropies come back in the stream
    fingerprint: str  # equal for equal tokenizers
    speculation: asks.Speculating | None = None  # by request, as our worker does it
    prediction: asks.Predicting | None = None  # of prompts by request, as our connector does it


@dataclass(frozen=True, slots=True)
class _Tried:
    """What came back from one short completion."""

    ids: list[int]
    usage: Mapping[str, Any]
    stop_reason: int | str | None
    reports: list[asks.Report]
    logprobs: bool
    times: bool


async def probe(origin: Origin, served: str, renderer: Renderer) -> Abilities:
    """Try it all out. Raises EngineError where the server cannot do what every call needs."""
    prober = _Prober(origin, served, renderer)
    context = await prober.context()
    renderer.has_render = await prober.has_render()
    ids = await renderer.encode(_SAMPLE, False)
    top = await prober.top(ids)
    long = (ids * (_LONG // max(len(ids), 1) + 1))[:_LONG]
    first = await prober.complete(long, logprobs=top or None)
    again = await prober.complete(long, logprobs=top or None)
    if not first.ids or not first.usage:
        raise EngineError("the server gives no token ids or no running usage")
    details = again.usage.get("prompt_tokens_details") or {}
    renderer.separator = await prober.reserved()
    sentinel, reports = await prober.plugin(ids)
    speculates = _SPECULATES in await origin.text("/metrics")
    return Abilities(
        version=await prober.version(),
        context=context,
        vocabulary=await prober.vocabulary(ids),
        renders=renderer.has_render,
        top=top,
        counts_cached="cached_tokens" in details,
        caches=bool(details.get("cached_tokens")),
        times=first.times,
        speculates=speculates,
        sentinel=sentinel,
        reports=reports,
        fingerprint=_fingerprint(ids),
        speculation=await prober.speculation() if speculates else None,
        prediction=await prober.prediction(),
    )


async def probe_vectors(origin: Origin, served: str, renderer: Renderer) -> Abilities:
    """As `probe`, of a server that embeds and writes nothing."""
    prober = _Prober(origin, served, renderer)
    context = await prober.context()
    ids = await renderer.encode(_SAMPLE, False)
    found = await origin.json("/v1/embeddings", {"model": served, "input": ids})
    if not isinstance(found, dict) or not found.get("data"):
        raise EngineError("the server embeds nothing")
    return Abilities(
        version=await prober.version(),
        context=context,
        vocabulary=MOST_VOCABULARY,
        renders=False,
        top=0,
        counts_cached=False,
        caches=False,
        times=False,
        speculates=False,
        sentinel=None,
        reports=False,
        fingerprint=_fingerprint(ids),
    )


@dataclass
class _Prober:
    origin: Origin
    served: str
    renderer: Renderer

    async def context(self) -> int:
        models = await self.origin.json("/v1/models")
        found = {model["id"]: model for model in models["data"]}
        if self.served not in found:
            names = ", ".join(found)
            raise EngineUnavailable(f"the server does not serve {self.served!r}, only {names}")
        return int(found[self.served]["max_model_len"])

    async def version(self) -> str:
        with suppress(FarthingError):
            return str((await self.origin.json("/version"))["version"])
        return "unknown"

    async def has_render(self) -> bool:
        messages = [{"role": "user", "content": "Hi"}]
        body = {"model": self.served, "messages": messages}
        with suppress(FarthingError):
            found = await self.origin.json("/v1/chat/completions/render", body)
            return bool(found.get("token_ids"))
        return False

    async def top(self, ids: list[int]) -> int:
        """How many of the likeliest tokens come along. Every server must do one completion."""
        for number in _TOPS:
            with suppress(BadRequest):
                tried = await self.complete(ids, logprobs=number)
                if tried.logprobs:
                    return number
        raise EngineError("the server completes nothing with logprobs")

    async def vocabulary(self, ids: list[int]) -> int:
        """The number of ids, which the server says when it refuses one beyond them."""
        try:
            await self.complete(ids, logit_bias={str(2**31 - 1): 1.0})
        except BadRequest as error:
            found = _VOCABULARY.search(error.message)
            if found is not None:
                return int(found[1])
        except EngineError:
            log.info("model %s: the size of the vocabulary stays unknown", self.origin.model)
        return MOST_VOCABULARY

    async def reserved(self) -> tuple[int, str] | None:
        """A special token, which no answer holds: what a chat begins with, or a usual name."""
        names = list(_RESERVED)
        with suppress(FarthingError):
            body = {"model": self.served, "messages": [{"role": "user", "content": "Hi"}]}
            first = (await self.origin.json("/tokenize", body))["tokens"][0]
            names.insert(0, await self.renderer.decode([first]))
        for name in names:
            if name.startswith("<") and name.endswith(">") and name not in _ENDS:
                ids = await self.renderer.encode(name, False)
                if len(ids) == 1:
                    return ids[0], name
        return None

    async def plugin(self, ids: list[int]) -> tuple[int | None, bool]:
        """The id by which our plugin ends a call, and whether its reports come through."""
        try:
            await self.complete(ids, vllm_xargs={asks.HELLO: 1})
            return None, False
        except BadRequest as error:
            if asks.MARKER not in error.message or self.renderer.separator is None:
                return None, False
        stop_id = self.renderer.separator[0]
        name = f"probe-{uuid.uuid4().hex}"
        xargs = {
            asks.CALL: name,
            asks.LEVEL: 0.0,
            asks.RISING: 1,
            asks.WINDOW: 1,
            asks.AFTER: 2,
            asks.STOP_ID: stop_id,
        }
        headers = {asks.CALL_HEADER: name}
        tried = await self.complete(
            ids, headers, vllm_xargs=xargs, stop_token_ids=[stop_id], max_tokens=4, ignore_eos=True
        )
        # A server that speculates drops the plugin in silence: it must be seen to work.
        if tried.stop_reason != stop_id or len(tried.ids) != 2:
            log.warning("model %s: the entropy plugin is there, but idle", self.origin.model)
            return None, False
        return stop_id, sum(len(report.bits) for report in tried.reports) == 2

    async def speculation(self) -> asks.Speculating | None:
        """What our worker does by request; None: it is vLLM's own, of one length for all."""
        with suppress(FarthingError):
            return asks.Speculating.read(await self.origin.json(asks.SPECULATES_PATH))
        return None

    async def prediction(self) -> asks.Predicting | None:
        """By which predictors prompts are read by request; None: by none."""
        with suppress(FarthingError):
            return asks.Predicting.read(await self.origin.json(asks.PREDICTS_PATH))
        return None

    async def complete(
        self, ids: list[int], headers: dict[str, str] | None = None, **fields: Any
    ) -> _Tried:
        """One short completion, with all that is asked of longer ones."""
        body = {**completion_fields(self.served, ids), "max_tokens": 2, "temperature": 0, **fields}
        events, found = Events(self.origin.model), list[bytes]()
        async with (
            self.origin.stream("/v1/completions", body, headers) as response,
            Arrivals(response, self.origin.patience.silence) as arrivals,
        ):
            while data := await arrivals.next():
                found += events.feed(data)
        reports = [report for event in found if (report := asks.parse_report(event))]
        contents = [
            self._content(data)
            for event in found
            if (data := payload(event) or b"[DONE]") != b"[DONE]"
        ]
        choices = [choice for content in contents for choice in content.get("choices", ())]
        return _Tried(
            ids=[id for choice in choices for id in choice.get("token_ids") or ()],
            usage=contents[-1].get("usage") or {} if contents else {},
            stop_reason=choices[-1].get("stop_reason") if choices else None,
            reports=reports,
            logprobs=any(choice.get("logprobs") for choice in choices),
            times=bool(contents) and "metrics" in contents[-1],
        )

    def _content(self, data: bytes) -> dict[str, Any]:
        try:
            content = json.loads(data)
        except ValueError as error:
            raise EngineError("the server's events are no JSON") from error
        if not isinstance(content, dict) or "choices" not in content:
            raise refusal_in_stream(self.origin.model, data, begun=False)
        return content


def completion_fields(served: str, ids: list[int]) -> dict[str, Any]:
    """What every call by ids asks for."""
    return {
        "model": served,
        "prompt": ids,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,  # the names of two tokens may be equal
    }


def _fingerprint(ids: list[int]) -> str:
    return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]
