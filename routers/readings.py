"""Requests that have a text read, and nothing written: for its tokens, or as a vector."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.errors import BadRequest
from app.types import Call
from routers.terms import BudgetField
from routers.wire import (
    ChatMessage,
    Count,
    TokenId,
    check_content,
    prompts,
    sent_on,
    with_content,
)

MOST_INPUTS = 2048  # as OpenAI has it


class TokenizeRequest(BaseModel):
    """The body of POST /tokenize: a prompt, or the messages of a chat."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: str = Field(min_length=1, max_length=256)
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)] | None = None
    return_token_strs: bool | None = None

    def call(self, model: str, document: dict[str, Any]) -> Call:
        if (self.prompt is None) == (self.messages is None):
            raise BadRequest("prompt: needs either a prompt or messages", param="prompt")
        for index, message in enumerate(self.messages or ()):
            check_content(message, f"messages.{index}.content")
        extra = self.model_extra or {}
        messages = tuple(map(with_content, document["messages"])) if self.messages else ()
        return Call(model, messages, prompt=self.prompt, extra=extra, body=document)


class DetokenizeRequest(BaseModel):
    """The body of POST /detokenize."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: str = Field(min_length=1, max_length=256)
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class EmbeddingRequest(BaseModel):
    """The body of POST /v1/embeddings."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: str = Field(min_length=1, max_length=256)
    input: (
        str
        | Annotated[list[TokenId], Field(fail_fast=True)]
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[TokenId], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None
    budget: BudgetField | None = None
    policy: str | dict[str, Any] | None = None

    def call(self, document: Mapping[str, Any]) -> Call:
        first, *beside = prompts(self.input, "input")
        if len(beside) >= MOST_INPUTS:
            raise BadRequest(f"input: more than {MOST_INPUTS} inputs", param="input")
        return Call(
            model=self.model,
            prompt=first,
            beside=tuple(beside),
            max_tokens=0,
            embeds=True,
            choices=1 + len(beside),
            whole=True,
            extra={**(self.model_extra or {}), "dimensions": self.dimensions},
            body=sent_on(document),
            id=f"embd-{uuid.uuid4().hex}",
        )
