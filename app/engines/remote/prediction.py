"""KV prediction by request on a vLLM server with our connector: in which words, and whose cache."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any

from app.engines.predictions import check
from app.types import Call
from app.vllm_plugins import asks

_SECRET = secrets.token_bytes(32)  # of this process: nobody else can name a conversation's salt


def fields(
    call: Call, name: str, server: asks.Predicting | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the body, and the extra arguments, that a call's KVPrediction becomes; none
    where there is none. `name`: what predicted tokens are reported under.

    Raises EngineUnsupported for what the server cannot do, BadRequest for what makes no sense.
    """
    asked = call.decoding.kv
    if asked is None:
        return {}, {}
    check(call, asked, server.shares if server else ())
    xargs: dict[str, Any] = {asks.KV: asked.predictor, asks.KV_LAST: asked.last}
    if asked.first:
        xargs[asks.KV_FIRST] = asked.first
    if asked.relevant:
        xargs[asks.KV_RELEVANT] = asked.relevant
    return {"cache_salt": _salt(call)}, {**xargs, asks.KV_CALL: name}


def _salt(call: Call) -> str:
    """That of a conversation of this account's; else one that is never used again."""
    asked = call.decoding.kv
    if asked is None or not asked.conversation:
        return asks.SALT + secrets.token_hex(16)
    whose = repr((call.account, asked.predictor, asked.conversation)).encode()
    return asks.SALT + hmac.new(_SECRET, whose, hashlib.sha256).hexdigest()
