"""Any other OpenAI-compatible server: its answers go through in its own bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal
from unicodedata import normalize

from app.catalog import Kind, ModelCard
from app.engines.remote import relay
from app.engines.remote.origin import Origin, Patience
from app.engines.remote.rendering import check_foreign
from app.errors import BadRequest, EngineError, EngineUnavailable, EngineUnsupported
from app.types import Call, Capabilities, Chunk, Load, Tokens

_FRAME = 64  # tokens that a chat template may add of itself, a default system prompt included
_MESSAGE = 16  # tokens that it may add around each message
_PART = 4096  # tokens that an image or a sound may be
_TEXTS = ("text", "refusal")  # types of parts that are text, and where it is
_FORMS: tuple[Literal["NFKC", "NFD", "NFKD"], ...] = ("NFKC", "NFD", "NFKD")
_PREFIX = 2  # tokens before any text: the one that begins a prompt, and a space
_OVERRUN = 64  # tokens that a server of one's own may write before it sees that nobody listens


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a kind of server can do, and how it wants to be asked."""

    check: str  # path of a cheap sign of life
    limit: str = "max_tokens"  # of a chat
    counts: bool = False  # has llama.cpp's /apply-template and /tokenize
    bills: bool = False  # what it computes costs money: not to be repeated, and paid to the end
    fields: bool = True  # takes fields that OpenAI does not know


