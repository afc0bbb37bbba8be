"""OpenAI's requests, and the way from them to an Order."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any

from fastapi.datastructures import Headers
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

from app.errors import BadRequest
from app.gateway import Order
from app.types import Call, Goals, Message, Prompt, Sampling
from routers import body
from routers.terms import BudgetField, Terms, terms

MOST_TOKENS = 2**31 - 1
MOST_CHOICES = 128
_OURS = ("budget", "policy")  # members of a body that no engine gets to see
_MOST_NAMED = 5  # of the keys that are no token ids
_TOKEN_ID = re.compile(r"[0-9]{1,10}")


def _bias(value: object) -> dict[int, float] | None:
    """By hand, to name few faults: the table may be as large as a body."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("must be an object of token ids and numbers")
    strange = (key for key in value if not _TOKEN_ID.fullmatch(key))
    if wrong := [repr(key[:40]) for key in islice(strange, _MOST_NAMED)]:
        raise ValueError(f"keys must be token ids, not {', '.join(wrong)}")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError("values must be numbers from -100 to 100")
        biases[int(key)] = float(bias)
    return biases


Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
TokenId = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Likeliest = Annotated[int, Field(ge=-1, le=MOST_TOKENS)]  # -1: all; an engine has its own limit
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[dict[int, float] | None, BeforeValidator(_bias)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    include_usage: bool | None = None


class Generation(BaseModel):
    """What chat and text completions share. A field that is not here goes on to the engine."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=256)
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    logit_bias: Bias = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopString | Annotated[list[StopString], Field(fail_fast=True, max_length=16)] | None = (
        None
    )
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=64)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    budget: BudgetField | None = None
    policy: str | dict[str, Any] | None = None

    def refuse(self) -> None:
        """Raises BadRequest for what is well-formed but not served."""
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options: needs stream: true", param="stream_options")

    def sampling(self, logprobs: int | None) -> Sampling:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias=self.logit_bias or {},
            seed=self.seed,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
        )

    def echoes(self) -> bool:
        return False

    def drawn(self) -> int | None:
        """Choices to draw of each prompt where the best of them are asked for."""
        return None

    def further(self) -> dict[str, Any]:
        """Fields that are an engine's to know, or to refuse."""
        return self.model_extra or {}

    def shared(self, document: Mapping[str, Any], prompts: int = 1) -> dict[str, Any]:
        """The fields of a Call that say the same of chat and text."""
        return {
            "choices": (self.n or 1) * prompts,
            "whole": not self.stream,
            "extra": self.further(),
            "body": sent_on(document),
        }


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    role: Annotated[str, Field(min_length=1, max_length=64)]  # which there are, a template says
    content: str | Annotated[list[TextPart], Field(fail_fast=True, min_length=1)] | None = None


class ChatRequest(Generation):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Likeliest | None = None

    def refuse(self) -> None:
        super().refuse()
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs: needs logprobs: true", param="top_logprobs")
        for i, message in enumerate(self.messages):
            check_content(message, f"messages.{i}.content")

    def call(self, document: Mapping[str, Any]) -> Call:
        """What the body asks for; its messages stay as the client wrote them."""
        limits = [n for n in (self.max_tokens, self.max_completion_tokens) if n is not None]
        return Call(
            model=self.model,
            messages=tuple(with_content(message) for message in document["messages"]),
            max_tokens=min(limits, default=None),
            sampling=self.sampling(self.top_logprobs or 0 if self.logprobs else None),
            **self.shared(document),
        )


class CompletionRequest(Generation):
    """The body of POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[TokenId], Field(fail_fast=True)]
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[TokenId], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    # OpenAI's default, for this endpoint only; 0: nothing but the echo
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = 16
    logprobs: Likeliest | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None

    def refuse(self) -> None:
        super().refuse()
        if self.max_tokens == 0 and not self.echo:
            raise BadRequest("max_tokens: 0 needs echo: true", param="max_tokens")
        number, n = len(prompts(self.prompt, "prompt")), self.n or 1
        if number * max(n, self.best_of or 0) > MOST_CHOICES:
            raise BadRequest(f"prompt: more than {MOST_CHOICES} choices in all", param="prompt")
        if self.best_of is not None and self.best_of < n:
            raise BadRequest("best_of: must be at least n", param="best_of")
        if self.stream and (self.best_of or 0) > n:
            raise BadRequest("best_of: cannot be streamed", param="best_of")

    def call(self, document: Mapping[str, Any]) -> Call:
        prompt, *beside = prompts(self.prompt, "prompt")
        return Call(
            model=self.model,
            prompt=prompt,
            beside=tuple(beside),
            max_tokens=self.max_tokens,
            sampling=self.sampling(self.logprobs),
            **self.shared(document, 1 + len(beside)),
        )

    def further(self) -> dict[str, Any]:
        return {**super().further(), **({"suffix": self.suffix} if self.suffix else {})}

    def echoes(self) -> bool:
        return bool(self.echo)

    def drawn(self) -> int | None:
        return self.best_of if (self.best_of or 0) > (self.n or 1) else None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, understood."""

    order: Order
    stream: bool
    include_usage: bool
    debug: bool


def understand(
    shape: type[ChatRequest] | type[CompletionRequest],
    document: Mapping[str, Any],
    headers: Headers,
    arrived: float,
    id: str | None = None,
) -> Asked:
    """The order in this body and these headers. Raises BadRequest naming the field or header.

    `arrived` is the time.monotonic() from which a deadline counts, `id` the answer's, where its
    form is not that of the shape.
    """
    request = body.check(shape, document)
    request.refuse()
    agreed = terms(headers, request.budget, request.policy)
    call = request.call(document)
    kind = "chatcmpl" if call.prompt is None else "cmpl"
    call = replace(call, id=id or f"{kind}-{uuid.uuid4().hex}")
    return Asked(
        order=replace(
            ordered(call, agreed, arrived), best_of=request.drawn(), echo=request.echoes()
        ),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        debug=agreed.debug,
    )


def prompts(given: Any, param: str) -> list[Prompt]:
    """One or several, each text or ids. Raises BadRequest for one that is empty, and for none."""
    one = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    found = [given] if one else given
    if not found or not all(found):
        raise BadRequest(f"{param}: must not be empty", param=param)
    return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in found]


def sent_on(document: Mapping[str, Any]) -> dict[str, Any]:
    """What of a body an engine gets to see."""
    return {key: value for key, value in document.items() if key not in _OURS}


def ordered(call: Call, agreed: Terms, arrived: float) -> Order:
    """The order for this call, on these terms."""
    goals = Goals(
        deadline=None if agreed.latency is None else arrived + agreed.latency,
        first_token=None if agreed.ttft is None else arrived + agreed.ttft,
        quality=agreed.quality,
    )
    return Order(
        call=replace(call, goals=goals),
        policy=agreed.policy,
        options=agreed.options,
        policy_param=agreed.policy_param,
        usd=agreed.usd,
        gpu=agreed.gpu,
        strict=agreed.strict,
    )


def check_content(message: ChatMessage, param: str) -> None:
    """Raises BadRequest for a message that lacks what it should say."""
    if message.content is None and message.role != "assistant":
        raise BadRequest(f"{param}: Field required", param=param)
    if isinstance(message.content, list):
        for j, part in enumerate(message.content):
            if part.type == "text" and part.text is None:
                raise BadRequest(f"{param}.{j}.text: Field required", param=f"{param}.{j}.text")


def with_content(message: dict[str, Any]) -> Message:
    """An assistant's message may leave its content out; engines need not know."""
    return message if "content" in message else {**message, "content": None}
