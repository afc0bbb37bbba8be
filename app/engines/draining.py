"""Servers that the catalog has no more: they end what they have begun, then they are closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

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
        """Close these, which the pool uses no more, once they are idle."""
        self._begin(replicas, pool.quiet(replicas))

    def retire(self, pool: Pool) -> None:
        """Close this pool's replicas once those that wait in it were served too."""
        self._begin(pool.replicas, pool.quiet())

    async def aclose(self) -> None:
        """Close all that is left at once."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        left, self._replicas = self._replicas, []
        await asyncio.gather(*(replica.close() for replica in left))

    def _begin(self, replicas: Sequence[Replica], quiet: Coroutine[Any, Any, None]) -> None:
        for replica in replicas:
            log.info("model %s: %s is draining", replica.model, replica.url)
        self._replicas += replicas
        task = asyncio.create_task(self._drain(replicas, quiet), name="drain")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _drain(self, replicas: Sequence[Replica], quiet: Coroutine[Any, Any, None]) -> None:
        await quiet
        for replica in replicas:
            await replica.close()
            self._replicas.remove(replica)
            log.info("model %s: %s has drained and is closed", replica.model, replica.url)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a drain failed; it is a bug", exc_info=error)
