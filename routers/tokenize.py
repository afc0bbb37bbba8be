"""POST /tokenize and /detokenize: text to token ids and back, in vLLM's shapes."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.gateway import Order
from app.types import Call
from routers import body
from routers.deps import account_of, front_of
from routers.edge import json_response
from routers.readings import DetokenizeRequest, TokenizeRequest
from routers.schema import gives, has_body

router = APIRouter(tags=["reading"])


@router.post("/tokenize", openapi_extra=has_body(TokenizeRequest) | gives("Tokens"))
async def tokenize(request: Request) -> Response:
    """The token ids of a prompt or a chat, as the model reads it; of a preset, its first model."""
    front, account = front_of(request), await account_of(request)
    document = await body.read(request, front.bounds)
    asked = body.check(TokenizeRequest, document)
    gateway = front.opened()
    model = gateway.planned(Order(Call(asked.model)), account).first
    names = bool(asked.return_token_strs)
    found = await gateway.engine.tokenize(asked.call(model, document), names)
    return json_response(
        {
            "count": len(found.ids),
            "max_model_len": gateway.engine.capabilities(model).context,
            "tokens": found.ids,
            "token_strs": found.names,
        }
    )


@router.post("/detokenize", openapi_extra=has_body(DetokenizeRequest) | gives("Text"))
async def detokenize(request: Request) -> Response:
    """The text of these token ids."""
    front, account = front_of(request), await account_of(request)
    asked = body.check(DetokenizeRequest, await body.read(request, front.bounds))
    gateway = front.opened()
    model = gateway.planned(Order(Call(asked.model)), account).first
    return json_response({"prompt": await gateway.engine.detokenize(model, asked.tokens)})
