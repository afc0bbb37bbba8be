"""Money held ahead: requests that fit do not wait for the database, and nothing of it gets lost."""

import asyncio

import pytest

from app.accounts.headroom import Headroom
from app.errors import LedgerUnavailable
from app.storage.ledger import Ledger
from app.storage.records import Grant
from tests.app.accounts.test_book import LIMIT, asked, database, new_book, paid, spent, until
from tests.app.storage.reaping import reap

__all__ = ["database", "new_book"]  # fixtures


@pytest.fixture
async def headroom(new_book):
    headroom = Headroom(new_book(), seconds=0.5)
    await headroom.book.start()
    headroom.start()
    yield headroom
    await headroom.aclose()
    await headroom.book.aclose()


async def reserve(headroom, number, want=100):
    granted = await headroom.reserve(asked(number, want), ahead=True)
    assert isinstance(granted, Grant)
    return granted


async def filled(headroom):
    """After a first request there is a slice."""
    first = await reserve(headroom, "first")
    await until(lambda: headroom._slices["k"])
    return first


async def test_a_request_that_fits_waits_for_nothing(headroom, database):
    first = await filled(headroom)
    before = database.transactions
    second = await reserve(headroom, "second")
    assert database.transactions == before
    assert second.id != "second.hold"
    for number, grant in (("first", first), ("second", second)):
        await headroom.book.keep(paid(grant, number, 60))
    await headroom.aclose()
    await until(lambda: not headroom.book.owed)
    assert await spent(database) == (120, 120, 0, 0)


async def test_a_request_that_does_not_fit_or_may_not_asks_the_ledger(headroom):
    await filled(headroom)
    assert (await reserve(headroom, "large", 150)).id == "large.hold"
    alone = await headroom.reserve(asked("alone"), ahead=False)
    assert alone.id == "alone.hold"


async def test_what_fits_is_served_while_the_database_is_away_and_no_more(headroom, database):
    first = await filled(headroom)
    database.before = 1.0
    with pytest.raises(LedgerUnavailable):
        await headroom.book.reserve(asked("probe"))
    second = await reserve(headroom, "second")
    with pytest.raises(LedgerUnavailable):
        await headroom.reserve(asked("third"), ahead=True)
    for number, grant in (("first", first), ("second", second)):
        await headroom.book.keep(paid(grant, number, 5))
    database.before = 0.0
    await headroom.aclose()
    await until(lambda: not headroom.book.owed and not headroom.book.away)
    assert await spent(database) == (10, 10, 0, 0)


async def test_what_is_not_used_is_given_back_soon(headroom, database):
    first = await filled(headroom)
    await headroom.book.keep(paid(first, "first", 5))
    await until(lambda: not headroom._slices)
    await until(lambda: not headroom.book.owed)
    assert await spent(database) == (5, 5, 0, 0)
    assert not headroom._recent


async def test_what_is_given_back_while_requests_hold_the_rest_is_given_back_once(
    headroom, database
):
    """A commit whose answer was lost is tried again: others' money must not be freed twice."""
    first = await filled(headroom)
    (part,) = headroom._slices["k"]
    await headroom.book.keep(paid(first, "first", 100))
    second = await reserve(headroom, "second", part.free // 2 or 1)
    await until(lambda: not headroom._filling)
    held = (await spent(database))[2]
    headroom._slices["k"].remove(part)
    free, database.after = part.free, 1.0
    headroom._give_back(part)
    await until(lambda: headroom.book.away)
    database.after = 0.0
    await until(lambda: not headroom.book.owed and not headroom.book.away)
    assert (await spent(database))[2] == held - free >= second.amount
    await headroom.book.keep(paid(second, "second", second.amount))


async def test_a_slice_that_expired_is_paid_back_but_for_what_was_spent(headroom, database):
    first = await filled(headroom)
    second = await reserve(headroom, "second")
    await headroom.book.ledger.renew([first.id, second.id], 0)
    assert await reap(Ledger(database)) == 2
    await headroom.book.keep(paid(first, "first", 7))
    await headroom.book.keep(paid(second, "second", 8))
    await headroom.aclose()
    await until(lambda: not headroom.book.owed)
    assert await spent(database) == (15, 15, 0, 0)


async def test_slices_leave_most_of_a_key_to_others(headroom, database):
    for number in range(20):
        grant = await reserve(headroom, number, 400)
        await headroom.book.keep(paid(grant, str(number), 1))
        held = (await spent(database))[2]
        assert held <= 400 + LIMIT / 10
    await asyncio.sleep(0)


async def test_many_at_once_never_hold_more_than_there_is(headroom, database):
    async def one(number):
        granted = await headroom.reserve(asked(number, 300, 300), ahead=True)
        if isinstance(granted, Grant):
            await asyncio.sleep(0.001 * (number % 7))
            await headroom.book.keep(paid(granted, str(number), 290))
            return 290
        return 0

    total = sum(await asyncio.gather(*(one(number) for number in range(100))))
    await headroom.aclose()
    await until(lambda: not headroom.book.owed)
    assert await spent(database) == (total, total, 0, 0)
    assert LIMIT * 0.8 < total <= LIMIT
