"""One server of a model: whether it may be used, how busy it is, and the task that watches it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar

from app.catalog import ModelCard
from app.engines.backend import Backend
from app.engines.breaker import Backoff, Breaker
from app.engines.remote.origin import said
from app.errors import EngineError, EngineUnavailable, FarthingError
from app.telemetry.names import server_at

T = TypeVar("T")
State = Literal["ready", "probing", "open", "draining"]
"""`probing`: it has never been ready; `open`: it was, and broke down; `draining`: the catalog has
it no more, and it ends what it has begun."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What is known of one replica, for whoever operates it."""

    model: str
    url: str
    state: State
    reason: str  # why it is not ready; empty where it is
    running: int  # calls of ours
    waiting: int  # calls in the server's own queue, of whomever, when it was last asked


@dataclass(frozen=True, slots=True)
class Upkeep:
    """How servers are watched; times in seconds."""

    probe_limit: float = 60.0  # for one probe: a first completion may have kernels to compile
    pulse_every: float = 3.0
    pulse_limit: float = 5.0
    faults: int = 3  # in a row, until a server counts as broken
    retry_first: float = 1.0
    retry_longest: float = 30.0


class Replica:
    """A server, and what the gateway thinks of it.

    It is ready once a probe has succeeded. Faults in a row, of calls or of pulses, make it not
    ready, and from then on only a probe decides, never a client's call.
    """

    def __init__(
        self,
        card: ModelCard,
        backend: Backend,
        upkeep: Upkeep,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.card = card
        self.backend = backend
        self.state: State = "probing"
        self.reason = "not asked yet"
        self.known = False  # it was ready at some time
        self.running = 0  # calls of ours, each in a place
        self.counting = 0  # counts of ours
        self.others = 0  # calls there that are not ours
        self.waiting = 0  # calls in its own queue
        self.retry_at = clock()
        self.changed: Callable[[], None] = _nobody
        self.objection: Callable[[Replica], str | None] = _none  # to its becoming ready
        self._upkeep = upkeep
        self._clock = clock
        self._since = 0.0  # when its state began
        self._calls = Breaker(upkeep.faults)
        # Counted apart: a server that answers health checks may break off every call.
        self._pulses = Breaker(upkeep.faults)
        self._backoff = Backoff(upkeep.retry_first, upkeep.retry_longest, random)
        self._asked = asyncio.Event()
        self._news = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        return self.card.name

    @property
    def url(self) -> str:
        return self.backend.url

    @property
    def place(self) -> str:
        """What its calls are counted by."""
        return server_at(self.url)

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    @property
    def busy(self) -> int:
        """Calls there: ours as of now, others' as of the last pulse."""
        return self.running + self.others

    @property
    def used(self) -> bool:
        return self.running + self.counting > 0

    def status(self, draining: bool = False) -> ReplicaStatus:
        state: State = "draining" if draining else self.state
        reason = "the catalog has it no more" if draining else self.reason
        return ReplicaStatus(self.model, self.url, state, reason, self.running, self.waiting)

    def watch(self) -> None:
        """Probe it, and go on watching it, in a task that `stop` ends."""
        self._watching = asyncio.create_task(self._watch(), name=f"watch {self.url}")
        self._watching.add_done_callback(_report)

    async def asked(self) -> None:
        """Wait until the first probe has ended, either way."""
        await self._asked.wait()

    async def stop(self) -> None:
        """Watch it no more."""
        self._asked.set()  # it will not be, and nobody shall wait for it
        task, self._watching = self._watching, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def close(self) -> None:
        """Watch it no more and give back what its backend holds."""
        await self.stop()
        try:
            await self.backend.aclose()
        except Exception:  # whatever it was, the others must be closed too
            log.exception("model %s: %s did not close", self.model, self.url)

    def worked(self) -> None:
        """A call there said something, and did not fail afterwards."""
        if self.ready:
            self._calls.reset()
            self._backoff.reset()

    def failed(self, error: FarthingError) -> None:
        """A call failed there. What its caller is to blame for does not count."""
        if isinstance(error, EngineError) and self.ready:
            log.info("model %s: a call failed at %s: %s", self.model, self.url, _of(error))
            if self._calls.fault():
                self._change("open", f"{self._calls.faults} calls in a row failed: {error.message}")

    async def _watch(self) -> None:
        await self._probe()
        self._asked.set()
        while True:
            self._news.clear()
            if self.ready:
                await self._pulse()
                if self.ready:
                    failing = self._pulses.faults > 0
                    await self._pause(
                        self._backoff.delay() if failing else self._upkeep.pulse_every
                    )
            else:
                delay = self._backoff.delay()
                self.retry_at = self._clock() + delay
                await self._pause(delay)
                await self._probe()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _probe(self) -> None:
        try:
            await self._within(self._upkeep.probe_limit, self.backend.probe())
        except EngineUnavailable as error:
            reason: str | None = error.message
        else:
            reason = self.objection(self)
        if reason is not None:
            self._change("open" if self.known else "probing", reason)
            return
        self._calls.reset()
        self._pulses.reset()
        self.known = True
        self._change("ready", "")

    async def _pulse(self) -> None:
        ours = self.running
        try:
            load = await self._within(self._upkeep.pulse_limit, self.backend.pulse())
        except EngineUnavailable as error:
            if self._pulses.fault() and self.ready:
                faults = self._pulses.faults
                self._change("open", f"{faults} health checks in a row failed: {error.message}")
            return
        self._pulses.reset()
        # Not at once: a server that only seems well would be probed every second on and on.
        if not self._calls.faults and self._clock() - self._since >= self._upkeep.pulse_every:
            self._backoff.reset()
        self.waiting = load.waiting
        # It counts what we run there too; of that we know better and sooner.
        self.others = max(load.running + load.waiting - max(ours, self.running), 0)

    async def _within(self, seconds: float, question: Awaitable[T]) -> T:
        """The answer. Raises EngineUnavailable with the reason where there is none."""
        try:
            async with asyncio.timeout(seconds):
                return await question
        except FarthingError as error:
            raise EngineUnavailable(_of(error)) from error
        except TimeoutError as error:
            raise EngineUnavailable(f"no answer within {seconds:g} s") from error
        except Exception as error:
            # A bug of ours, most likely. The watch must go on, and the bug be seen.
            log.exception("model %s: %s could not be checked", self.model, self.url)
            raise EngineUnavailable(f"{type(error).__name__}: {error}") from error

    def _change(self, state: State, reason: str) -> None:
        if (state, reason) == (self.state, self.reason):
            return
        self.state, self.reason, self._since = state, reason, self._clock()
        if state == "ready":
            log.info("model %s: %s is ready", self.model, self.url)
        else:
            word = "is not ready yet" if state == "probing" else "is out of service"
            log.warning("model %s: %s %s: %s", self.model, self.url, word, reason)
            self.others = self.waiting = 0
        self._news.set()
        self.changed()


def _of(error: FarthingError) -> str:
    """Its message, and that of what caused it, which may be plainer."""
    cause = error.__cause__
    return error.message if cause is None else f"{error.message} ({said(cause)})"


def _report(task: asyncio.Task[None]) -> None:
    """Log what ended a task that should not have ended."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%s ended; it is a bug", task.get_name(), exc_info=error)


def _nobody() -> None:
    pass


def _none(replica: Replica) -> str | None:
    return None
