"""What tokens cost and what they take of accelerators, in integers of 1e-12 of a unit."""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

from app.types import Usage

PICO = 10**12  # money is kept in integers of 1e-12 USD


def usd(pico: int) -> str:
    """1e-12 USD as plain decimal USD, exactly."""
    return _decimal(pico, 12)


def seconds(us: int) -> str:
    """Microseconds as plain decimal seconds, exactly."""
    return _decimal(us, 6)


def _decimal(amount: int, digits: int) -> str:
    whole, fraction = divmod(abs(amount), 10**digits)
    text = f"{whole}.{fraction:0{digits}d}".rstrip("0").rstrip(".")
    return f"-{text}" if amount < 0 else text


def _millionths(value: object, most: int, unit: str) -> int:
    """This number as integers of 1e-6: exact, or refused."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"must be a number of {unit}")
    number = Decimal(str(value))
    # Bounded first: the integer of 1e999999999 would take for ever.
    fits = number.is_finite() and 0 <= number <= most
    if not fits or number * 10**6 != int(number * 10**6):
        raise ValueError(f"must be 0 to {most:,} {unit}, in steps of 0.000001")
    return int(number * 10**6)


class Tariff(BaseModel):
    """What a token takes, in 1e-12 of a unit; the file says units per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: ClassVar[str]
    most: ClassVar[int]  # units per million tokens

    input: int
    output: int
    cached_input: int | None = None  # None: as `input`
    drafted: int | None = None  # guessed ahead and verified, whoever guesses; None: as `input`
    predicted: int | None = None  # of a prompt whose KV was predicted; None: as `input`

    @field_validator("*", mode="before")
    @classmethod
    def _exact(cls, value: object) -> int | None:
        unit = f"{cls.unit} per million tokens"
        return None if value is None else _millionths(value, cls.most, unit)

    @field_validator("cached_input", "predicted")
    @classmethod
    def _not_dearer(cls, value: int | None, info: ValidationInfo) -> int | None:
        # Reservations take the prompt as uncached; that is a bound only if this holds.
        if value is not None and value > info.data.get("input", value):
            raise ValueError("must not be above that of uncached input")
        return value

    @property
    def guess(self) -> int:
        """Of a drafted token."""
        return self.input if self.drafted is None else self.drafted

    def of(self, usage: Usage) -> int:
        """What this usage takes, in 1e-12 units, exactly.

        A guess that stays was read and not written: it costs what a drafted token costs.
        """
        cached = self.input if self.cached_input is None else self.cached_input
        predicted = self.input if self.predicted is None else self.predicted
        return (
            (usage.prompt - usage.cached - usage.predicted) * self.input
            + usage.cached * cached
            + usage.predicted * predicted
            + (usage.completion - usage.accepted) * self.output
            + usage.drafted * self.guess
        )

    def written(self, longest: int = 0) -> int:
        """The most that a token of an answer takes where `longest` are guessed for one pass.

        Each pass writes one token at least.
        """
        return self.output + longest * self.guess

    def buys(self, amount: int, prompt: int, longest: int = 0) -> int:
        """Tokens of an answer that this amount pays for surely, after an uncached prompt."""
        rest = amount - prompt * self.input
        if rest < 0:
            return 0
        each = self.written(longest)
        return rest // each if each else sys.maxsize

    @property
    def full(self) -> dict[str, int]:
        """What a token of each kind takes, in 1e-12 units: defaults filled in."""
        other = {kind: getattr(self, kind) for kind in ("cached_input", "drafted", "predicted")}
        filled = {kind: self.input if one is None else one for kind, one in other.items()}
        return {"input": self.input, "output": self.output, **filled}


class Price(Tariff):
    """What a token costs, in 1e-12 USD; the file says USD per million tokens."""

    unit = "USD"
    most = 10**6


class GpuSeconds(Tariff):
    """What a token takes of accelerators that do nothing else, in 1e-12 s of one of them.

    The file says accelerator-seconds per million tokens: idealized, never wall time.
    """

    unit = "accelerator-seconds"
    most = 10**8

    def microseconds(self, usage: Usage) -> int:
        """What this usage takes, rounded up."""
        return -(-self.of(usage) // 10**6)

    def price(self, hour: int) -> Price:
        """Of a token, where an hour of one accelerator costs so many 1e-6 USD; rounded up."""
        pico = {kind: -(-taken * hour // (3600 * 10**6)) for kind, taken in self.full.items()}
        if max(pico.values()) > Price.most * 10**6:
            raise ValueError(
                f"usd_per_hour makes it more than {Price.most:,} USD per million tokens"
            )
        return Price.model_validate({kind: Decimal(one).scaleb(-6) for kind, one in pico.items()})


PerHour = Annotated[int, BeforeValidator(lambda usd: _millionths(usd, 10**6, "USD per hour"))]
"""1e-6 USD for an hour of one accelerator; the file says USD."""
