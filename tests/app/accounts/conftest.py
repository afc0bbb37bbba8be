"""Keyrings of several processes on one database, and a clock for them."""

import pytest

from app.accounts import keyring as module
from app.accounts.keyring import Keyring
from app.errors import InvalidKey, LedgerUnavailable
from app.storage.database import Database
from app.storage.keys import KeyStore
from app.storage.ledger import Ledger

SECRET = b"a secret of 16 bytes or more"


class Time:
    """The keyring's two clocks, which only go on when they are told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def milliseconds(self):
        return int(self.now * 1000)


@pytest.fixture
def clock(monkeypatch):
    clock = Time()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
async def rings(ledger_url, clock):
    """Makes keyrings of several processes."""
    databases = []

    async def make(secret=SECRET):
        database = Database(ledger_url)
        databases.append(database)
        await database.migrate()
        store = KeyStore(database)
        return Keyring(store, Ledger(database), secret, clock.milliseconds)

    yield make
    for database in databases:
        await database.aclose()


@pytest.fixture
async def ring(rings):
    return await rings()


@pytest.fixture
def asked(monkeypatch):
    """The ids that a database was asked for."""
    asked = []
    find = KeyStore.find

    async def counted(self, id):
        asked.append(id)
        return await find(self, id)

    monkeypatch.setattr(KeyStore, "find", counted)
    return asked


@pytest.fixture
def away(monkeypatch):
    """Takes the database away."""

    async def unavailable(*_):
        raise LedgerUnavailable("away")

    def go():
        monkeypatch.setattr(KeyStore, "find", unavailable)
        monkeypatch.setattr(KeyStore, "count", unavailable)

    return go


async def opens(ring, token):
    try:
        await ring.authenticate(token)
    except InvalidKey:
        return False
    return True


def wrong(token):
    return token[:-1] + ("A" if token[-1] != "A" else "B")
