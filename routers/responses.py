"""/v1/responses: OpenAI's newer shape of a chat, and what it remembers."""

from __future__ import annotations

import json
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.datastructures import QueryParams

from app.accounts.account import KeyAccount
from app.accounts.responses import Responses, Stored
from app.budget import Account
from app.errors import BadRequest, BodyTooLarge, FarthingError, LedgerUnavailable, UnknownResponse
from app.gateway import Answer
from app.storage.records import Owner
from routers import body
from routers.answering import begin, deliver
from routers.bounds import Bounds
from routers.deps import account_of, front_of, visit_of
from routers.edge import json_response
from routers.responses_scribe import PREFIX, ResponseScribe
from routers.responses_wire import Conversation, Item, ResponsesRequest
from routers.schema import gives, queries, takes
from routers.shapes import one_of
from routers.wire import ChatRequest, understand
from routers.wordings import openai

router = APIRouter(tags=["generation"])
_LIMIT = {"type": "integer", "minimum": 1, "maximum": 100}
_UP_TO_100 = re.compile(r"[1-9][0-9]?|100")
# An output item's id names its response, and its place there.
_ITEM_ID = re.compile(r"(?:msg|rs|fc)_([0-9a-f]{32})[0-9a-f]{2,4}")
# A chat's fields, as the client of a response knows them.
_FIELDS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}


@dataclass(frozen=True)
class Shelf:
    """The responses of whoever asks."""

    responses: Responses
    owner: Owner

    async def found(self, id: str, param: str) -> Stored:
        """Raises UnknownResponse."""
        found = await self.responses.find(id, self.owner) if len(id) <= 96 else None
        if found is None:
            raise UnknownResponse(f"{param}: there is no such response", param=param)
        return found


@dataclass
class Entry:
    """The place of one response there."""

    shelf: Shelf
    input: list[Item]
    begun: bool = False

    async def begin(self, answer: Answer, response: dict[str, Any]) -> None:
        """It can be named and cancelled from now on, if the ledger answers."""
        content = {"response": response, "input": self.input}
        with suppress(LedgerUnavailable):  # it has been logged
            await self.shelf.responses.begin(response["id"], self.shelf.owner, content, answer)
            self.begun = True

    async def keep(self, response: dict[str, Any]) -> bool:
        """Whether it can be named from now on."""
        content = {"response": response, "input": self.input}
        id, owner = response["id"], self.shelf.owner
        try:
            return await self.shelf.responses.keep(id, owner, content, begun=self.begun)
        except LedgerUnavailable:  # it has been logged
            return False


@router.post("/v1/responses", openapi_extra=takes(ResponsesRequest, "Response"))
async def create(request: Request) -> Response:
    """The model's response to an input, as OpenAI answers it."""
    visit_of(request).worded = _worded
    account = await account_of(request)
    bounds = front_of(request).bounds
    document = await body.read(request, bounds)
    asks = body.check(ResponsesRequest, document)
    asks.refuse()
    shelf = _shelf(request, account)
    before = await _before(shelf, asks, bounds)
    items = await _resolved(shelf, asks.items, bounds.body_bytes)
    conversation = Conversation(asks.instructions)
    conversation.add(before)
    conversation.add(items)
    chat = asks.chat(document, conversation.messages)
    id = f"{PREFIX}{uuid.uuid4().hex}"
    asked = understand(ChatRequest, chat, request.headers, visit_of(request).arrived, id)
    answer = begin(request, asked, account)
    entry = None
    if shelf is not None and asks.store is not False:
        entry = Entry(shelf, [*before, *_identified(items, id, len(before))])
    writer = ResponseScribe(answer, asked, asks.echo(), entry.keep if entry else None)
    if entry is not None and asked.stream:  # of another its client learns the id too late
        await entry.begin(answer, writer.begun())
    return await deliver(request, answer, writer, stream=asked.stream)


@router.get("/v1/responses/{id}", openapi_extra=gives("Response"))
async def retrieve(request: Request, id: str) -> Response:
    """A response that was kept. Raises UnknownResponse."""
    if request.query_params.get("stream") == "true":
        raise BadRequest("stream: what is kept is not streamed again", param="stream")
    shelf = await _shelf_of(request)
    return json_response((await shelf.found(id, "response_id")).content["response"])


@router.delete("/v1/responses/{id}", openapi_extra=gives("Deleted"))
async def delete(request: Request, id: str) -> Response:
    """Keep it no longer. Raises UnknownResponse."""
    shelf = await _shelf_of(request)
    if len(id) > 96 or not await shelf.responses.delete(id, shelf.owner):
        raise UnknownResponse("response_id: there is no such response", param="response_id")
    return json_response({"id": id, "object": "response", "deleted": True})


@router.post("/v1/responses/{id}/cancel", openapi_extra=gives("Response"))
async def cancel(request: Request, id: str) -> Response:
    """End one that is streamed now; what it has become. Raises UnknownResponse."""
    shelf = await _shelf_of(request)
    await shelf.found(id, "response_id")
    stored = await shelf.responses.cancel(id, shelf.owner)
    if stored is None:
        raise UnknownResponse("response_id: there is no such response", param="response_id")
    return json_response(stored.content["response"])


