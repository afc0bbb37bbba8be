"""GET /v1/models and /v1/policies: what a request may name, and the options of that."""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter, Request, Response

from app.budget import Account
from app.catalog import PICO, ModelCard, Preset, Tariff
from app.errors import UnknownModel
from routers.deps import Front, account_of, front_of
from routers.edge import json_response
from routers.schema import gives

router = APIRouter(tags=["fleet"])


@router.get("/v1/models", openapi_extra=gives("Models"))
async def models(request: Request) -> Response:
    front, account = front_of(request), await account_of(request)
    cards, presets = front.catalog.models.values(), front.catalog.offered.values()
    listed = [_model(front, card) for card in cards if _allowed(account, card)]
    listed += [_preset(front, preset) for preset in presets if account.allows(preset.name)]
    return json_response({"object": "list", "data": listed})


@router.get("/v1/policies", openapi_extra=gives("Policies"))
async def policies(request: Request) -> Response:
    """Every policy, with its options as JSON Schema: what `policy` and `X-Policy` may say."""
    await account_of(request)
    listed = [
        {"id": name, "object": "policy", "options": options}
        for name, options in front_of(request).policies().items()
    ]
    return json_response({"object": "list", "data": listed})


@router.get("/v1/models/{name:path}", openapi_extra=gives("Model"))
async def model(request: Request, name: str) -> Response:
    """One of them, by its name or alias. Raises UnknownModel."""
    front, account = front_of(request), await account_of(request)
    if name in front.catalog.offered and account.allows(name):
        return json_response(_preset(front, front.catalog.offered[name]))
    if len(name) > 256:
        raise UnknownModel("The model does not exist", param="model")
    card = front.catalog.model(name)
    if not _allowed(account, card):
        raise UnknownModel(f"This API key may not use the model {card.name!r}", param="model")
    return json_response(_model(front, card))


def _allowed(account: Account, card: ModelCard) -> bool:
    return any(map(account.allows, (card.name, *card.aliases)))


def _model(front: Front, card: ModelCard) -> dict[str, Any]:
    details: dict[str, Any] = {
        "kind": "model",
        "precision": card.precision,
        "family": card.family,
        "aliases": list(card.aliases),
        "price": {"currency": "USD", **_per_million(card.price)},
    }
    if card.gpu_seconds is not None:
        details["gpu_seconds"] = _per_million(card.gpu_seconds)
    entry = _entry(front, card.name, details)
    if front.gateway is not None:
        able = front.gateway.engine.capabilities(card.name)
        details["context"] = able.context
        entry["max_model_len"] = able.context  # vLLM's name for it, which its clients read
        details["embeds"] = able.embeds
        if able.kv is not None:
            details["kv_predictors"] = dict(able.kv)
    return entry


def _preset(front: Front, preset: Preset) -> dict[str, Any]:
    details = {
        "kind": "preset",
        "policy": preset.policy,
        "options": {key: _plain(value) for key, value in preset.options.items()},
        "description": preset.description,
    }
    return _entry(front, preset.name, details)


def _entry(front: Front, name: str, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": front.created,
        "owned_by": "farthing",
        "farthing": details,
    }


def _per_million(tariff: Tariff) -> dict[str, Any]:
    kinds = tariff.full.items()
    return {"per": "million tokens", **{kind: each * 10**6 / PICO for kind, each in kinds}}


def _plain(value: Any) -> Any:
    """TOML's own numbers are exact decimals, and may be infinite; JSON's are neither."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str | int | bool):
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)
