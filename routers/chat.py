"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request, Response

from routers.answering import respond
from routers.schema import takes
from routers.scribe import ChatScribe
from routers.wire import ChatRequest

router = APIRouter(tags=["generation"])


@router.post("/v1/chat/completions", openapi_extra=takes(ChatRequest, "ChatCompletion"))
async def chat(request: Request) -> Response:
    """The next message of a chat, as OpenAI answers it."""
    return await respond(request, ChatRequest, ChatScribe)
