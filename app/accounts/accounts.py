"""All accounts, as one gateway process has them: opened, asked, closed."""

from __future__ import annotations

import os
import secrets
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from limits.aio.storage import MemoryStorage, Storage
from limits.errors import ConfigurationError

from app.accounts.account import KeyAccount
from app.accounts.book import Book
from app.accounts.explanations import Explanations
from app.accounts.headroom import Headroom
from app.accounts.journal import Journal
from app.accounts.keyring import Keyring
from app.accounts.keys import fingerprint
from app.accounts.rates import Rates, RedisCounters
from app.accounts.responses import Responses
from app.errors import ConfigError
from app.storage.database import Database
from app.storage.explanations import ExplanationStore
from app.storage.keys import KeyStore
from app.storage.ledger import Ledger, milliseconds
from app.storage.rates import LedgerStorage
from app.storage.records import KeyRow
from app.storage.responses import ResponseStore
from app.storage.usage import GROUPS as GROUPS
from app.storage.usage import UsageStore


@dataclass(frozen=True)
class Terms:
    """How accounts are kept; as the settings say."""

    ledger: str  # a database's URL
    state_dir: Path
    key_secret: str | None = None
    lease_s: float = 60.0
    headroom_s: float = 0.0
    rate_store: str = "ledger"  # memory, ledger, or a Redis URL
    responses_keep_s: float = 86400.0
    responses_mib: int = 256  # for a key
    decisions_keep_s: float = 604800.0
    decisions_mib: int = 1024  # of all keys


class Accounts:
    """The ledger and what stands before it in this process."""

    def __init__(self, terms: Terms) -> None:
        """Raises ConfigError for terms that cannot be; nothing is opened yet."""
        self._process = uuid.uuid4().hex
        self._database = Database(terms.ledger)
        self._secret = _secret(terms)
        self._store = KeyStore(self._database)
        self.ledger = Ledger(self._database, self._process)
        self.keyring = Keyring(self._store, self.ledger, self._secret)
        self._journals = terms.state_dir.expanduser() / "journal"
        self.book = Book(self.ledger, Journal(self._journals, self._process), terms.lease_s)
        self.headroom = Headroom(self.book, terms.headroom_s)
        self._counters = self._database
        if terms.rate_store == "ledger" and self._database.sqlite:
            # In a file of its own, which need not outlive a power cut: no request waits for a disk.
            rates = terms.state_dir.expanduser() / "rates.db"
            self._counters = Database(f"sqlite:///{rates}", durable=False)
        self.rates = Rates(_rate_storage(terms.rate_store, self._counters))
        self.usage = UsageStore(self._database).spent
        responses = ResponseStore(self._database)
        self.responses = Responses(responses, terms.responses_keep_s, terms.responses_mib * 2**20)
        explained = ExplanationStore(self._database, milliseconds)
        most = terms.decisions_mib * 2**20
        self.explanations = Explanations(explained, terms.decisions_keep_s, most)

    async def prepare(self) -> None:
        """Bring the tables up to date. Raises ConfigError where they cannot be used."""
        await self._database.migrate()
        if self._counters is not self._database:
            await self._counters.migrate()
        ours = fingerprint(self._secret)
        if await self._store.fact("key_secret", ours) != ours:
            raise ConfigError(
                f"key_secret (FARTHING_KEY_SECRET): the keys in {self._database.name} were hashed"
                " with another secret; every gateway on one ledger needs the same"
            )

    async def start(self) -> None:
        """Prepare, and settle what dead gateways left. Raises ConfigError."""
        await self.prepare()
        # What was served on one ledger must not be settled in another that uses this folder too.
        ledger = await self._store.fact("id", uuid.uuid4().hex)
        self.book.journal = Journal(self._journals / ledger, self._process)
        await self.book.start()
        self.headroom.start()
        self.responses.start()
        self.explanations.start()

    async def aclose(self) -> None:
        """Settle what there is to settle, and give back what is held ahead."""
        await self.responses.aclose()
        await self.explanations.aclose()
        await self.headroom.aclose()
        await self.rates.aclose()
        await self.book.aclose()
        await self.close_database()

    async def close_database(self) -> None:
        """For those who only looked something up."""
        await self._database.aclose()
        await self._counters.aclose()

    def of(self, key: KeyRow | None, tenant: str = "") -> KeyAccount:
        """The account of this key; of everybody without one."""
        return KeyAccount(self.headroom, self.rates, self.explanations, key, tenant)


def _secret(terms: Terms) -> bytes:
    """What key digests are made with: as set, or a file of this machine, made once."""
    if terms.key_secret is not None:
        if len(terms.key_secret) < 16:
            raise ConfigError("key_secret (FARTHING_KEY_SECRET): must have 16 characters or more")
        return terms.key_secret.encode()
    path = terms.state_dir.expanduser() / "key_secret"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            # Linked into place whole: another process may be doing the same.
            with NamedTemporaryFile("w", dir=path.parent) as file:  # readable by its owner only
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
                with suppress(FileExistsError):
                    os.link(file.name, path)
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"state_dir (FARTHING_STATE_DIR): {path} cannot be used: {error.strerror}"
        ) from error
    if len(secret) < 16:
        raise ConfigError(f"state_dir (FARTHING_STATE_DIR): {path} holds no secret")
    return secret


def _rate_storage(store: str, database: Database) -> Storage:
    if store == "memory":
        return MemoryStorage()
    if store == "ledger":
        return LedgerStorage(database)
    if store.startswith(("redis://", "rediss://")):
        with suppress(ConfigurationError, ValueError):  # no URL, in the libraries' words
            return RedisCounters(store)
    raise ConfigError(
        "rate_store (FARTHING_RATE_STORE): must be memory, ledger, or redis://host:port/db"
    )