KINDS: Mapping[Kind, Abilities] = {
    "openai": Abilities("/v1/models", limit="max_completion_tokens", bills=True, fields=False),
    "llamacpp": Abilities("/health", counts=True),
    "sglang": Abilities("/health"),
    "ollama": Abilities("/api/version"),
}
# Fields by which a client would write more than it pays for, or have the operator pay for more.
_DEARER = (
    *("n_predict", "num_predict", "max_new_tokens", "options", "id_slot", "keep_alive"),
    *("prediction", "web_search_options", "audio", "lora_path", "priority"),
)
_OWN_FIELDS = ("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "vllm_xargs")


class Upstream:
    """A Backend: one server, one model, asked through its own chat endpoint only."""

    def __init__(
        self, card: ModelCard, url: str, key: str | None, patience: Patience | None = None
    ) -> None:
        self.url = url
        self.abilities = KINDS[card.kind]
        self._card = card
        self._served = card.served or card.name
        self._context = card.context or 0  # the catalog sees to it that there is one
        self._origin = Origin(url, card.name, key, patience or Patience())
        self._load = Load(healthy=False)

    @property
    def idempotent(self) -> bool:
        return not self.abilities.bills

    async def probe(self) -> None:
        """One real completion, or vector. Raises EngineError."""
        if self._card.embeds:
            await self._probe_vectors()
            return
        body = {
            "model": self._served,
            "messages": [{"role": "user", "content": "Hi"}],
            self.abilities.limit: 16,
        }
        try:
            answer = await self._origin.json("/v1/chat/completions", body)
        except BadRequest as error:
            raise EngineUnavailable(f"the server refuses a short chat: {error}") from error
        if not isinstance(answer, dict) or not answer.get("choices"):
            raise EngineError("the server answers a chat without choices")
        self._load = Load()

    async def _probe_vectors(self) -> None:
        found = await self._origin.json("/v1/embeddings", {"model": self._served, "input": "Hi"})
        if not isinstance(found, dict) or not found.get("data"):
            raise EngineError("the server embeds nothing")
        self._load = Load()

    async def pulse(self) -> Load:
        """Whether it lives; such servers do not say how busy they are. Raises EngineError."""
        await self._origin.text(self.abilities.check)
        self._load = Load()
        return self._load

    async def aclose(self) -> None:
        await self._origin.aclose()

    def load(self, model: str) -> Load:
        return self._load

    def capabilities(self, model: str) -> Capabilities:
        return Capabilities(
            family=self._card.family,
            context=self._context,
            native=True,
            embeds=True,  # perhaps: it says so when it is asked
            # Who bills bills to the end: then all that was allowed may have been written.
            overrun=self._context if self.abilities.bills else _OVERRUN,
        )

    async def count(self, call: Call) -> int:
        """Prompt tokens of this call: exact where the server counts, else an upper bound.

        Raises BadRequest, EngineError.
        """
        check_foreign(call)
        if call.prompt is not None:
            return _text(call.prompt) + _PREFIX
        if self.abilities.counts and not call.extra.get("tools"):
            return len(await self._ids(call, True))
        read = sum(_size(message) + _MESSAGE for message in call.messages)
        named = ("tools", "functions", "response_format")
        offered = {key: call.extra[key] for key in named if key in call.extra}
        return _FRAME + read + (2 * _text(json.dumps(offered)) if offered else 0)

    async def tokenize(self, call: Call, names: bool) -> Tokens:
        """The prompt of this call. Raises EngineUnsupported where the server does not tell."""
        if not self.abilities.counts or names or call.extra.get("tools"):
            raise EngineUnsupported(
                f"model: the server of {call.model} does not tell its tokens", param="model"
            )
        check_foreign(call)
        if isinstance(call.prompt, tuple):
            return Tokens(call.prompt)
        special = call.extra.get("add_special_tokens") is not False
        return Tokens(tuple(await self._ids(call, special)))

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """The text of these ids. Raises EngineUnsupported where the server does not tell."""
        if not self.abilities.counts:
            raise EngineUnsupported(
                f"model: the server of {model} does not tell its tokens", param="model"
            )
        return str(await self._told("/detokenize", {"tokens": list(ids)}, "content"))

    async def _ids(self, call: Call, special: bool) -> list[int]:
        text: object = call.prompt
        if call.prompt is None:
            plain = {"messages": list(call.messages)}
            text = await self._told("/apply-template", plain, "prompt")
        asked = {"content": text, "add_special": special, "parse_special": True}
        return list(await self._told("/tokenize", asked, "tokens"))

    async def _told(self, path: str, body: Mapping[str, Any], field: str) -> Any:
        answer = await self._origin.json(path, body)
        if not isinstance(answer, dict) or not isinstance(answer.get(field), str | list):
            raise EngineError(f"The engine of {self._card.name} does not count")
        return answer[field]

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        """Answer a call, as `Engine` says."""
        if not call.decoding.native:
            raise EngineUnsupported(
                f"{call.model} is reached through another server's chat endpoint, which does not"
                " work token by token; name a vLLM or embedded model",
                param="policy",
            )
        check_foreign(call)
        if call.embeds:
            body = {**call.body, "model": self._served}
            async with aclosing(relay.embeddings(self._origin, body, call)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        body = self._body(call)
        path = "/v1/completions" if call.prompt is not None else "/v1/chat/completions"
        answer = relay.whole if call.whole else relay.stream
        async with aclosing(answer(self._origin, path, body, call, {})) as chunks:
            async for chunk in chunks:
                yield chunk

    def _body(self, call: Call) -> dict[str, Any]:
        body = {**call.body, "model": self._served, "stream": not call.whole}
        for field in _DEARER:
            if body.get(field) is not None:
                raise EngineUnsupported(f"{field}: is not for clients to set", param=field)
        if body.get("service_tier") not in (None, "auto", "default"):
            raise EngineUnsupported("service_tier: only default", param="service_tier")
        if body.get("store"):
            raise EngineUnsupported("store: answers are not kept there", param="store")
        if not self.abilities.fields:
            for field in _OWN_FIELDS:
                if body.pop(field, None) is not None:
                    raise EngineUnsupported(f"{field}: {call.model} does not know it", param=field)
        if call.max_tokens is not None:
            chat = call.prompt is None
            named = [name for name in ("max_tokens", "max_completion_tokens") if body.get(name)]
            name = self.abilities.limit if chat else "max_tokens"
            body |= dict.fromkeys(named or [name], call.max_tokens)
        options = body.pop("stream_options", None) or {}
        if not call.whole:
            body["stream_options"] = {**options, "include_usage": True}
        return body


def _text(text: str | tuple[int, ...]) -> int:
    """The most tokens that a text can be: no tokenizer makes more than one of a byte.

    But some normalize it first, and that may make a text several times as long.
    """
    if isinstance(text, tuple):
        return len(text)
    if text.isascii():
        return len(text)
    return max(len(form.encode()) for form in (text, *(normalize(f, text) for f in _FORMS)))


def _size(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    rest = {key: value for key, value in message.items() if key not in ("content", "role")}
    size = _text(json.dumps(rest)) if rest else 0
    if isinstance(content, str):
        return size + _text(content)
    for part in content or ():
        said = [part[key] for key in _TEXTS if isinstance(part.get(key), str)]
        size += sum(map(_text, said)) + 4
        size += 0 if said and part.get("type") in _TEXTS else _PART
    return size
