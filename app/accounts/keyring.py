"""API keys: made, found, changed; and whether a client's token is one of them."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from app.accounts.keys import (
    KeySpec,
    column_of,
    described,
    digest,
    id_of,
    new_id,
    new_token,
    window_of,
)
from app.errors import BadRequest, InvalidKey, LedgerUnavailable, UnknownKey
from app.storage.keys import KeyStore
from app.storage.ledger import Ledger, milliseconds
from app.storage.records import AccountRow, KeyRow

T = TypeVar("T")
FRESH_S = 2.0
"""For so long a process may go by what it knows of a key: a change takes effect by then."""
STALE_S = 600.0
"""For so long a known key opens the door while the database is away."""
MOST_GRACE_S = 30 * 86400
_RETRY_S = 0.5
_PATIENCE_S = 2.0
_NOTHING = bytes(32)
_FIRST = "000000000001"


@dataclass
class _Known:
    row: KeyRow
    fetched: float  # time.monotonic() when the database last said so
    good_until: float


class _Shared(Generic[T]):
    """One query for all that ask the same at the same time; nobody waits for it for long."""

    def __init__(self) -> None:
        self._asking: dict[str, asyncio.Task[T]] = {}

    async def ask(self, name: str, query: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(query())
            task.add_done_callback(lambda done: self._asked(name, done))
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise LedgerUnavailable from error

    def _asked(self, name: str, done: asyncio.Task[T]) -> None:
        self._asking.pop(name, None)
        if not done.cancelled():
            done.exception()  # perhaps nobody waited to the end


@dataclass(frozen=True)
class Held:
    """A key, and where its account stands."""

    key: KeyRow
    account: AccountRow

    def fields(self) -> dict[str, Any]:
        return described(self.key, self.account.limits)


@dataclass
class Keyring:
    """The keys of a ledger, known by a keyed hash of their tokens."""

    store: KeyStore
    ledger: Ledger
    secret: bytes
    clock: Callable[[], int] = milliseconds
    _known: dict[str, _Known] = field(default_factory=dict)
    _finding: _Shared[KeyRow | None] = field(default_factory=lambda: _Shared())
    _counting: _Shared[int] = field(default_factory=lambda: _Shared())
    _any: bool = False
    _any_until: float = 0.0

    async def any(self) -> bool:
        """Whether a key was ever made: from then on one is needed. Raises LedgerUnavailable."""
        now = time.monotonic()
        if not self._any and now >= self._any_until:
            # Believed only once the database has said it: whoever asks meanwhile asks too.
            found = await self._counting.ask("", self.store.count) > 0
            self._any, self._any_until = self._any or found, now + FRESH_S
        return self._any

    async def ever_made(self) -> bool:
        """As `any`, at a start, when no request waits: in the database's own time."""
        return await self.store.count() > 0

    async def authenticate(self, token: str | None) -> KeyRow:
        """The key of this token. Raises InvalidKey; LedgerUnavailable where that is not known."""
        if not token:
            raise InvalidKey("An API key is needed: send it as `Authorization: Bearer ...`")
        id = id_of(token)
        row = None if id is None else await self._find(id)
        if not self._opens(token, row) or row is None:
            raise InvalidKey("This is not an API key of this gateway")
        if row.revoked is not None:
            raise InvalidKey(f"The API key {row.id} was revoked")
        if row.expires is not None and row.expires <= self.clock():
            raise InvalidKey(f"The API key {row.id} has expired")
        return row

    async def create(self, spec: KeySpec) -> tuple[KeyRow, str]:
        """A new key and its token, which nobody can show again."""
        made = None
        while made is None:
            made = await self._make(spec, new_id())
        return made

    async def create_first(self) -> str | None:
        """The token of an administrator's key, if there never was a key; else None."""
        if await self.ever_made():
            return None
        spec = KeySpec(name="first key, made at the first start", admin=True)
        made = await self._make(spec, _FIRST)  # of several gateways one succeeds
        return None if made is None else made[1]

    async def _make(self, spec: KeySpec, id: str) -> tuple[KeyRow, str] | None:
        token = new_token(id)
        row = spec.row(id, digest(token, self.secret), self.clock())
        added = await self.store.add(row, spec.limits())
        self._any = True
        return (row, token) if added else None

    async def rotate(self, id: str, grace_s: float = 0.0) -> str:
        """A new token for the same key; the old one goes on for `grace_s`.

        Raises UnknownKey, and BadRequest for a grace that is none.
        """
        if not 0 <= grace_s <= MOST_GRACE_S:
            raise BadRequest(f"grace_s: must be 0 to {MOST_GRACE_S} seconds", param="grace_s")
        while True:
            old = await self._must_find(id)
            if old.revoked is not None:
                raise BadRequest(f"The API key {id} was revoked; make a new one", param="id")
            token = new_token(id)
            until = self.clock() + int(grace_s * 1000) if grace_s > 0 else None
            columns = {
                "digest": digest(token, self.secret),
                "old_digest": None if until is None else old.digest,
                "old_until": until,
            }
            # Of two at once the second replaces what the first made, and not what was before.
            if await self.store.change(id, columns, instead_of=old.digest):
                self._known.pop(id, None)
                return token

    async def revoke(self, id: str) -> None:
        """Never again. What runs goes on to its end. Raises UnknownKey."""
        old = await self._must_find(id)
        revoked = self.clock() if old.revoked is None else old.revoked
        await self._change(id, {"revoked": revoked})

    async def change(self, id: str, changes: Mapping[str, Any]) -> Held:
        """Set these fields of a KeySpec. Raises UnknownKey, and BadRequest by the field."""
        spec = checked({**(await self.show(id)).fields(), **changes})
        # Only what was named: what another administrator changes meanwhile stays changed.
        columns, limits = spec.columns(), spec.limits()
        await self._change(
            id,
            {name: columns[name] for name in map(column_of, changes) if name in columns},
            {name: limits[name] for name in map(window_of, changes) if name in limits},
        )
        return await self.show(id)

    async def show(self, id: str) -> Held:
        """Raises UnknownKey."""
        key, account = await self._must_find(id), await self.ledger.account(id)
        if account is None:
            raise _unknown(id)
        return Held(key, account)

    async def all(self) -> list[Held]:
        """Every key that there is or was, oldest first."""
        accounts = await self.ledger.accounts()
        keys = await self.store.all()
        return [Held(key, accounts[key.id]) for key in keys if key.id in accounts]

    def _opens(self, token: str, row: KeyRow | None) -> bool:
        """Whether this token is the key's; as long for one that there is not as for a wrong one."""
        given = digest(token, self.secret)
        current = hmac.compare_digest(given, _NOTHING if row is None else row.digest)
        before = row.old_digest if row is not None else None
        previous = hmac.compare_digest(given, before or _NOTHING)
        in_time = row is not None and (row.old_until or 0) > self.clock()
        return row is not None and (current or (previous and in_time))

    async def _find(self, id: str) -> KeyRow | None:
        now, known = time.monotonic(), self._known.get(id)
        if known is not None and now < known.good_until:
            return known.row
        try:
            row = await self._finding.ask(id, partial(self.store.find, id))
        except LedgerUnavailable:
            if known is None or now - known.fetched > STALE_S:
                raise
            known.good_until = now + _RETRY_S
            return known.row
        if row is None:
            self._known.pop(id, None)
        else:
            self._known[id] = _Known(row, now, now + FRESH_S)
        return row

    async def _must_find(self, id: str) -> KeyRow:
        # PostgreSQL has no text for some characters that a URL can hold.
        row = await self.store.find(id) if id.isprintable() else None
        if row is None:
            raise _unknown(id)
        return row

    async def _change(
        self, id: str, columns: Mapping[str, Any], limits: Mapping[str, int | None] | None = None
    ) -> None:
        await self.store.change(id, columns, limits)
        self._known.pop(id, None)


def checked(fields: Mapping[str, Any]) -> KeySpec:
    """A KeySpec of these fields. Raises BadRequest naming the one at fault."""
    try:
        return KeySpec.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        message = first["msg"].removeprefix("Value error, ")
        raise BadRequest(f"{param or 'key'}: {message}", param=param) from None


def _unknown(id: str) -> UnknownKey:
    return UnknownKey(f"There is no API key {id[:32]!r}", param="id")
