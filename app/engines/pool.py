"""The replicas of one model as one engine: who gets a place, where, and what if it fails."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from random import Random
from typing import TypeVar

from app.catalog import ModelCard
from app.engines.affinity import Affinity, links
from app.engines.backend import Backend
from app.engines.queueing import FairQueue, QueueFull
from app.engines.replica import Replica
from app.errors import (
    DeadlineExceeded,
    EngineLost,
    EngineUnavailable,
    FarthingError,
    Overloaded,
    blamed,
)
from app.types import Call, Capabilities, Chunk, Load, Speculates, Tokens, Tried

T = TypeVar("T")

_RECENT = 64  # calls whose durations tell how long others will take
_ENTROPY = (None, "bounds", "exact")  # weakest first
_NOTHING = Chunk()


class Pool:
    """An Engine for one model, served by replicas.

    A call runs in a place: each ready replica has as many as its card's `max_running`, and who
    finds none waits in turn. A call holds one place at most and none while it waits, and a policy
    closes one call's stream before it opens the next: so answers that go from model to model
    never wait for each other in a circle.
    """

    def __init__(
        self,
        card: ModelCard,
        *,
        max_waiting: int,
        margin: int,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`margin`: calls by which the replica that knows a prompt may be busier than another."""
        self.card = card
        self.replicas: tuple[Replica, ...] = ()
        self._margin = margin
        self._random = random
        self._clock = clock
        self._closed = False
        self._queue = FairQueue[Replica](max_waiting)
        self._affinity = Affinity()
        self._took: deque[float] = deque(maxlen=_RECENT)  # seconds in a place
        self._left = asyncio.Event()

    def renew(self, card: ModelCard, replicas: Sequence[Replica]) -> list[Replica]:
        """Serve by these from now on. Returns those that are left out: let them end their calls."""
        gone = [replica for replica in self.replicas if replica not in replicas]
        self.card, self.replicas = card, tuple(replicas)
        for replica in replicas:
            replica.changed = self._queue.pump
        self._queue.pump()
        return gone

    def close(self) -> None:
        """Take no more calls; who waits gets EngineUnavailable."""
        self._closed = True
        self._queue.pump()

    async def quiet(self, replicas: Sequence[Replica]) -> None:
        """Wait until these run nothing of ours. Who waits for a place is served before that."""
        while any(replica.used for replica in replicas):
            self._left.clear()
            await self._left.wait()

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        """Answer a call, as `Engine` says, on one replica or, before anything was said, another.

        Raises Overloaded when too many wait, DeadlineExceeded when its deadline passes while it
        waits, and EngineUnavailable when no replica is ready.
        """
        chain = self._links(call)
        tried: list[Replica] = []
        failure: FarthingError | None = None
        while True:
            asked = self._clock()
            replica = await self._place(call, chain, tried, failure)
            began, begun, spoke = self._clock(), False, False
            tried.append(replica)
            outcome: Tried = "closed"
            why = ""
            if call.watch is not None:
                call.watch.waited(began - asked)
            try:
                async with aclosing(replica.backend.generate(call)) as stream:
                    async for chunk in stream:
                        spoke = spoke or _shows(chunk)
                        # What says nothing binds nobody to this replica; that it came tells who
                        # pays that a server has been set to work.
                        begun = spoke or begun or not _says_nothing(chunk)
                        if chunk.finish is not None:
                            outcome = "ok"
                        yield chunk
                return
            except FarthingError as error:
                spoke = False
                outcome, why = blamed(error), error.message
                replica.failed(error)
                if begun or not self._elsewhere(call, replica, error, tried):
                    raise
                failure = error
            except Exception as error:
                outcome = blamed(error)  # a bug of ours: it is nobody's wish that it ends
                raise
            finally:
                if spoke:  # whoever closed it: in mid-answer a server can still break off
                    replica.worked()
                self._leave(replica, began)
                if call.watch is not None:
                    call.watch.tried(replica.place, outcome, why)

    async def count(self, call: Call) -> int:
        """Prompt tokens of this call. Raises as `generate` does, but needs no place."""
        return await self._told(call, lambda backend: backend.count(call), follows=True)

    async def tokenize(self, call: Call, names: bool) -> Tokens:
        """The prompt of this call. Raises as `count`."""
        return await self._told(call, lambda backend: backend.tokenize(call, names))

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """The text of these ids. Raises as `count`."""
        call = Call(model, prompt=tuple(ids))
        return await self._told(call, lambda backend: backend.detokenize(model, ids))

    async def _told(
        self, call: Call, ask: Callable[[Backend], Awaitable[T]], follows: bool = False
    ) -> T:
        """What a server answers to a small question about this call, which may itself follow."""
        chain = self._links(call)
        tried: list[Replica] = []
        while True:
            among = self._ready(tried)
            if not among:
                raise self._unavailable()
            # Let a call that follows find its server free, and be known there.
            replica = self._choose(call, chain, self._free(among) or among)
            if follows:
                self._affinity.read(chain, replica.url, self._urls())
            tried.append(replica)
            replica.counting += 1
            try:
                return await ask(replica.backend)
            except FarthingError as error:
                replica.failed(error)
                if not self._elsewhere(call, replica, error, tried, harmless=True):
                    raise
            finally:
                replica.counting -= 1
                self._left.set()

    def capabilities(self, model: str) -> Capabilities:
        """What every ready replica can do; where none is, what those could that ever were."""
        known = self._ready() or [replica for replica in self.replicas if replica.known]
        found = [replica.backend.capabilities(self.card.name) for replica in known]
        if not found:
            return Capabilities(self.card.family, self.card.context or 0)
        if len(found) == 1 and not (found[0].speculation or found[0].kv):
            return found[0]  # there is nothing to agree on
        weakest = min(found, key=lambda each: _ENTROPY.index(each.entropy))
        return Capabilities(
            family=self.card.family,
            context=min(each.context for each in found),
            entropy=weakest.entropy,
            stop_on_entropy=all(each.stop_on_entropy for each in found),
            native=all(each.native for each in found),
            overrun=max(each.overrun for each in found),
            speculation=_common([each.speculation for each in found]),
            kv=_predictors([each.kv for each in found]),
            embeds=all(each.embeds for each in found),
        )

    def load(self, model: str) -> Load:
        """Our calls in the servers; and those that wait here, with all that others have there."""
        return Load(
            healthy=bool(self._ready()),
            running=sum(replica.running for replica in self.replicas),
            waiting=self._queue.waiting + sum(replica.others for replica in self.replicas),
        )

    async def _place(
        self,
        call: Call,
        chain: Sequence[bytes],
        tried: Sequence[Replica],
        failure: FarthingError | None,
    ) -> Replica:
        """A replica with a place for this call, which is taken. `failure`: of the last attempt."""

        def take() -> Replica | None:
            among = self._ready(tried)
            if not among:
                raise failure or self._unavailable()
            free = self._free(among)
            return self._enter(call, chain, free) if free else None

        deadline = call.goals.deadline
        left = None if deadline is None else deadline - self._clock()
        if left is not None and left <= 0:
            raise self._late()
        place = self._queue.wait(call.account, take, self._give_back, ahead=failure is not None)
        try:
            if left is None:
                return await place
            async with asyncio.timeout(left):
                return await place
        except QueueFull:
            raise self._overloaded() from None
        except TimeoutError:
            raise self._late() from None

    def _enter(self, call: Call, chain: Sequence[bytes], free: Sequence[Replica]) -> Replica:
        replica = self._choose(call, chain, free)
        replica.running += 1
        self._affinity.wrote(call.id, replica.url)
        self._affinity.read(chain, replica.url, self._urls())
        return replica

    def _leave(self, replica: Replica, began: float) -> None:
        self._took.append(self._clock() - began)
        self._give_back(replica)

    def _give_back(self, replica: Replica) -> None:
        replica.running -= 1
        self._left.set()
        self._queue.pump()

    def _choose(self, call: Call, chain: Sequence[bytes], among: Sequence[Replica]) -> Replica:
        """The one that wrote this answer before; else one that knows the prompt; else by load."""
        if len(among) == 1:
            return among[0]
        last = self._affinity.of_answer(call.id)
        for replica in among:
            if replica.url == last:
                return replica
        least = min(replica.busy for replica in among)
        for urls in self._affinity.of_prompt(chain):
            known = [replica for replica in among if replica.url in urls]
            if known:
                best = min(known, key=_busy)
                if best.busy <= least + self._margin:
                    return best
                break
        # Not simply the least busy: what is known of others' calls lags, and all gateways that
        # know the same would go to the same replica.
        return min(self._random.sample(among, 2), key=_busy)

    def _elsewhere(
        self,
        call: Call,
        replica: Replica,
        error: FarthingError,
        tried: Sequence[Replica],
        harmless: bool = False,
    ) -> bool:
        """Whether a call that failed like this may be tried elsewhere, and there is a replica."""
        if isinstance(error, EngineLost):
            may = harmless or replica.backend.idempotent
        else:
            may = isinstance(error, EngineUnavailable | Overloaded)
        deadline = call.goals.deadline
        if not may or (deadline is not None and self._clock() >= deadline):
            return False
        return bool(self._ready(tried))

    def _ready(self, tried: Sequence[Replica] = ()) -> list[Replica]:
        if self._closed:
            return []
        return [replica for replica in self.replicas if replica.ready and replica not in tried]

    def _free(self, among: Sequence[Replica]) -> list[Replica]:
        return [replica for replica in among if replica.running < self.card.max_running]

    def _urls(self) -> list[str]:
        return [replica.url for replica in self.replicas]

    def _links(self, call: Call) -> tuple[bytes, ...]:
        return links(call) if len(self.replicas) > 1 else ()

    def _unavailable(self) -> EngineUnavailable:
        if self._closed:
            return EngineUnavailable("The server is shutting down", retry_after=1.0)
        soonest = min((replica.retry_at for replica in self.replicas), default=0.0)
        return EngineUnavailable(
            f"No server of the model {self.card.name} is ready",
            retry_after=max(1.0, soonest - self._clock()),
        )

    def _overloaded(self) -> Overloaded:
        places = self.card.max_running * len(self._ready())
        typical = sum(self._took) / len(self._took) if self._took else 1.0
        return Overloaded(
            f"Too many calls wait for the model {self.card.name}",
            retry_after=max(1.0, typical * (self._queue.waiting + 1) / max(places, 1)),
        )

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"The deadline passed before {self.card.name} had a free place")


