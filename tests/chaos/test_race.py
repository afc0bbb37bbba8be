"""Four processes, 64 requests at once in each, one key: not a micro-dollar too much."""

import asyncio
import time

import pytest

from app.catalog import PICO
from tests.chaos.gateways import COST, PATIENT, Ledger, ask, connections, gateways

PROCESSES, AT_ONCE = 4, 64
LIMIT = COST * (PROCESSES * AT_ONCE // 10)  # USD; a tenth of the requests exhausts it


@pytest.fixture
def ledger(ledger_url, tmp_path, headroom_s):
    return Ledger(ledger_url, tmp_path, {"FARTHING_HEADROOM_S": headroom_s})


async def storm(urls, token):
    """All requests at once; afterwards one by one, until the key has no more."""
    async with connections(PROCESSES * AT_ONCE) as http:
        answers = await asyncio.gather(
            *(
                ask(
                    http,
                    url,
                    token,
                    stream=bool(number % 2),
                    model=("small", "economy")[number % 3 == 0],
                    **({"max_tokens": 30} if number % 5 else {}),
                )
                for url in urls
                for number in range(AT_ONCE)
            )
        )
        for _ in range(200):
            last = await ask(http, urls[0], token, max_tokens=30)
            answers.append(last)
            if last.status == 402:
                return answers
            await asyncio.sleep(0.05 if last.status == 429 else 0)
    raise AssertionError(f"the key was never spent: {last}")


def nothing_held(ledger, key):
    """At once; what is held ahead is given back soon."""
    end = time.monotonic() + (5 if ledger.more["FARTHING_HEADROOM_S"] != "0" else 0)
    while ledger.account(key).running and time.monotonic() < end:
        time.sleep(0.2)
    account = ledger.account(key)
    assert (account.held["month"], account.running) == (0, 0)


@pytest.mark.parametrize(
    ("ledger_url", "headroom_s"),
    [
        pytest.param("sqlite", "0", id="exact-sqlite"),
        pytest.param("postgres", "0", id="exact-postgres", marks=pytest.mark.postgres),
        pytest.param(
            "postgres", "1", id="headroom-postgres", marks=[pytest.mark.postgres, pytest.mark.slow]
        ),
        # It differs in one thing from each of two above.
        pytest.param("sqlite", "1", id="headroom-sqlite", marks=pytest.mark.slow),
    ],
    indirect=["ledger_url"],
)
@pytest.mark.parametrize("runs", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_key_cannot_be_overspent(ledger, runs):
    with gateways(ledger, PROCESSES, "0.001", program=PATIENT) as running:
        urls = [gateway.url for gateway in running]
        for _ in range(runs):
            key, token = ledger.new_key(usd_per_month=str(LIMIT))
            answers = asyncio.run(storm(urls, token))
            assert {a.status for a in answers} <= {200, 402, 429}
            told = sum(a.cost for a in answers if a.status == 200)
            account = ledger.account(key)
            assert told == ledger.settled(key) == account.spent["month"] == account.spent["total"]
            assert told <= LIMIT * PICO
            # What is left does not pay for a prompt and a token.
            assert LIMIT * PICO - told < 7 * PICO // 10**6
            nothing_held(ledger, key)
        assert ledger.reservations() == 0
        assert [gateway.stop() for gateway in running] == [0] * PROCESSES
        assert "ERROR" not in "".join(gateway.said() for gateway in running)
