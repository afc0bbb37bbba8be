"""Why answers came out as they did: kept with what they cost, found again by their ids."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.bill import Receipt
from app.errors import LedgerUnavailable
from app.storage.explanations import ExplanationStore
from app.storage.records import Explained, Explanation, Owner

_SWEPT_S = 60.0
_SUMMED = 64 * 2**20  # bytes written here, after which the sum of all is looked at
_WRITTEN_S = 0.5
_EVER = 2**62  # milliseconds
_WAITING = 256  # refused answers that wait to be written; further ones are not kept
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """One explanation, and whose answer it is of."""

    id: str
    owner: Owner
    request_id: str
    content: dict[str, Any]

    @property
    def document(self) -> dict[str, Any]:
        """All of it, as people and programs read it."""
        return {
            "id": self.id,
            "object": "decisions",
            "request_id": self.request_id,
            "key": self.owner.key,
            **({"tenant": self.owner.tenant} if self.owner.tenant else {}),
            **self.content,
        }


def _found(one: Explained) -> Found:
    kept = one.explanation
    return Found(one.id, one.owner, kept.request_id, json.loads(kept.content))


class Explanations:
    """Those of all keys, as one process has them."""

    def __init__(self, store: ExplanationStore, keep_s: float, most: int) -> None:
        """`most`: bytes kept in all. With `keep_s` 0 nothing is ever kept."""
        self._store = store
        self._keep = int(keep_s * 1000)
        self._most = most
        self._unsummed = _SUMMED  # not known what others wrote before
        self._waiting: list[Explained] = []
        self._tender: asyncio.Task[None] | None = None

    @property
    def on(self) -> bool:
        return self._keep > 0

    def start(self) -> None:
        self._tender = asyncio.create_task(self._tend())

    async def aclose(self) -> None:
        if self._tender is not None:
            self._tender.cancel()
            await asyncio.gather(self._tender, return_exceptions=True)
            with suppress(LedgerUnavailable):  # it has been logged
                await self._write()

    def of(self, receipt: Receipt) -> Explanation | None:
        """To be kept with its settlement; None: nothing is."""
        if not self.on or receipt.explain is None:
            return None
        try:
            content = receipt.explain()
        except Exception:  # a bug of ours; what was spent must be settled all the same
            log.exception("answer %s cannot be explained", receipt.id)
            return None
        self._unsummed += len(content)
        return Explanation(receipt.request_id, self._keep, content)

    def refused(self, owner: Owner, receipt: Receipt) -> None:
        """Keep this one, which nothing settles, unless too many such wait."""
        if self._tender is None or len(self._waiting) >= _WAITING:
            return
        explanation = self.of(receipt)
        if explanation is not None:
            self._waiting.append(Explained(receipt.id, owner, explanation))

    async def find(self, id: str, owner: Owner | None) -> Found | None:
        """That of the answer with this id, else of the newest one whose client gave it this id.

        `owner`: whose it must be; None: anybody's. Raises LedgerUnavailable.
        """
        if not id.isprintable() or not id.isascii() or len(id) > 128:
            return None
        found = await self._store.find(id, owner)
        return None if found is None else _found(found)

    async def each(
        self, key: str | None, since: int | None = None, until: int | None = None
    ) -> AsyncGenerator[Found]:
        """Those of answers in these seconds, `until` excluded. Raises LedgerUnavailable.

        `key`: whose they must be; None: anybody's.
        """
        first, end = (since or 0) * 1000, _EVER if until is None else until * 1000
        after: tuple[int, str] | None = (0, "")
        while after is not None:
            found, after = await self._store.page(key, first, end, after)
            for one in found:
                yield _found(one)

    async def _tend(self) -> None:
        swept = time.monotonic()
        while True:
            await asyncio.sleep(_WRITTEN_S)
            now = time.monotonic()
            try:
                await self._write()
                if now - swept > _SWEPT_S or self._unsummed > 2 * _SUMMED:
                    swept = now
                    await self._sweep()
            except LedgerUnavailable:
                pass  # it has been logged; the next round tries again
            except Exception:  # a task of the process: it must not end with what went wrong once
                log.exception("explanations are not tended")

    async def _write(self) -> None:
        """Those that were refused; when the ledger is away they are lost."""
        new, self._waiting = self._waiting, []
        if new:
            await self._store.add(new)

    async def _sweep(self) -> None:
        sums = self._unsummed >= _SUMMED
        if swept := await self._store.sweep(self._most if sums else None):
            log.info("swept %d explanations", swept)
        self._unsummed = 0 if sums else self._unsummed