def _common(found: Sequence[Speculates | None]) -> Speculates | None:
    """What all of these can do; None: they have nothing in common."""
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return None
    able = Speculates(
        drafts=_shared([each.drafts for each in known]),
        lookup=all(each.lookup for each in known),
        rules=_shared([each.rules for each in known]),
        acceptance=_shared([each.acceptance for each in known]),
        longest=min(each.longest for each in known),
        sampled=all(each.sampled for each in known),
    )
    guesses = able.drafts or able.lookup
    return able if guesses and able.rules and able.acceptance and able.longest else None


def _predictors(found: Sequence[Mapping[str, float] | None]) -> Mapping[str, float] | None:
    """The KV predictors that all of these have, and what each takes at most."""
    first, *others = [each or {} for each in found]
    return {
        name: max(each[name] for each in found if each)
        for name in first
        if all(name in other for other in others)
    } or None


def _shared(offers: Sequence[tuple[T, ...]]) -> tuple[T, ...]:
    """What is in all of them, in the first one's order."""
    first, *others = offers
    return tuple(each for each in first if all(each in other for other in others))


def _busy(replica: Replica) -> int:
    return replica.busy


def _shows(chunk: Chunk) -> bool:
    """Whether this chunk shows that the server works: it holds more than the prompt's usage."""
    return bool(chunk.tokens or chunk.text or chunk.raw or chunk.finish)


def _says_nothing(chunk: Chunk) -> bool:
    return not _shows(chunk) and replace(chunk, model="", index=0) == _NOTHING
