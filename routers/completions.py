"""POST /v1/completions."""

from fastapi import APIRouter, Request, Response

from routers.answering import respond
from routers.schema import takes
from routers.scribe import TextScribe
from routers.wire import CompletionRequest

router = APIRouter(tags=["generation"])


@router.post("/v1/completions", openapi_extra=takes(CompletionRequest, "Completion"))
async def completions(request: Request) -> Response:
    """What follows a text, or a list of token ids, as OpenAI answers it."""
    return await respond(request, CompletionRequest, TextScribe)