@router.get(
    "/v1/responses/{id}/input_items",
    openapi_extra=gives("Items")
    | queries(order=one_of("asc", "desc"), limit=_LIMIT, after={"type": "string"}),
)
async def input_items(request: Request, id: str) -> Response:
    """What it answered, those before it included, newest first. Raises UnknownResponse."""
    shelf = await _shelf_of(request)
    items = (await shelf.found(id, "response_id")).content["input"]
    return json_response(_page(items, request.query_params))


def _page(items: list[Item], query: QueryParams) -> dict[str, Any]:
    """As OpenAI lists: `order`, `limit` and `after`. Raises BadRequest."""
    order, limit, after = query.get("order", "desc"), query.get("limit", "20"), query.get("after")
    if order not in ("asc", "desc"):
        raise BadRequest("order: must be asc or desc", param="order")
    if not _UP_TO_100.fullmatch(limit):
        raise BadRequest("limit: must be a number from 1 to 100", param="limit")
    listed = items if order == "asc" else items[::-1]
    if after is not None:
        place = next((n for n, item in enumerate(listed) if item["id"] == after), None)
        if place is None:
            raise BadRequest("after: there is no such item", param="after")
        listed = listed[place + 1 :]
    page = listed[: int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(listed) > len(page),
    }


def _shelf(request: Request, account: Account) -> Shelf | None:
    """Of this account; None where nothing is kept."""
    accounts = front_of(request).door.accounts
    if accounts is None or not accounts.responses.on or not isinstance(account, KeyAccount):
        return None
    return Shelf(accounts.responses, Owner(account.id, account.tenant))


async def _shelf_of(request: Request) -> Shelf:
    """Of whoever asks. Raises InvalidKey, and BadRequest where nothing is kept."""
    shelf = _shelf(request, await account_of(request))
    if shelf is None:
        raise _nothing_kept("response_id")
    return shelf


async def _before(shelf: Shelf | None, asks: ResponsesRequest, bounds: Bounds) -> list[Item]:
    """The items of the response that this one goes on from, and of those before it."""
    id, param = asks.previous_response_id, "previous_response_id"
    if id is None:
        return []
    if shelf is None:
        raise _nothing_kept(param)
    stored = await shelf.found(id, param)
    response = stored.content["response"]
    if response["status"] in ("in_progress", "failed"):
        raise BadRequest(f"{param}: that response is {response['status']}", param=param)
    items: list[Item] = [*stored.content["input"], *response["output"]]
    limit, size = bounds.body_bytes, len(json.dumps(items))
    if size > limit:
        raise BodyTooLarge(f"{param}: the conversation is larger than {limit} bytes", param=param)
    bounds.check({"input": [*items, *asks.items]}, size)
    return items


async def _resolved(shelf: Shelf | None, items: list[Item], limit: int) -> list[Item]:
    """References replaced by the items that they name, of no more than `limit` bytes in all."""
    outputs: dict[str, list[Item]] = {}  # of responses: many references may be to one
    resolved, size = list(items), 0
    for index, item in enumerate(items):
        if item.get("type") != "item_reference" and set(item) != {"id"}:
            continue
        param = f"input.{index}.id"
        resolved[index] = await _named(shelf, item, outputs, param)
        size += len(json.dumps(resolved[index]))
        if size > limit:
            raise BodyTooLarge(
                f"{param}: the items named so far are larger than {limit} bytes", param=param
            )
    return resolved


async def _named(
    shelf: Shelf | None, reference: Item, outputs: dict[str, list[Item]], param: str
) -> Item:
    """`outputs`: of the responses that were looked up before; this one's is put there."""
    if shelf is None:
        raise _nothing_kept(param)
    id = reference.get("id")
    match = _ITEM_ID.fullmatch(id) if isinstance(id, str) else None
    if match is None:
        raise BadRequest(f"{param}: must be the id of an item of a response", param=param)
    response = PREFIX + match[1]
    if response not in outputs:
        outputs[response] = (await shelf.found(response, param)).content["response"]["output"]
    for item in outputs[response]:
        if item["id"] == id:
            return item
    raise UnknownResponse(f"{param}: there is no such item", param=param)


def _identified(items: list[Item], id: str, first: int) -> list[Item]:
    """The items as they are listed: each has an id, and a message a list of parts."""
    kept = []
    for index, item in enumerate(items, first):
        name = f"item_{id.removeprefix(PREFIX)}{index:04x}"
        shown = {"id": name, "type": "message", "status": "completed", **item}
        if isinstance(shown.get("content"), str):
            kind = "output_text" if shown.get("role") == "assistant" else "input_text"
            part: Item = {"type": kind, "text": shown["content"]}
            shown["content"] = [part | ({"annotations": []} if kind == "output_text" else {})]
        kept.append(shown)
    return kept


def _nothing_kept(param: str) -> BadRequest:
    return BadRequest(
        f"{param}: no responses are kept here (FARTHING_LEDGER=off or FARTHING_RESPONSES_KEEP_S=0)",
        param=param,
    )


def _worded(error: FarthingError) -> dict[str, Any]:
    """OpenAI's error, under the names that the client of a response knows."""
    told = openai(error)
    name = (error.param or "").partition(".")[0]
    if name in _FIELDS:
        # Without what follows: items and messages do not count alike.
        message = error.message.removeprefix(error.param or "")
        told["error"] |= {"param": _FIELDS[name], "message": f"{_FIELDS[name]}{message}"}
    return told
