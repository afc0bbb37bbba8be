"""Real gateway processes over a scripted engine, on one ledger; and clients for them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from app.accounts.keys import KeySpec
from app.catalog import PICO
from app.factory import open_accounts
from app.settings import Settings

ROOT = Path(__file__).parents[2]
PROMPT = "why is the sky blue"
WORDS = 30
# One answer of `small`: 5 tokens of prompt at 1 USD per million, 30 of answer at 2.
COST = Decimal("0.000065")

PROGRAM = """
import sys
from app import server
from app.factory import create_app
from app.settings import Settings
from tests.policies.scripts import engine, fleet

fake = engine([0.1] * 12 + [6.0] * 28, length=30, delay=float(sys.argv[1]))
server.create_app = lambda settings, catalog: create_app(settings, catalog=fleet(), engine=fake)
server.serve(Settings())
"""
# Whose requests wait for the ledger however busy the machine is: none is refused for that.
PATIENT = f"""
from functools import partial
from app.accounts import accounts, keyring
from app.storage import database

accounts.Book = partial(accounts.Book, patience_s=60)
keyring._PATIENCE_S = database._PATIENCE_S = 60
{PROGRAM}"""


@dataclass
class Ledger:
    """One ledger, and how every process of a test finds it."""

    url: str
    folder: Path
    more: dict[str, str]

    def environment(self) -> dict[str, str]:
        ours = {
            "FARTHING_LEDGER": self.url,
            "FARTHING_STATE_DIR": str(self.folder),
            "FARTHING_KEY_SECRET": "a secret of the tests",
            "FARTHING_CONFIG": str(ROOT / "app" / "farthing.toml"),
            "FARTHING_LOG_LEVEL": "warning",
            "FARTHING_PORT": "0",
        }
        return {**os.environ, **ours, **self.more}

    def ask(self, question: Any) -> Any:
        """What this coroutine function finds out about the accounts."""
        names = Settings.model_fields
        given = {k[9:].lower(): v for k, v in self.environment().items() if k[9:].lower() in names}

        async def run() -> Any:
            accounts = open_accounts(Settings(**given))
            try:
                await accounts.prepare()
                return await question(accounts)
            finally:
                await accounts.close_database()

        return asyncio.run(run())

    def new_key(self, **limits: Any) -> tuple[str, str]:
        """The id and the token of a key with these limits."""

        async def make(accounts: Any) -> tuple[str, str]:
            row, token = await accounts.keyring.create(KeySpec(name="racer", **limits))
            return row.id, token

        return self.ask(make)

    def account(self, key: str) -> Any:
        return self.ask(lambda accounts: accounts.ledger.account(key))

    def settled(self, key: str) -> int:
        """The sum of a key's settlements, 1e-12 USD."""
        (total,) = self.ask(lambda accounts: accounts.usage((), key=key))
        return total.cost

    def reservations(self) -> int:
        return self.ask(lambda accounts: accounts.ledger.open_reservations())


class Gateway:
    """One process."""

    def __init__(self, ledger: Ledger, program: str = PROGRAM, *args: str) -> None:
        self._log = (ledger.folder / f"gateway-{time.monotonic_ns()}.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", program, *args],
            cwd=ROOT, env=ledger.environment(), text=True,
            stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        self.url = ""

    def ready(self) -> Gateway:
        """Waits until it says where it is."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("Farthing is ready at "):
                self.url = line.split()[-1]
                return self
        raise AssertionError(f"it did not start: {self.said()}")

    def said(self) -> str:
        return Path(self._log.name).read_text()

    def kill(self) -> None:
        if self.process.returncode is None or not self._log.closed:
            self.process.kill()
            self.process.communicate()
            self._log.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def gateways(
    ledger: Ledger, count: int, *args: str, program: str = PROGRAM
) -> Iterator[list[Gateway]]:
    started = [Gateway(ledger, program, *args) for _ in range(count)]
    try:
        yield [gateway.ready() for gateway in started]
    finally:
        for gateway in started:
            gateway.kill()


def pico(usd: float | str) -> int:
    """What a client was told, as the integer it was made from."""
    return int((Decimal(str(usd)) * PICO).to_integral_value())


@dataclass
class Answer:
    status: int
    cost: int | None = None  # 1e-12 USD, as the client was told; None: it was not
    error: dict[str, Any] | None = None
    tokens: int = 0


async def ask(
    http: httpx.AsyncClient, url: str, token: str, *, stream: bool = False, **fields: Any
) -> Answer:
    """One request, as a client sees it end."""
    body = {"model": "small", "messages": [{"role": "user", "content": PROMPT}], **fields}
    headers = {"Authorization": f"Bearer {token}"}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = await http.post(f"{url}/v1/chat/completions", json=body, headers=headers)
    if answer.status_code != 200:
        return Answer(answer.status_code, error=answer.json()["error"])
    if not stream:
        usage = answer.json()["usage"]
        return Answer(200, pico(usage["cost"]), tokens=usage["completion_tokens"])
    usages = [
        json.loads(line[6:])["usage"]
        for line in answer.text.splitlines()
        if line.startswith('data: {"id"') and '"usage":{' in line
    ]
    return Answer(200, pico(usages[-1]["cost"]) if usages else None)


def connections(count: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)
    return httpx.AsyncClient(limits=limits, timeout=60)
