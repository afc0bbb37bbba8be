"""Prompts as token ids: asked of a server once for each request, whoever of its family writes."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from app.engines.remote.origin import Origin
from app.errors import BadRequest, EngineError, EngineUnsupported
from app.types import Call, Tokens

_KEPT = 256  # renderings: a call's count, its hand-overs and its retries come close together
_KEPT_TOKENS = 2_000_000  # of them all: some 70 MB
_TEMPLATE = ("tools", "chat_template", "chat_template_kwargs", "documents", "mm_processor_kwargs")
_WRITING = ("stream_options", "use_beam_search", "n")  # no part of a prompt, and may be refused
_LAST = ("add_generation_prompt", "continue_final_message")
_FOREIGN = frozenset(
    (
        *("kv_transfer_params", "ec_transfer_params", "prompt_embeds", "request_id"),
        # SGLang's: code to run, others' requests and sessions, machines to fetch a cache from
        *("custom_logit_processor", "rid", "session_params", "input_embeds"),
        *("bootstrap_host", "bootstrap_port", "bootstrap_room"),
    )
)


class Renderings:
    """What was rendered for the requests under way; models of one family share it."""

    def __init__(self) -> None:
        # By identity: to compare long chats would cost what we save. The value holds the key's
        # object, so its identity is not given to another meanwhile.
        self._kept: OrderedDict[tuple[int, str], tuple[object, asyncio.Future[list[int]]]]
        self._kept = OrderedDict()
        self._waiting: Counter[asyncio.Future[list[int]]] = Counter()
        self.names: dict[int, bytes] = {}  # by id; as large as the vocabulary at most

    async def get(
        self, source: object, what: str, render: Callable[[], Awaitable[list[int]]]
    ) -> list[int]:
        """The ids for this object, rendered now or by whoever asked first."""
        key = (id(source), what)
        kept = self._kept.get(key)
        future: asyncio.Future[list[int]]
        if kept is None or (kept[1].done() and _failed(kept[1])):
            future = asyncio.ensure_future(render())
            self._kept[key] = (source, future)
            future.add_done_callback(self._rendered)
            future.add_done_callback(_failed)  # perhaps nobody is there to be told of its failure
        else:
            future = kept[1]
            self._kept.move_to_end(key)
        self._waiting[future] += 1
        try:
            # Shielded: who gives up waiting must not take it from the others.
            return await asyncio.shield(future)
        finally:
            self._waiting[future] -= 1
            if not self._waiting[future]:
                del self._waiting[future]
                if not future.done():  # nobody wants it any more
                    future.cancel()
                    if self._kept.get(key) == (source, future):
                        del self._kept[key]

    def _rendered(self, future: asyncio.Future[list[int]]) -> None:
        """Let go of the oldest, as many and as long as they are."""
        kept = [each for _, each in self._kept.values() if each.done() and not _failed(each)]
        tokens = sum(len(each.result()) for each in kept)
        while len(self._kept) > 1 and (len(self._kept) > _KEPT or tokens > _KEPT_TOKENS):
            _, (_, oldest) = self._kept.popitem(last=False)
            if oldest.done() and not _failed(oldest):
                tokens -= len(oldest.result())


class Renderer:
    """Asks one vLLM server for token ids and for text."""

    def __init__(self, origin: Origin, served: str, renderings: Renderings) -> None:
        self.has_render = False  # whether the server has the render endpoint
        self.separator: tuple[int, str] | None = None  # a reserved token, and how it is written
        self._origin = origin
        self._served = served
        self._renderings = renderings

    async def prompt(self, call: Call) -> list[int]:
        """The ids that a call reads, `written` not included. Raises BadRequest, EngineError."""
        if isinstance(call.prompt, tuple):
            ids = list(call.prompt)
        elif call.prompt is not None:
            text = call.prompt
            special = call.extra.get("add_special_tokens") is not False
            what = "prompt" if special else "bare prompt"
            ids = await self._renderings.get(text, what, lambda: self.encode(text, special))
        else:
            ids = await self._renderings.get(call.messages, "chat", lambda: self._chat(call))
        if not ids:
            raise BadRequest("the prompt is empty", param=_param(call))
        if call.said:
            said = call.said
            ids = ids + await self._renderings.get(said, "said", lambda: self.encode(said, False))
        return ids

    async def tokens(self, call: Call, names: bool) -> Tokens:
        """The prompt, asked of the server in the client's own words, and what its tokens are named.

        To render a chat is to check it as one that is to be answered, tools and all.
        """
        body = {**call.body, "model": self._served, "return_token_strs": names}
        found = await self._origin.json("/tokenize", body)
        ids = _ids(found, "tokens", self._served)
        if not names:
            return Tokens(tuple(ids))
        named = found.get("token_strs")
        if not isinstance(named, list) or len(named) != len(ids):
            raise EngineError(f"The engine of {self._origin.model} does not name its tokens")
        return Tokens(tuple(ids), tuple(map(str, named)))

    async def encode(self, text: str, special: bool) -> list[int]:
        """The ids of a text. `special`: with what the model wants before it (bos)."""
        body = {"model": self._served, "prompt": text, "add_special_tokens": special}
        return _ids(await self._origin.json("/tokenize", body), "tokens", self._served)

    async def decode(self, ids: list[int]) -> str:
        """The text of these ids; bytes that are no whole character come as U+FFFD."""
        body = {"model": self._served, "tokens": ids}
        found = await self._origin.json("/detokenize", body)
        text = found.get("prompt") if isinstance(found, dict) else None
        if not isinstance(text, str):
            raise EngineError(f"The engine of {self._origin.model} does not detokenize")
        return text

    async def names(self, ids: Iterable[int]) -> Mapping[int, bytes]:
        """What each of these ids says by itself: asked once, all new ones together."""
        known = self._renderings.names
        new = sorted(set(ids) - known.keys())
        if new and self.separator is not None:
            id, text = self.separator
            parts = (await self.decode([i for other in new for i in (id, other)])).split(text)[1:]
            if len(parts) == len(new):
                known |= {id: part.encode() for id, part in zip(new, parts, strict=True)}
        for id in new:
            if id not in known:
                known[id] = (await self.decode([id])).encode()
        return known

    async def _chat(self, call: Call) -> list[int]:
        fields: dict[str, Any] = {"model": self._served, "messages": list(call.messages)}
        names = (*_TEMPLATE, *_LAST)
        fields |= {name: call.extra[name] for name in names if call.extra.get(name) is not None}
        if self.has_render:
            rest = {k: v for k, v in call.body.items() if k not in (*_FOREIGN, *_WRITING)}
            body = {**rest, **fields, "stream": False}
            found = await self._origin.json("/v1/chat/completions/render", body)
            return _ids(found, "token_ids", self._served)
        if "documents" in fields:
            raise EngineUnsupported("documents: this server cannot render them", param="documents")
        return _ids(await self._origin.json("/tokenize", fields), "tokens", self._served)


def check_foreign(call: Call) -> None:
    """Refuse fields by which a client could reach into a server's memory. Raises BadRequest."""
    # vLLM reads some of them out of its extra arguments too.
    inner = (call.body.get("vllm_xargs"), call.extra.get("vllm_xargs"))
    places = [call.body, call.extra, *(given for given in inner if isinstance(given, Mapping))]
    named = (f for place in places for f in _FOREIGN & place.keys() if place[f] is not None)
    for field in sorted(named):
        raise BadRequest(f"{field}: is not for clients to set", param=field)


def _ids(answer: Any, field: str, model: str) -> list[int]:
    ids = answer.get(field) if isinstance(answer, dict) else None
    if not isinstance(ids, list) or not all(isinstance(id, int) for id in ids):
        raise EngineError(f"The engine of {model} gave no token ids")
    return ids


def _param(call: Call) -> str:
    return "messages" if call.prompt is None else "prompt"


def _failed(future: asyncio.Future[list[int]]) -> bool:
    return future.cancelled() or future.exception() is not None
