"""One vLLM server over HTTP: tokens in, tokens out, or its own chat endpoint as it is."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from app.catalog import ModelCard
from app.engines import fields
from app.engines.remote import prediction, probing, relay, scoring, speculation, tokens
from app.engines.remote.origin import Origin, Patience
from app.engines.remote.probing import Abilities
from app.engines.remote.rendering import Renderer, Renderings, check_foreign
from app.errors import BadRequest, ContextOverflow, EngineUnavailable, EngineUnsupported
from app.types import Call, Capabilities, Chunk, Load, Tokens
from app.vllm_plugins import asks

_OVERRUN = 4  # tokens: one on the way to us, one in the step under way, and as many again
_DRAFTED = 16  # further ones where the server speculates
_WATCHED = 20  # likeliest tokens that entropy is told from: five times as many tell little more
_COUNTS = re.compile(r"^vllm:num_requests_(running|waiting)(?:\{[^}]*\})? ([0-9.e+]+)", re.M)
_LIMITS = ("max_tokens", "max_completion_tokens")
# Fields that say how to render, or what we ask for ourselves: they do not go along with ids.
_OURS = {
    *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
    *("chat_template", "chat_template_kwargs", "documents", "mm_processor_kwargs"),
    *("add_generation_prompt", "continue_final_message", "response_format", "modalities"),
    *("return_token_ids", "return_tokens_as_token_ids", "logprob_token_ids", "stream_interval"),
    *("prompt_logprobs", "truncate_prompt_tokens", "echo", "suffix", "best_of", "vllm_xargs"),
    *("skip_special_tokens", "spaces_between_special_tokens", "sampling_params"),
    *("include_stop_str_in_output",),
}
_numbers = itertools.count()
log = logging.getLogger(__name__)


class VllmServer:
    """A Backend: one server, one model. `probe` first."""

    idempotent = True  # a call changes nothing there

    def __init__(
        self,
        card: ModelCard,
        url: str,
        key: str | None,
        renderings: Renderings,
        patience: Patience | None = None,
    ) -> None:
        """`renderings`: of all models of this family."""
        self.url = url
        self.abilities: Abilities | None = None
        self._card = card
        self._served = card.served or card.name
        self._embeds = card.embeds is not None
        self.origin = Origin(url, card.name, key, patience or Patience())
        self._renderer = Renderer(self.origin, self._served, renderings)
        self._load = Load(healthy=False)

    @property
    def fingerprint(self) -> str | None:
        return None if self.abilities is None else self.abilities.fingerprint

    async def probe(self) -> None:
        """Find out what the server can do. Raises EngineError."""
        probe = probing.probe_vectors if self._embeds else probing.probe
        self.abilities = await probe(self.origin, self._served, self._renderer)
        log.info("model %s at %s: %s", self._card.name, self.url, self.abilities)

    async def pulse(self) -> Load:
        """How busy the server is, by its own metrics. Raises EngineError."""
        text = await self.origin.text("/metrics")
        counts = {"running": 0, "waiting": 0}
        for kind, number in _COUNTS.findall(text):
            counts[kind] += int(float(number))
        self._load = Load(True, counts["running"], counts["waiting"])
        return self._load

    async def aclose(self) -> None:
        await self.origin.aclose()

    def load(self, model: str) -> Load:
        return self._load

    def capabilities(self, model: str) -> Capabilities:
        able = self._able()
        entropy: Literal["exact", "bounds"] | None = "bounds" if able.top else None
        return Capabilities(
            family=self._card.family,
            context=self._context(able),
            entropy="exact" if able.reports else entropy,
            stop_on_entropy=able.sentinel is not None,
            native=True,
            overrun=_OVERRUN + _drafted(able),
            speculation=speculation.able(able.speculation),
            kv=dict(able.prediction.shares) if able.prediction else None,
            embeds=self._embeds,
        )

    async def count(self, call: Call) -> int:
        """Prompt tokens of this call. Raises BadRequest, EngineError."""
        check_foreign(call)
        return len(await self._renderer.prompt(call)) + len(call.written)

    async def tokenize(self, call: Call, names: bool) -> Tokens:
        """The prompt of this call, by the server. Raises BadRequest, EngineError."""
        check_foreign(call)
        return await self._renderer.tokens(call, names)

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """The text of these ids. Raises BadRequest, EngineError."""
        return await self._renderer.decode(list(ids))

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        """Answer a call, as `Engine` says."""
        able = self._able()
        check_foreign(call)
        if call.embeds != self._embeds:
            does = "embeds, and writes nothing" if self._embeds else "does not embed"
            raise EngineUnsupported(f"model: {call.model} {does}", param="model")
        if call.embeds:
            body = {**call.body, "model": self._served}
            chunks = relay.embeddings(self.origin, body, call)
        elif call.decoding.scores:
            chunks = await self._scored(call, able)
        elif call.decoding.native:
            prompt = await self._renderer.prompt(call)
            chunks = self._native(call, len(prompt), able)
        else:
            chunks = await self._by_ids(call, able)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def _scored(self, call: Call, able: Abilities) -> AsyncGenerator[Chunk]:
        prompt, wanted = await self._renderer.prompt(call), call.sampling.logprobs or 0
        if wanted > able.top:
            raise EngineUnsupported(
                f"logprobs: this server gives {able.top} at most", param="logprobs"
            )
        if len(prompt) >= self._context(able):  # vLLM writes a token more
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens; this model's context is"
                f" {self._context(able)}",
                param="prompt",
            )
        body = scoring.request(self._served, prompt, wanted)
        return scoring.scores(self.origin, body, call, self._renderer.names)

    def _native(self, call: Call, prompt: int, able: Abilities) -> AsyncGenerator[Chunk]:
        if call.written or call.said or call.decoding.entropy or call.decoding.stop:
            raise EngineUnsupported("an answer in vLLM's own words is not continued or watched")
        if call.decoding.speculation is not None:
            raise EngineUnsupported(
                "an answer in vLLM's own words is guessed ahead as the server does it for all",
                param="policy",
            )
        if call.decoding.kv is not None or call.decoding.edited is not None:
            raise EngineUnsupported(
                "an answer in vLLM's own words is of a prompt that was computed", param="policy"
            )
        _check_top_k(call, able)
        body = {**call.body, "model": self._served, "stream": not call.whole}
        room = self._context(able) - prompt
        named = [name for name in _LIMITS if body.get(name) is not None]
        if call.max_tokens is not None and (named or call.max_tokens < room):
            body |= dict.fromkeys(named or ["max_tokens"], call.max_tokens)
        body.pop("stream_options", None)
        if body.get("vllm_xargs") is not None:
            body["vllm_xargs"] = _theirs(body["vllm_xargs"])
        if not call.whole:
            asked = call.body.get("stream_options") or {}
            body["stream_options"] = {
                **asked,
                "include_usage": True,
                "continuous_usage_stats": True,
            }
        path = "/v1/completions" if call.messages == () else "/v1/chat/completions"
        answer = relay.whole if call.whole else relay.stream
        # vLLM makes its answer's id of this one, so that it is ours from the first byte.
        headers = {"X-Request-Id": _bare(call.id)} if call.id else {}
        return answer(self.origin, path, body, call, headers)

    async def _by_ids(self, call: Call, able: Abilities) -> AsyncGenerator[Chunk]:
        body, headers = await self.request(call)
        reading = tokens.Reading(
            vocabulary=able.vocabulary,
            decode=self._renderer.decode,
            names=self._renderer.names,
            top=body.get("logprobs") or 0,
            sentinel=able.sentinel if call.decoding.stop else None,
        )
        return tokens.stream(self.origin, body, call, headers, reading)

    async def request(self, call: Call) -> tuple[dict[str, Any], dict[str, str]]:
        """Body and headers of a call by ids. Raises BadRequest, EngineUnsupported, EngineError."""
        able = self._able()
        prompt = await self._renderer.prompt(call)
        fields.check(call, renders=True)
        self._check(call, able)
        ids = [*prompt, *call.written]
        limit = self._limit(call, len(ids), able)
        reported = able.reports and not call.sampling.logit_bias
        body = {
            **{key: value for key, value in call.extra.items() if key not in _OURS},
            **probing.completion_fields(self._served, ids),
            **_sampling(call),
            "max_tokens": limit,
        }
        top = self._top(call, able, reported)
        if top is not None:
            body["logprobs"] = top
        name = f"{_bare(call.id) or 'call'}-{next(_numbers)}"
        headers, xargs = self._asks(call, name, able, reported)
        salted, predicted = prediction.fields(call, name, able.prediction)
        body |= salted
        xargs |= predicted
        if predicted:
            headers[asks.CALL_HEADER] = name
        if xargs:
            body["vllm_xargs"] = xargs
        if call.decoding.stop:
            body["stop_token_ids"] = [*body["stop_token_ids"], able.sentinel]
        return body, headers

    def _check(self, call: Call, able: Abilities) -> None:
        """Refuse what this server cannot do faithfully. Raises EngineUnsupported."""
        if call.decoding.edited is not None:
            raise EngineUnsupported("vLLM moves nothing of an edited prompt", param="policy")
        if call.decoding.entropy and not (able.top or able.reports):
            raise EngineUnsupported("this server reports no entropy", param="policy")
        if call.decoding.stop and able.sentinel is None:
            raise EngineUnsupported("this server does not stop on entropy", param="policy")
        _check_top_k(call, able)
        for name in ("presence_penalty", "frequency_penalty"):
            # vLLM counts the tokens of one call: after a hand-over it would begin anew.
            if getattr(call.sampling, name) and (call.decoding.entropy or call.written):
                raise EngineUnsupported(
                    f"{name}: is lost in a hand-over between servers", param=name
                )

    def _top(self, call: Call, able: Abilities, reported: bool) -> int | None:
        """How many of the likeliest tokens to ask for; None: no logprobs at all."""
        wanted = call.sampling.logprobs
        if wanted is not None and wanted > able.top:
            raise EngineUnsupported(
                f"logprobs: this server gives {able.top} at most", param="logprobs"
            )
        if call.decoding.entropy and not reported:
            return max(min(able.top, _WATCHED), wanted or 0)
        return wanted

    def _asks(
        self, call: Call, name: str, able: Abilities, reported: bool
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Headers and extra arguments for our plugins; none where they are not needed.

        A call that asks nothing of speculation is guessed ahead as the server does it for all.
        """
        stop = call.decoding.stop
        xargs = _theirs(call.extra.get("vllm_xargs"))
        if call.decoding.speculation is not None:
            asked = call.decoding.speculation
            xargs |= speculation.xargs(asked, call.sampling, able.speculation)
        headers = {asks.REQUEST_HEADER: name}
        if able.sentinel is None or not (stop or (call.decoding.entropy and reported)):
            return headers, xargs
        xargs[asks.CALL] = name
        if stop is not None:
            xargs |= {
                asks.LEVEL: stop.level,
                asks.RISING: int(stop.rising),
                asks.WINDOW: stop.window,
                asks.AFTER: stop.after,
                asks.STOP_ID: able.sentinel,
            }
        return headers | {asks.CALL_HEADER: name}, xargs

    def _limit(self, call: Call, prompt: int, able: Abilities) -> int:
        room = self._context(able) - prompt
        if call.max_tokens is not None and call.max_tokens < 1:
            raise BadRequest("max_tokens must be at least 1", param="max_tokens")
        if room > 0 and (call.written or call.said) and call.max_tokens is not None:
            return min(call.max_tokens, room)  # it began where there was more room
        if room < 1 or (call.max_tokens or 0) > room:
            raise ContextOverflow(
                f"the prompt has {prompt} tokens, the answer may have {call.max_tokens or 'more'};"
                f" this model's context, both together, is {self._context(able)}",
                param="max_tokens" if room > 0 else "messages",
            )
        return room if call.max_tokens is None else call.max_tokens

    def _context(self, able: Abilities) -> int:
        return min(able.context, self._card.context or able.context)

    def _able(self) -> Abilities:
        if self.abilities is None:
            raise EngineUnavailable(f"The engine of {self._card.name} is not ready", retry_after=2)
        return self.abilities


