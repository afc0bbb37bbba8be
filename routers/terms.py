"""On which terms a request is answered: the X-Budget-*, X-Policy and X-Debug headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, cast

import http_sf
from fastapi.datastructures import Headers

from app.errors import BadRequest
from routers.body import FEW, Closed

_NUMBER = re.compile(r"([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,9}))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_LONGEST = 100  # characters of a number
_DIGITS = 21  # of an amount in 1e-12 USD: below 1e9 USD
_MAX_MS = 1e9

USD, GPU, FALLBACK = "X-Budget-Usd", "X-Budget-Gpu-Seconds", "X-Budget-Fallback"
LATENCY, TTFT, QUALITY = "X-Budget-Latency-Ms", "X-Budget-Ttft-Ms", "X-Budget-Quality"
POLICY, DEBUG = "X-Policy", "X-Debug"
_OURS = {name.lower(): name for name in (USD, GPU, LATENCY, TTFT, QUALITY, FALLBACK, POLICY, DEBUG)}


class BudgetField(Closed):
    """The body's `budget`; amounts may be strings, so that they stay decimal."""

    usd: int | float | str | None = None
    gpu_seconds: int | float | str | None = None
    latency_ms: int | float | None = None
    ttft_ms: int | float | None = None
    quality: int | float | None = None
    fallback: Literal["cheapest", "strict"] | None = None


_NO_BUDGET = BudgetField()


@dataclass(frozen=True, slots=True)
class Terms:
    """What the client allows, headers and body taken together."""

    usd: int | None = None  # 1e-12 USD, rounded down
    gpu: int | None = None  # 1e-12 accelerator-seconds, rounded down
    latency: float | None = None  # seconds for the whole answer
    ttft: float | None = None  # seconds to its first token: a wish
    quality: float | None = None  # least, 0 to 1 relative to the best way's
    strict: bool = False
    policy: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    policy_param: str = "policy"
    debug: bool = False


def terms(
    headers: Headers,
    budget: BudgetField | None = None,
    policy: str | Mapping[str, Any] | None = None,
) -> Terms:
    """Of header and body the smaller limit counts, and the higher quality. Raises BadRequest
    naming the one at fault."""
    ours = _ours(headers)
    body = budget or _NO_BUDGET
    fallback = _one_of(ours, FALLBACK, ("cheapest", "strict"))
    name, options, param = _policy(ours.get(POLICY), policy)
    if len(options) > FEW:
        raise BadRequest(f"{param}: has more than {FEW} options", param=param)
    return Terms(
        usd=_least(_usd(ours.get(USD), USD), _usd(_text(body.usd), "budget.usd")),
        gpu=_least(_gpu(ours.get(GPU), GPU), _gpu(_text(body.gpu_seconds), "budget.gpu_seconds")),
        latency=_wait(ours.get(LATENCY), LATENCY, body.latency_ms, "budget.latency_ms"),
        ttft=_wait(ours.get(TTFT), TTFT, body.ttft_ms, "budget.ttft_ms"),
        quality=_quality(ours.get(QUALITY), body.quality),
        strict="strict" in (fallback, body.fallback),
        policy=name,
        options=options,
        policy_param=param,
        debug=_one_of(ours, DEBUG, ("0", "1")) == "1",
    )


def pico_usd(text: str, param: str) -> int:
    """A decimal amount of USD as 1e-12 USD, rounded down. Raises BadRequest."""
    return _pico(text, param, "USD")


def _pico(text: str, param: str, unit: str) -> int:
    """A decimal amount of a unit as 1e-12 of it, rounded down.

    In integers throughout: an exponent costs no more than its digits, however large it is.
    """
    match = _NUMBER.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise BadRequest(f"{param}: must be a decimal number of {unit}, like 0.002", param=param)
    whole, fraction, exponent = match[1], match[2] or "", int(match[3] or 0)
    digits = (whole + fraction).lstrip("0")
    shift = exponent - len(fraction) + 12
    if not digits or len(digits) + shift <= 0:
        return 0
    if len(digits) + shift > _DIGITS:
        raise BadRequest(f"{param}: must be below 1000000000 {unit}", param=param)
    amount = int(digits)
    return amount * int(10**shift) if shift >= 0 else amount // int(10**-shift)


