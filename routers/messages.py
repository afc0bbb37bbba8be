"""/v1/messages: a chat in Anthropic's shape."""

from __future__ import annotations

import re
import uuid
from typing import Any

from fastapi import APIRouter, Request, Response

from app.errors import FarthingError
from routers import body
from routers.answering import begin, deliver
from routers.deps import account_of, front_of, visit_of
from routers.edge import json_response
from routers.messages_scribe import MessageScribe
from routers.messages_wire import CountTokensRequest, MessagesRequest, Prompt
from routers.schema import gives, has_body, takes
from routers.wire import Asked, ChatRequest, understand
from routers.wordings import MESSAGES, anthropic

router = APIRouter(tags=["generation"])
# A chat's fields, as the client of a message knows them.
_FIELDS = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "continue_final_message": "messages",
    "user": "metadata.user_id",
}
_FIELD = re.compile(r"(\w+)((?:\.\w+)*)(?=: )")


@router.post(MESSAGES, openapi_extra=takes(MessagesRequest, "Message"))
async def create(request: Request) -> Response:
    """The next message of a chat, as Anthropic answers it."""
    visit_of(request).worded = _worded
    account = await account_of(request)
    asked = await _asked(request, MessagesRequest)
    answer = begin(request, asked, account)
    return await deliver(request, answer, MessageScribe(answer, asked), stream=asked.stream)


@router.post(
    f"{MESSAGES}/count_tokens", openapi_extra=has_body(CountTokensRequest) | gives("TokenCount")
)
async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of such a message has, for the model that is asked first."""
    visit_of(request).worded = _worded
    account = await account_of(request)
    asked = await _asked(request, CountTokensRequest)
    gateway = front_of(request).opened()
    first = gateway.planned(asked.order, account).first
    tokens = await gateway.engine.count(asked.order.call.to(first))
    return json_response({"input_tokens": tokens})


async def _asked(request: Request, shape: type[Prompt]) -> Asked:
    document = await body.read(request, front_of(request).bounds)
    chat = body.check(shape, document).chat(document)
    id = f"msg_{uuid.uuid4().hex}"
    return understand(ChatRequest, chat, request.headers, visit_of(request).arrived, id)


def _worded(error: FarthingError) -> dict[str, Any]:
    """Anthropic's error, under the names that its client knows."""
    told = anthropic(error)
    match = _FIELD.match(error.message)
    if match and match[1] in _FIELDS:
        told["error"]["message"] = _FIELDS[match[1]] + error.message[match.end() :]
    return told
