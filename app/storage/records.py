"""What is written in the ledger, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ANONYMOUS = "anonymous"
"""The account of those who need no key."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose request it was, who may name what is kept of it."""

    key: str
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A response that its owner may name."""

    ended: bool
    content: str  # JSON


@dataclass(frozen=True, slots=True)
class Line:
    """What one model was paid for in one request; tokens, and 1e-12 USD."""

    model: str
    prompt: int
    cached: int
    completion: int
    visible: int
    cost: int
    drafted: int = 0
    accepted: int = 0  # among `completion`
    predicted: int = 0  # among `prompt`
    gpu_us: int | None = None  # accelerator-microseconds; None: its card does not say


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an answer came out as it did."""

    request_id: str  # what its client knows it by
    keep: int  # milliseconds, from when it is written
    content: str  # JSON


@dataclass(frozen=True, slots=True)
class Explained:
    """The explanation of one answer, and whose it is."""

    id: str
    owner: Owner
    explanation: Explanation


@dataclass(frozen=True, slots=True)
class Settlement:
    """One request that was paid for; or money that no answer accounts for, without `prices`."""

    id: str
    key: str
    policy: str = ""
    model: str = ""
    outcome: str = ""
    prompt: int = 0
    completion: int = 0
    cost: int = 0  # 1e-12 USD
    prices: str = ""
    tenant: str = ""
    lines: tuple[Line, ...] = ()
    gpu_us: int | None = None  # the sum of the lines; None where one does not say
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Windows:
    """The minute, day and month (UTC) that spending counts in: their first seconds."""

    minute: int
    day: int
    month: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """Hold `want` of a key's rest, or what there is of it, but at least `least`.

    `ahead` is wanted on top, of at most a sixteenth of what is left then.
    """

    id: str
    key: str
    want: int
    least: int
    ahead: int = 0
    concurrency: int | None = None  # refuse where so many reservations of this key are open
    policy: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Settle:
    """Record a request's cost and give back the `amount` that a reservation held for it.

    It is done once for each settlement's id, however often it is tried.
    """

    reservation: str
    amount: int
    windows: Windows
    settlement: Settlement

    @property
    def key(self) -> str:
        return self.settlement.key


@dataclass(frozen=True, slots=True)
class Release:
    """Give back a whole reservation of which nothing was spent, if it was made at all."""

    reservation: str
    key: str


@dataclass(frozen=True, slots=True)
class Grant:
    """A reservation that was made."""

    id: str
    amount: int
    windows: Windows
    good_until: int  # seconds; when its day ends, or its minute where that has a limit


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reservation that was not made, and the limit that forbids it."""

    limit: str  # minute, day, month, total or concurrency
    amount: int  # of the limit: 1e-12 USD, or reservations
    spent: int
    held: int
    resets: int | None = None  # seconds; when the window ends


Op = Reserve | Settle | Release
Result = Grant | Refusal | None


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An API key as it is stored; its token is not."""

    id: str
    name: str
    digest: bytes
    admin: bool
    created: int  # milliseconds
    old_digest: bytes | None = None
    old_until: int | None = None
    expires: int | None = None
    revoked: int | None = None
    models: tuple[str, ...] | None = None
    default_budget: int | None = None  # 1e-12 USD
    max_budget: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AccountRow:
    """What a key may spend and has spent, as of now: limit, spent and held by window."""

    limits: Mapping[str, int | None]  # 1e-12 USD, by window
    spent: Mapping[str, int]
    held: Mapping[str, int]
    running: int  # reservations


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Spending of one group of settlements."""

    group: Mapping[str, Any]
    requests: int
    prompt: int
    cached: int
    completion: int
    cost: int
    gpu_us: int | None = None  # of the models that said it at the time; None: none did
