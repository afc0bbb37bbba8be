"""What an API key looks like, and what may be said of one."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from app.catalog import PICO, usd
from app.storage.records import KeyRow

MOST_USD = 9_000_000
OURS = "sk-farthing-"
"""How every token begins."""
_TOKEN = re.compile(OURS + r"([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_MOST_COUNT = 10**9


def new_id() -> str:
    return secrets.token_hex(6)


def new_token(id: str) -> str:
    """The secret that a client sends; the id in it says which key's digest to compare."""
    return f"{OURS}{id}-{secrets.token_urlsafe(32)}"


def id_of(token: str) -> str | None:
    """The key's id in this token; None: it is none of ours."""
    match = _TOKEN.fullmatch(token)
    return match[1] if match else None


def digest(token: str, secret: bytes) -> bytes:
    """What is stored of a token: useless without the secret, which is not in the database."""
    return hmac.digest(secret, token.encode(), "sha256")


def fingerprint(secret: bytes) -> str:
    """Tells secrets apart, and nothing else about them."""
    return hashlib.sha256(b"farthing key secret\0" + secret).hexdigest()[:32]


def _pico(value: object) -> int | None:
    """USD as 1e-12 USD; exact, or refused."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError("must be an amount of USD")
    text = str(value)
    try:
        usd = Decimal(text) if len(text) <= 40 else Decimal("nan")
    except InvalidOperation:
        usd = Decimal("nan")
    # Bounded before it becomes an integer: that of 1e999999999 would take for ever.
    if not usd.is_finite() or not 0 <= usd <= MOST_USD or usd.as_tuple().exponent < -12:  # type: ignore[operator]  # it is a number where the value is finite
        raise ValueError(f"must be an amount of USD, 0 to {MOST_USD}, of 12 decimals at most")
    return int(usd * PICO)


def _with_zone(value: object) -> object:
    """A date or time without a zone is UTC."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("must look like 2027-01-31 or 2027-01-31T12:00:00Z") from None
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return value


def _of_this_age(moment: datetime) -> datetime:
    """A moment near the ends of the calendar is none in UTC, in which it is shown."""
    if not 1970 <= moment.year <= 9000:
        raise ValueError("must be a year from 1970 to 9000")
    return moment


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def _plain(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be printable")
    return value


_AMOUNT = {"type": "number", "minimum": 0, "maximum": MOST_USD}
_DECIMAL = {"type": "string", "pattern": r"^[0-9]{1,7}(\.[0-9]{1,12})?$"}
Usd = Annotated[
    int | None,
    BeforeValidator(_pico),
    WithJsonSchema({"anyOf": [_AMOUNT, _DECIMAL, {"type": "null"}]}),  # USD, as they are sent
]
Count = Annotated[PositiveInt, Field(le=_MOST_COUNT), BeforeValidator(_no_bool)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_plain)]
Moment = Annotated[AwareDatetime, BeforeValidator(_with_zone), AfterValidator(_of_this_age)]


class KeySpec(BaseModel):
    """What a key may do. USD amounts are kept in 1e-12 USD; None: no limit of that kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text = Field(description="for people; need not be unique")
    admin: bool = Field(False, description="may manage keys and read all usage")
    usd_per_minute: Usd = Field(None, description="USD per minute")
    usd_per_day: Usd = Field(None, description="USD per day (UTC)")
    usd_per_month: Usd = Field(None, description="USD per month (UTC)")
    usd_total: Usd = Field(None, description="USD in all")
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = Field(None, description="prompt and answer together")
    concurrency: Count | None = Field(None, description="requests at once")
    models: Annotated[list[Text], Field(max_length=1000)] | None = Field(
        None, description="models and presets it may name; default: all"
    )
    default_budget_usd: Usd = Field(None, description="of a request that names no budget")
    max_budget_usd: Usd = Field(None, description="most that one request may cost")
    expires: Moment | None = Field(None, description="2027-01-31 or 2027-01-31T12:00:00Z")
    labels: Annotated[dict[Text, Text], Field(max_length=32)] = Field(default_factory=dict)

    @field_validator("max_budget_usd")
    @classmethod
    def _not_below_the_default(cls, most: int | None, info: ValidationInfo) -> int | None:
        default = info.data.get("default_budget_usd")
        if most is not None and default is not None and default > most:
            raise ValueError("must not be below default_budget_usd")
        return most

    def limits(self) -> dict[str, int | None]:
        """1e-12 USD by window."""
        return {
            "minute": self.usd_per_minute,
            "day": self.usd_per_day,
            "month": self.usd_per_month,
            "total": self.usd_total,
        }

    def row(self, id: str, digest: bytes, created: int) -> KeyRow:
        """A new key of this kind, made at `created` (milliseconds)."""
        return KeyRow(id=id, digest=digest, created=created, **self.columns())

    def columns(self) -> dict[str, Any]:
        """What is stored with the key, as opposed to its account."""
        expires = None if self.expires is None else int(self.expires.timestamp() * 1000)
        return {
            "name": self.name,
            "admin": self.admin,
            "models": None if self.models is None else tuple(self.models),
            "default_budget": self.default_budget_usd,
            "max_budget": self.max_budget_usd,
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
            "concurrency": self.concurrency,
            "expires": expires,
            "labels": self.labels,
        }


def column_of(field: str) -> str:
    """The name under which KeySpec.columns has this field, if it does."""
    return field.removesuffix("_usd")


def window_of(field: str) -> str:
    """The name under which KeySpec.limits has this field, if it does."""
    return field.removeprefix("usd_per_").removeprefix("usd_")


def described(key: KeyRow, limits: Mapping[str, int | None]) -> dict[str, Any]:
    """The fields of this key's KeySpec; amounts are decimal USD, as they may be sent."""
    expires = None if key.expires is None else datetime.fromtimestamp(key.expires / 1000, UTC)
    amounts = {
        "usd_per_minute": limits["minute"],
        "usd_per_day": limits["day"],
        "usd_per_month": limits["month"],
        "usd_total": limits["total"],
        "default_budget_usd": key.default_budget,
        "max_budget_usd": key.max_budget,
    }
    return {
        "name": key.name,
        "admin": key.admin,
        **{name: None if pico is None else usd(pico) for name, pico in amounts.items()},
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "concurrency": key.concurrency,
        "models": None if key.models is None else list(key.models),
        "expires": None if expires is None else expires.isoformat(),
        "labels": dict(key.labels),
    }