def _theirs(xargs: Any) -> dict[str, Any]:
    """A client's extra arguments, but for those by which it could pass for us."""
    found = xargs if isinstance(xargs, dict) else {}
    return {
        key: value
        for key, value in found.items()
        if not key.startswith("farthing_") and key not in asks.SPECULATION
    }


def _drafted(able: Abilities) -> int:
    """Tokens that a step and its successor may write beyond one each."""
    if able.speculation is None:
        return _DRAFTED * able.speculates
    return max(_DRAFTED, 2 * able.speculation.longest)


def _check_top_k(call: Call, able: Abilities) -> None:
    if able.speculates and able.speculation is None and call.sampling.top_k:
        # vLLM 0.32 dies of it: a step without drafts has nothing to cut. Our worker keeps it alive.
        raise EngineUnsupported("top_k: not on a server that speculates; use top_p", param="top_k")


def _sampling(call: Call) -> dict[str, Any]:
    """The sampling in vLLM's words. Stop strings stay with us: they may span a hand-over."""
    sampling = call.sampling
    found: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": sampling.ignore_eos,
    }
    if sampling.logit_bias:
        found["logit_bias"] = {str(id): bias for id, bias in sampling.logit_bias.items()}
    if sampling.seed is not None:
        # A call draws from its seed on: the next one of the same answer must not draw the same.
        before = len(call.written) + len(call.said)
        found["seed"] = (sampling.seed + 1_000_003 * before) % 2**63
    return found


def _bare(id: str) -> str:
    return id.partition("-")[2] or id
