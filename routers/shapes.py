"""The shapes of answers, as JSON Schema, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
NUMBER = {"type": "number"}
AMOUNT = {"type": "number", "minimum": 0, "description": "USD"}
SECONDS = {"type": "number", "minimum": 0, "description": "of accelerators, idealized"}
FLAG = {"type": "boolean"}
OBJECT = {"type": "object"}


def shape(optional: dict[str, Any] | None = None, **required: Any) -> dict[str, Any]:
    """An object with these members; it may have others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def items(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


def table(schema: dict[str, Any]) -> dict[str, Any]:
    """An object with members of any name."""
    return {"type": "object", "additionalProperties": schema}


def maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def one_of(*words: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(words)}


def listed(name: str, optional: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return shape(optional, object=one_of("list"), data=items(ref(name)), **more)


def ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_FINISH = {
    "finish_reason": maybe(TEXT),
    "finish_details": shape(reason=one_of("budget", "deadline")),
    "logprobs": maybe(OBJECT),
    "stop_reason": maybe({"type": ["integer", "string"]}),
}
_COUNTS = {
    "requests": COUNT,
    "prompt_tokens": COUNT,
    "cached_tokens": COUNT,
    "completion_tokens": COUNT,
    "cost": AMOUNT,
}
_KINDS = ("input", "cached_input", "output", "drafted", "predicted")  # of tokens
_TAKEN = {"gpu_seconds": SECONDS}  # where the models' cards say it
_LINE = shape(_TAKEN, prompt_tokens=COUNT, completion_tokens=COUNT, cost=AMOUNT)
_DETAILS = shape(_TAKEN, models=table(_LINE), currency=one_of("USD"), price_version=TEXT)


def _answer(kind: str, **choice: Any) -> dict[str, Any]:
    """An answer of OpenAI's, with what it cost and who wrote it."""
    return shape(
        id=TEXT,
        object=one_of(kind),
        created=COUNT,
        model=TEXT,
        choices=items(shape(_FINISH, index=COUNT, **choice)),
        usage=ref("Usage"),
        farthing=ref("Summary"),
    )


_ASKED = "Why is the sky blue?"
_CHAT = {"model": "economy", "messages": [{"role": "user", "content": _ASKED}]}
EXAMPLES: dict[str, dict[str, Any]] = {  # of bodies
    "ChatRequest": {**_CHAT, "max_tokens": 64, "budget": {"usd": "0.001"}},
    "CompletionRequest": {"model": "economy", "prompt": _ASKED, "max_tokens": 64},
    "ResponsesRequest": {"model": "economy", "input": _ASKED, "max_output_tokens": 64},
    "MessagesRequest": {**_CHAT, "max_tokens": 64},
    "CountTokensRequest": _CHAT,
    "EmbeddingRequest": {"model": "large", "input": [_ASKED]},
    "TokenizeRequest": {"model": "large", "prompt": _ASKED},
    "DetokenizeRequest": {"model": "large", "tokens": [1, 2]},
    "KeySpec": {"name": "team search", "usd_per_day": "5", "models": ["economy"]},
}

ANSWERS: dict[str, dict[str, Any]] = {
    "Error": shape(
        error=shape(message=TEXT, type=TEXT, param=maybe(TEXT), code=maybe(TEXT)),
    ),
    "Event": shape(
        {"event": TEXT},
        data={**TEXT, "description": "a chunk in JSON, or [DONE]; comments come between events"},
    ),
    "Usage": shape(
        {"prompt_tokens_details": maybe(OBJECT)},
        prompt_tokens=COUNT,
        completion_tokens=COUNT,
        total_tokens=COUNT,
        cost=AMOUNT,
        cost_details=_DETAILS,
    ),
    "Summary": shape(
        {
            "entropy": one_of("exact", "bounds"),
            "plain": FLAG,
            "repaired": FLAG,
            "failover": OBJECT,
            "whole": TEXT,
            "preset": TEXT,
            "switches": items(OBJECT),
        },
        policy=TEXT,
        fidelity=one_of("exact", "approximate"),
        models=table(COUNT),
    ),
    "ChatCompletion": _answer(
        "chat.completion",
        message=shape({"content": maybe(TEXT)}, role=one_of("assistant")),
    ),
    "Completion": _answer("text_completion", text=TEXT),
    "Embeddings": listed(
        "Embedding",
        model=TEXT,
        usage=shape(prompt_tokens=COUNT, total_tokens=COUNT, cost=AMOUNT, cost_details=_DETAILS),
        farthing=ref("Summary"),
    ),
    "Embedding": shape(
        object=one_of("embedding"),
        index=COUNT,
        embedding={"anyOf": [items(NUMBER), TEXT]},
    ),
    "Tokens": shape(
        {"token_strs": maybe(items(TEXT))},
        count=COUNT,
        max_model_len=COUNT,
        tokens=items(COUNT),
    ),
    "Text": shape(prompt=TEXT),
    "Response": shape(
        {"usage": maybe(OBJECT), "error": maybe(OBJECT), "farthing": ref("Summary")},
        id=TEXT,
        object=one_of("response"),
        created_at=NUMBER,
        status=one_of("in_progress", "completed", "incomplete", "failed", "cancelled"),
        model=TEXT,
        output=items(OBJECT),
    ),
    "Items": shape(
        object=one_of("list"),
        data=items(OBJECT),
        first_id=maybe(TEXT),
        last_id=maybe(TEXT),
        has_more=FLAG,
    ),
    "Message": shape(
        {"farthing": ref("Summary"), "finish_details": _FINISH["finish_details"]},
        id=TEXT,
        type=one_of("message"),
        role=one_of("assistant"),
        model=TEXT,
        content=items(shape(type=one_of("text", "thinking", "tool_use"))),
        stop_reason=one_of("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"),
        stop_sequence=maybe(TEXT),
        usage=shape(input_tokens=COUNT, output_tokens=COUNT, cost=AMOUNT, cost_details=_DETAILS),
    ),
    "TokenCount": shape(input_tokens=COUNT),
    "MessagesError": shape(type=one_of("error"), error=shape(type=TEXT, message=TEXT)),
    "Deleted": shape(id=TEXT, object=one_of("response"), deleted=FLAG),
    "Model": shape(
        id=TEXT,
        object=one_of("model"),
        created=COUNT,
        owned_by=TEXT,
        farthing=shape(
            {
                "price": shape(currency=one_of("USD"), per=TEXT, **dict.fromkeys(_KINDS, AMOUNT)),
                "gpu_seconds": shape(per=TEXT, **dict.fromkeys(_KINDS, SECONDS)),
                "aliases": items(TEXT),
            },
            kind=one_of("model", "preset"),
        ),
    ),
    "Models": listed("Model"),
    "Policy": shape(id=TEXT, object=one_of("policy"), options=OBJECT),
    "Policies": listed("Policy"),
    "Spending": shape(
        dict.fromkeys(("day", "model", "policy", "tenant", "key"), TEXT) | _TAKEN, **_COUNTS
    ),
    "UsageReport": listed("Spending", total=ref("Spending")),
    "Decisions": shape(
        {
            "tenant": TEXT,
            "at": TEXT,
            "error": shape({"param": maybe(TEXT)}, type=TEXT, code=maybe(TEXT)),
            "estimate": OBJECT,
            "alternatives": items(
                shape(
                    {"usd": AMOUNT, "fits": FLAG, "tokens": COUNT, "quality": NUMBER}
                    | {"first_token_s": NUMBER, "latency_s": NUMBER, "propensity": NUMBER},
                    kind=one_of("plan", "model", "preset", "reading", "answer"),
                    name=TEXT,
                    chosen=FLAG,
                    reason=TEXT,
                )
            ),
            "calls": items(shape(model=TEXT, outcome=TEXT, attempts=items(OBJECT), usd=AMOUNT)),
            "cost": shape(usd=AMOUNT, models=table(OBJECT)),
            "times": OBJECT,
            "left_out": table(COUNT),
        },
        id=TEXT,
        object=one_of("decisions"),
        request_id=TEXT,
        key=TEXT,
        outcome=TEXT,
        request=OBJECT,
        plan=OBJECT,
        decisions=items(shape(kind=TEXT, model=TEXT, token=COUNT)),
    ),
    "Key": shape(
        {"token": TEXT},
        id=TEXT,
        object=one_of("key"),
        name=TEXT,
        created=TEXT,
        revoked=maybe(TEXT),
        spent_usd=table(AMOUNT),
        held_usd=AMOUNT,
        running=COUNT,
    ),
    "Keys": listed("Key"),
    "Server": shape(
        model=TEXT, url=TEXT, state=TEXT, reason=maybe(TEXT), running=COUNT, waiting=COUNT
    ),
    "Servers": listed("Server"),
    "Live": shape(status=one_of("live")),
    "Ready": shape(status=one_of("ready", "loading", "unhealthy", "ending")),
    "Health": shape(
        {"ledger": shape(status=one_of("up", "away"), unsettled=COUNT)},
        status=one_of("ready", "loading", "unhealthy", "ending"),
        models=table(shape({"servers": table(COUNT)}, healthy=FLAG, running=COUNT, waiting=COUNT)),
    ),
}
