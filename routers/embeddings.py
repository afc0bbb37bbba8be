"""POST /v1/embeddings: texts as vectors, by a model that embeds."""

from __future__ import annotations

import base64
import sys
from array import array
from typing import Any

from fastapi import APIRouter, Request, Response

from app.gateway import Answer
from app.types import Chunk
from routers import body, relayed
from routers.answering import begin, finished
from routers.costs import cost, end_headers, start_headers, summary
from routers.deps import account_of, front_of, visit_of
from routers.edge import json_response
from routers.readings import EmbeddingRequest
from routers.schema import gives, takes
from routers.terms import terms
from routers.wire import Asked, ordered

router = APIRouter(tags=["generation"])
_DOCUMENT = {**takes(EmbeddingRequest), **gives("Embeddings")}  # never streamed


@router.post("/v1/embeddings", openapi_extra=_DOCUMENT)
async def embeddings(request: Request) -> Response:
    """A vector for each input, as OpenAI answers it."""
    account = await account_of(request)
    document = await body.read(request, front_of(request).bounds)
    asked = body.check(EmbeddingRequest, document)
    agreed = terms(request.headers, asked.budget, asked.policy)
    order = ordered(asked.call(document), agreed, visit_of(request).arrived)
    answer = begin(request, Asked(order, False, False, agreed.debug), account)
    whole = _whole(answer, asked.encoding_format or "float", agreed.debug)
    return await front_of(request).running.run(whole, request.receive)


async def _whole(answer: Answer, encoding: str, debug: bool) -> Response:
    content = _content(answer, await finished(answer), encoding)
    content["usage"] |= cost(answer)
    content["farthing"] = summary(answer, debug)
    return json_response(content, headers={**start_headers(answer), **end_headers(answer)})


def _content(answer: Answer, finish: Chunk, encoding: str) -> dict[str, Any]:
    id, prompt = answer.order.call.id, answer.bill.prompt
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    if finish.raw is not None:
        document = relayed.document(finish.raw, id)
        theirs = document.get("usage")
        told = theirs if isinstance(theirs, dict) else usage
        return {**document, "model": answer.model, "usage": told}
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, encoding)}
        for index, vector in enumerate(finish.vectors)
    ]
    return {"id": id, "object": "list", "model": answer.model, "data": data, "usage": usage}


def _encoded(vector: array[float], encoding: str) -> list[float] | str:
    """Its numbers, or its bytes: fp32, least significant first."""
    if encoding == "float":
        return vector.tolist()
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()
