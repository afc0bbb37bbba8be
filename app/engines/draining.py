"""Servers that the catalog has no more: they end what they have begun, then they are closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from app.engines.pool import Pool
from app.engines.replica import Replica, ReplicaStatus

log = logging.getLogger(__name__)


class Drains:
    """What is being drained. Each drain is a task, held here until it is done."""

    def __init__(self) -> None:
        self._replicas: list[Replica] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def status(self) -> list[ReplicaStatus]:
        return [replica.status(draining=True) for replica in self._replicas]

    def drop(self, pool: Pool, replicas: Sequence[Replica]) -> None:
        """Close these once they are idle: the pool uses them no more, or is itself not used."""
        for replica in replicas:
            log.info("model %s: %s is draining", replica.model, replica.url)
        self._replicas += replicas
        task = asyncio.create_task(self._drain(pool, replicas), name="drain")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def aclose(self) -> None:
        """Close all that is left at once."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        left, self._replicas = self._replicas, []
        await asyncio.gather(*(replica.close() for replica in left))

    async def _drain(self, pool: Pool, replicas: Sequence[Replica]) -> None:
        await pool.quiet(replicas)
        for replica in replicas:
            await replica.close()
            self._replicas.remove(replica)
            log.info("model %s: %s has drained and is closed", replica.model, replica.url)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a drain failed; it is a bug", exc_info=error)
