"""The one thread that drives torch, for all models in turn."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence

import torch

from app.engines.embedded.scheduler import Scheduler
from app.engines.embedded.sequence import RunningSequence

_log = logging.getLogger(__name__)


def spare_threads() -> int:
    """All cores but one, which is for the event loop and whatever else the machine does.

    torch's threads wait for each other a hundred times a token. Where one of them has to share its
    core, all stand still: measured on 2 cores beside another process, int8 SmolLM2-135M wrote 1 to
    40 tokens/s with two threads, and 120 with one (144 and 122 on an idle machine).
    """
    return max(1, (os.cpu_count() or 1) - 1)


class Worker:
    """Steps every scheduler that has work, one step each in turn, and sleeps when none has."""

    def __init__(
        self,
        schedulers: Sequence[Scheduler],
        tell: Callable[[list[RunningSequence]], None],
        threads: int | None = None,
    ) -> None:
        """`tell` is called on this thread, once a step, with the sequences that have news;
        `threads`: torch's, by default `spare_threads()`."""
        self._schedulers = schedulers
        self._tell = tell
        self._threads = threads
        self._awake = threading.Event()
        self._stopping = False
        # A daemon: a process that forgets to stop us must still be able to end.
        self._thread = threading.Thread(target=self._run, name="farthing-torch", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There may be work: something was submitted, cancelled or taken from a full outbox."""
        self._awake.set()

    def stop(self) -> None:
        """End after the current step, and end all sequences; blocks until it is done."""
        self._stopping = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        # Counts for the thread that calls it.
        torch.set_num_threads(self._threads or spare_threads())
        try:
            while not self._stopping:
                self._awake.clear()  # before we look, so that nothing set while we look is lost
                moved = False
                for scheduler in self._schedulers:
                    moved |= self._step(scheduler)
                if not moved:
                    self._awake.wait()
        finally:
            self._stopping = True
            for scheduler in self._schedulers:
                scheduler.close("the engine has shut down")
                self._tell(scheduler.take_news())

    def _step(self, scheduler: Scheduler) -> bool:
        try:
            moved = scheduler.step()
        except Exception:  # noqa: BLE001  the thread's edge: whatever one step meets, others go on
            _log.exception("a step of the embedded engine failed")
            scheduler.fail("the model failed while it computed this answer; see the log")
            moved = True
        news = scheduler.take_news()
        if news:
            self._tell(news)
        return moved