def _ours(headers: Headers) -> dict[str, str]:
    """The headers that are ours, each once, under the names we document."""
    found: dict[str, str] = {}
    for key, value in headers.items():
        name = _OURS.get(key)
        if name is None:
            if key.startswith("x-budget-"):
                known = ", ".join((USD, GPU, LATENCY, TTFT, QUALITY, FALLBACK))
                raise BadRequest(f"{key}: no such budget; there are {known}", param=key)
            continue
        if name in found:
            raise BadRequest(f"{name}: must be sent once", param=name)
        found[name] = value.strip(" \t")
    return found


def _text(value: float | str | None) -> str | None:
    return value if value is None or isinstance(value, str) else repr(value)


def _usd(text: str | None, param: str) -> int | None:
    return None if text is None else pico_usd(text, param)


def _gpu(text: str | None, param: str) -> int | None:
    return None if text is None else _pico(text, param, "accelerator-seconds")


def _least(*amounts: int | None) -> int | None:
    return min((amount for amount in amounts if amount is not None), default=None)


def _wait(header: str | None, name: str, field: float | None, field_name: str) -> float | None:
    """The shorter of what header and body say, in seconds."""
    waits = [_seconds(header, name), _seconds(_text(field), field_name)]
    return min((wait for wait in waits if wait is not None), default=None)


def _seconds(text: str | None, param: str) -> float | None:
    if text is None:
        return None
    match = _NUMBER.fullmatch(text) if len(text) <= _LONGEST else None
    value = float(text) if match else 0.0
    if not 0 < value <= _MAX_MS:
        raise BadRequest(
            f"{param}: must be a number of milliseconds above 0, at most {_MAX_MS:.0f}", param=param
        )
    return value / 1000


def _quality(header: str | None, field: float | None) -> float | None:
    """The higher of what header and body say."""
    told = ((header, QUALITY), (_text(field), "budget.quality"))
    found = [_share(text, param) for text, param in told if text is not None]
    return max(found, default=None)


def _share(text: str, param: str) -> float:
    match = _NUMBER.fullmatch(text) if len(text) <= _LONGEST else None
    value = float(text) if match else -1.0
    if not 0 <= value <= 1:
        raise BadRequest(f"{param}: must be a number from 0 to 1, like 0.9", param=param)
    return value


def _one_of(ours: Mapping[str, str], name: str, words: tuple[str, ...]) -> str | None:
    value = ours.get(name)
    if value is not None and value not in words:
        raise BadRequest(f"{name}: must be {' or '.join(words)}", param=name)
    return value


def _policy(
    header: str | None, body: str | Mapping[str, Any] | None
) -> tuple[str | None, dict[str, Any], str]:
    """Name, options, and where they came from."""
    if header is not None and body is not None:
        raise BadRequest(f"{POLICY}: the body names a policy too", param=POLICY)
    if header is not None:
        return *_named(header, POLICY), POLICY
    if isinstance(body, str):
        return *_named(body, "policy"), "policy"
    if body is None:
        return None, {}, "policy"
    options = dict(body)
    name = options.pop("name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadRequest("policy.name: must be the name of a policy or preset", param="policy.name")
    return name, options, "policy"


def _named(text: str, param: str) -> tuple[str, dict[str, Any]]:
    """An Item of RFC 9651: `name;number=2.5;text="a b";word=yes;flag`. Its values keep their types:
    numbers int or Decimal, booleans bool, tokens and strings str."""
    try:
        name, values = _item(text)
    except ValueError as error:
        raise BadRequest(
            f"{param}: must look like name;option=2.0;other=word ({error})", param=param
        ) from error
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadRequest(f"{param}: must begin with the name of a policy or preset", param=param)
    for key, value in values.items():
        if not isinstance(value, str | bool | int | Decimal):
            raise BadRequest(f"{param}: {key}: must be a number, boolean or text", param=param)
    return name, values


def _item(text: str) -> tuple[Any, dict[str, Any]]:
    """Raises ValueError for what is no Item, and for a parameter that is given twice."""
    parsed = http_sf.parse(
        text.encode(errors="surrogatepass"), tltype="item", on_duplicate_key=_once
    )
    value, parameters = cast(tuple[Any, dict[str, Any]], parsed)
    return _plain(value), {key: _plain(value) for key, value in parameters.items()}


def _once(key: str, _kind: str) -> None:
    raise ValueError(f"{key} is given twice")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, http_sf.Token | http_sf.DisplayString) else value
