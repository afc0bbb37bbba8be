"""Who watches the book hears what reached the ledger, and how long the rest has waited."""

import asyncio
import time

from tests.app.accounts.test_book import asked, book, database, new_book, paid, until

__all__ = ["book", "database", "new_book"]  # fixtures


class Watching:
    def __init__(self):
        self.times, self.settlements = [], 0

    def wrote(self, seconds):
        self.times.append(seconds)

    def settled(self, count):
        self.settlements += count


async def test_who_watches_is_told_of_each_settlement_once(new_book, database):
    book = new_book(watcher=Watching())
    await book.start()
    grants = [await book.reserve(asked(f"a{n}")) for n in range(3)]
    assert (book.held, book.watcher.settlements) == (3, 0)
    database.after, kept = 1.0, book.keep(paid(grants[0], "a0", 5))
    await until(lambda: book.away)
    assert (book.watcher.settlements, book.owed) == (0, 1)
    database.after = 0.0
    await kept
    await until(lambda: not book.away)
    assert (book.watcher.settlements, book.held) == (1, 2)
    await asyncio.gather(*(book.keep(paid(grants[n], f"a{n}", 5)) for n in (1, 2)))
    assert (book.watcher.settlements, book.held) == (3, 0)
    assert len(book.watcher.times) >= 5 and min(book.watcher.times) > 0
    await book.aclose()


async def test_the_lag_is_the_age_of_the_oldest_that_is_owed(book, database):
    grants = [await book.reserve(asked(f"a{n}")) for n in range(2)]
    assert book.lag == 0
    database.before = 1.0
    await book.keep(paid(grants[0], "a0", 5))
    await until(lambda: book.lag > 0.2)
    first = book._owed[0].since
    await book.keep(paid(grants[1], "a1", 5))
    assert [one.since for one in book._owed][0] == first < book._owed[1].since
    assert book.lag > time.monotonic() - book._owed[1].since
    database.before = 0.0
    await until(lambda: book.owed == 0)
    assert book.lag == 0
