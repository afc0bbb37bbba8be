"""The load: all that a gateway is asked in its life, in a minute, and what clients were told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.dashboards.live.house import House
from tests.prompts import OWN
from tests.upstreams.faults import FAULTS

CHAT = "/v1/chat/completions"
INT8 = "smollm2-135m-int8"
LARGE = "smollm2-135m"
SKY = "why is the sky blue"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
UNSURE = "entropy_switch;raise_at=2.0;lower_at=1.9"  # it changes hands every dozen tokens
STEERED = 'economy;start="large";lower_at="-inf"'  # the large model writes as long as it is paid
ROUNDS = 4
GUESSED = "swift;rule=fixed;longest=3;adaptive=?0"  # it guesses, worth it or not
NO_ROUTE = "/v1/nowhere"
GONE = 499  # nobody was there for the answer's head


@dataclass
class Load:
    """Clients of a gateway, and what they saw."""

    house: House
    http: httpx.AsyncClient
    tokens: dict[str, str]  # by what the key may do
    told: Counter[tuple[str, str]] = field(default_factory=Counter)  # path and status

    async def ask(
        self, model: str, content: str = SKY, path: str = CHAT, key: str = "any", **more: Any
    ) -> int:
        """One request, not streamed; its status."""
        headers = {**self._key(key), **more.pop("headers", {})}
        body = {"model": model, "max_tokens": 24, "temperature": 0}
        body |= {"messages": [{"role": "user", "content": content}], **more}
        answer = await self.http.post(path, json=body, headers=headers)
        self.told[path, str(answer.status_code)] += 1
        return answer.status_code

    async def stream(
        self, model: str, content: str = SKY, leave_after: int | None = None, **more: Any
    ) -> int:
        """One that is streamed, and left after so many events."""
        headers = {**self._key("any"), **more.pop("headers", {})}
        body = {"model": model, "max_tokens": 24, "temperature": 0, "stream": True}
        body |= {"messages": [{"role": "user", "content": content}], **more}
        async with self.http.stream("POST", CHAT, json=body, headers=headers) as answer:
            self.told[CHAT, str(answer.status_code)] += 1
            seen = 0
            async for line in answer.aiter_lines():
                seen += line.startswith("data: ")
                if seen == leave_after:
                    break
        return answer.status_code

    async def leave(self, model: str, after: float) -> None:
        """One whose client does not wait for its first byte."""
        body = {"model": model, "messages": [{"role": "user", "content": SKY}], "max_tokens": 4}
        try:
            await self.http.post(CHAT, json=body, headers=self._key("any"), timeout=after)
        except httpx.ReadTimeout:
            self.told[CHAT, str(GONE)] += 1
        else:
            raise AssertionError("it was answered too soon")

    async def get(self, path: str, key: str = "any") -> int:
        answer = await self.http.get(path, headers=self._key(key))
        self.told[path, str(answer.status_code)] += 1
        return answer.status_code

    def _key(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[name]}"}


def keys(house: House) -> dict[str, str]:
    """A key for each thing that happens to keys."""
    limits: dict[str, dict[str, Any]] = {
        "any": {},
        "hasty": {"requests_per_minute": 1},
        "poor": {"usd_total": "0.000000001"},
    }
    made = {name: house.ledger.new_key(**given)[1] for name, given in limits.items()}
    return {**made, "wrong": "sk-farthing-000000000000-" + "A" * 43}


def usd(amount: str, **more: str) -> dict[str, str]:
    return {"X-Budget-Usd": amount, **more}


async def switching(load: Load, n: int) -> None:
    """Entropy decides, budgets steer, tools do not last through a hand-over."""
    await load.stream(LARGE, OWN[n], headers={"X-Policy": UNSURE})
    await load.ask("economy", OWN[n + 7], max_tokens=16, headers=usd("0.001"))
    steered = {"X-Policy": STEERED, **usd("0.000003")}
    await load.ask("economy", OWN[n], max_tokens=16, headers=steered)
    await load.stream("relay", max_tokens=60, headers=usd("0.05"))
    await load.ask("relay", tools=[TOOL])


async def guessing(load: Load, n: int) -> None:
    await load.stream("swift", OWN[n], headers={"X-Policy": GUESSED})
    await load.ask("swift", OWN[n + 3], max_tokens=12, headers=usd("0.0001"))


async def predicting(load: Load, n: int) -> None:
    """A prompt that is long enough, one that is not, and one that is read after all."""
    notes = " ".join(f"Note {i}: item {i * i + n} is stored." for i in range(16))
    asked = f"Text {n}. {notes}\n\nWhat is stored under note 7?"
    await load.stream("ahead", asked, max_tokens=8)
    await load.stream("ahead", f"Again {asked}", headers={"X-Policy": "ahead;repair"})
    await load.ask("ahead", OWN[n], max_tokens=4)


async def choosing(load: Load, n: int) -> None:
    """The best of two answers, and a text that is shortened."""
    best = {"X-Policy": "best_of_n;n=2;choose=logprob"}
    await load.ask(INT8, OWN[n + 11], max_tokens=8, headers=best)
    notes = " ".join(f"The house number {i * n} by the river keeps a picture." for i in range(9))
    short = {"X-Policy": "compress;least=32;scorer=smollm2-tiny"}
    await load.stream(LARGE, f"{notes}\n\nWhat is kept?", max_tokens=4, headers=short)


async def planning(load: Load, n: int) -> None:
    """The best way that there is, and what a little money buys."""
    await load.stream("auto", OWN[n], max_tokens=8)
    await load.ask("auto", OWN[n + 1], max_tokens=8, headers=usd("0.000002"))


async def refusals(load: Load, n: int) -> None:
    strict = usd("0.00001", **{"X-Budget-Fallback": "strict"})
    big = {"logit_bias": {"9999": 1}}  # the server says so, not we
    statuses = [
        await load.ask(LARGE, max_tokens=4000, headers=strict),
        await load.ask(LARGE, headers=usd("0.000000000001")),
        await load.ask(LARGE, key="poor"),
        await load.ask(LARGE, key="wrong"),
        await load.ask("nobody's"),
        await load.ask(LARGE, temperature=3),
        await load.ask("small", **big),
        await load.get(NO_ROUTE),
    ]
    assert statuses == [402, 402, 402, 401, 404, 400, 400, 404], statuses
    hasty = [await load.ask("small", key="hasty", max_tokens=1) for _ in range(2)]
    assert 429 in hasty


async def limits(load: Load, n: int) -> None:
    """Budgets that cut, deadlines, clients that leave."""
    await load.ask("large", max_tokens=53, headers=usd("0.00008"))
    await load.stream("large", max_tokens=53)
    await load.stream("large", leave_after=4, max_tokens=53)
    amid = {"X-Budget-Latency-Ms": "11000", **usd("1")}  # its second token comes after 8 s
    cut = asyncio.create_task(load.stream("slow", max_tokens=9, headers=amid))
    await asyncio.sleep(0.5)  # of the next two one has to wait, whichever workers they reach
    never = load.ask("slow", headers={"X-Budget-Latency-Ms": "3000", **usd("1")})
    late, _, _ = await asyncio.gather(never, load.leave("slow", 3.0), cut)
    assert late == 504


async def others(load: Load, n: int) -> None:
    """The further endpoints."""
    await load.ask("small", path="/v1/completions", messages=None, prompt=SKY)
    await load.get("/v1/models")
    await load.get("/v1/usage")


Act = Callable[[Load, int], Awaitable[None]]
ACTS: tuple[Act, ...] = (
    switching,
    guessing,
    predicting,
    choosing,
    planning,
    refusals,
    limits,
    others,
)


async def failing(load: Load, n: int) -> None:
    """Servers break off in mid-answer, and the other model ends it; one is there no more."""
    broken = [load.house.upstreams[name] for name in ("large", "twin")]
    for _ in range(2):
        for upstream in broken:
            upstream.breaks(FAULTS["reset in mid-answer"])
        await load.stream("relay", max_tokens=60)
        for upstream in broken:
            upstream.heal()
    await load.ask("gone", max_tokens=4)


async def outage(load: Load) -> None:
    """The ledger's database goes in the midst of answers, and comes back."""
    database = load.house.database
    begun = [asyncio.create_task(load.stream("economy", OWN[n], max_tokens=48)) for n in range(2)]
    await asyncio.sleep(1)
    await asyncio.to_thread(database.stop, "immediate")
    for _ in range(4):
        many = (load.ask("small", max_tokens=4) for _ in range(4))  # so that every worker knows
        assert set(await asyncio.gather(*many)) == {503}
        await asyncio.sleep(1)
    await asyncio.gather(*begun)
    await asyncio.to_thread(database.start)
    while await asyncio.to_thread(load.house.gauge, "farthing_ledger_away") != [0]:
        await asyncio.sleep(0.5)


async def run(house: House) -> Load:
    """All of it; what happens by chance aside the same each time."""
    tokens = await asyncio.to_thread(keys, house)
    bounds = httpx.Limits(max_connections=64, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=house.url, limits=bounds, timeout=120) as http:
        load = Load(house, http, tokens)
        slow = house.upstreams["slow"]
        slow.pace, slow.waiting = 2.6, 1  # seconds a token
        for n in range(ROUNDS):
            if n == 0:
                house.kill("gone")
            if n == 1:
                house.kill("twin")
            if n == 2:
                await outage(load)
            if n == 3:
                house.start("twin")
            await asyncio.gather(*(act(load, n) for act in ACTS))
            await failing(load, n)
    return load
