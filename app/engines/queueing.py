"""Who waits for a place, and who is next: in turn among accounts, in order within one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import FarthingError

P = TypeVar("P")  # a place


class QueueFull(Exception):
    """As many wait already as may."""


@dataclass(eq=False, slots=True)
class _Waiter(Generic[P]):
    take: Callable[[], P | None]
    granted: asyncio.Future[P]

    def served(self) -> bool:
        """Give it a place, or the reason why it will never get one. False: it must wait on."""
        if self.granted.done():  # it was cancelled, and has not come round to leaving
            return True
        try:
            place = self.take()
        except FarthingError as error:
            self.granted.set_exception(error)
            return True
        if place is None:
            return False
        self.granted.set_result(place)
        return True


class FairQueue(Generic[P]):
    """Hands out places that others keep.

    A waiter brings `take`, which takes a place, returns None while there is none, and raises a
    FarthingError when there will never be one; and `give`, which gives an unused place back. Who
    keeps the places calls `pump` whenever one may have become free, or will never.
    """

    def __init__(self, most: int) -> None:
        """`most`: waiters at once."""
        self.most = most
        self._lines: OrderedDict[str, OrderedDict[_Waiter[P], None]] = OrderedDict()
        self._ahead: OrderedDict[_Waiter[P], None] = OrderedDict()
        self._waiting = 0  # in the lines

    @property
    def waiting(self) -> int:
        return self._waiting + len(self._ahead)

    async def wait(
        self,
        account: str,
        take: Callable[[], P | None],
        give: Callable[[P], None],
        *,
        ahead: bool = False,
    ) -> P:
        """A place, at once or in turn. Raises QueueFull, and what `take` raises.

        `ahead`: for who had its turn already and needs another place. It goes before all others
        and is never refused, but may be choosy: it holds nobody up.
        """
        if ahead or not self._lines:  # else there is no place, and nobody may overtake
            place = take()
            if place is not None:
                return place
        if not ahead and self._waiting >= self.most:
            raise QueueFull
        waiter: _Waiter[P] = _Waiter(take, asyncio.get_running_loop().create_future())
        self._join(waiter, account, ahead)
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            self._leave(waiter, account)
            granted = waiter.granted
            if not granted.cancelled() and granted.done() and granted.exception() is None:
                give(granted.result())  # it came too late: the next one shall have it
            raise

    def pump(self) -> None:
        """Serve whoever can be served now."""
        for waiter in list(self._ahead):
            if waiter.served():
                del self._ahead[waiter]
        while self._lines:
            account = next(iter(self._lines))
            waiter = next(iter(self._lines[account]))
            skipped = waiter.granted.done()
            if not waiter.served():
                return
            self._leave(waiter, account)
            if not skipped and account in self._lines:
                self._lines.move_to_end(account)

    def _join(self, waiter: _Waiter[P], account: str, ahead: bool) -> None:
        if ahead:
            self._ahead[waiter] = None
        else:
            self._lines.setdefault(account, OrderedDict())[waiter] = None
            self._waiting += 1

    def _leave(self, waiter: _Waiter[P], account: str) -> None:
        self._ahead.pop(waiter, None)
        line = self._lines.get(account)
        if line is not None and waiter in line:
            del line[waiter]
            self._waiting -= 1
            if not line:
                del self._lines[account]
