"""Several gateway processes on one port: started, replaced when they die, ended together."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

CANNOT_START = 78
"""Exit status of a worker that its configuration keeps from starting (EX_CONFIG)."""
_LIVED_S = 5.0  # a worker that dies sooner is not replaced at once
_PAUSE_S = 1.0
log = logging.getLogger(__name__)
_spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's threads and our locks


class Ready:
    """Whether any of several processes has ever been ready to serve."""

    def __init__(self) -> None:
        self._lock = _spawn.Lock()
        self._ever = _spawn.Event()

    def first(self) -> bool:
        """This one is ready: is it the first?"""
        with self._lock:
            first = not self._ever.is_set()
            self._ever.set()
        return first

    def ever(self) -> bool:
        return self._ever.is_set()


def supervise(
    count: int,
    work: Callable[..., None],
    args: tuple[Any, ...],
    ready: Ready,
    grace: float,
    buried: Callable[[int], None],
) -> bool:
    """Run `work(*args, ready)` in this many processes until SIGTERM or SIGINT.

    A second signal reaches them as SIGINT. What has not ended `grace` seconds after the first one
    is killed. `buried` is told the number of each that died, before another takes its place.
    False: none could ever start.
    """
    team = _Team(count, work, (*args, ready), buried)
    try:
        return team.watch(ready)
    finally:
        team.end(time.monotonic() + grace)


def orphaned() -> bool:
    """Whether we are a worker whose parent has died."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


class _Team:
    """The workers, and the signals that we received."""

    def __init__(
        self,
        count: int,
        work: Callable[..., None],
        args: tuple[Any, ...],
        buried: Callable[[int], None],
    ) -> None:
        self._count, self._work, self._args, self._buried = count, work, args, buried
        self._workers: list[_Worker] = []
        self._received = 0
        self._wake, self._woken = os.pipe()
        for end in (self._wake, self._woken):
            os.set_blocking(end, False)
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._pass_on)

    def watch(self, ready: Ready) -> bool:
        """Until a signal comes, or it is clear that no worker can start: then False."""
        for _ in range(self._count):
            self._workers.append(self._start())
        while not self._received:
            self._wait(None)
            for place, worker in enumerate(self._workers):
                if self._received or worker.process.is_alive():
                    continue
                status = worker.process.exitcode
                if status == CANNOT_START and not ready.ever():
                    return False
                log.error("worker %s died (%s)", worker.process.pid, status)
                self._bury(worker)
                if time.monotonic() - worker.born < _LIVED_S:
                    self._wait(_PAUSE_S, only_signals=True)
                if not self._received:
                    self._workers[place] = self._start()
        return True

    def _bury(self, worker: _Worker) -> None:
        try:
            self._buried(worker.process.pid or 0)
        except Exception:  # whatever it was, another must take its place
            log.exception("worker %s could not be buried", worker.process.pid)

    def end(self, deadline: float) -> None:
        """Tell them to end, and to end at once where that is asked for again."""
        told, number = -1, signal.SIGTERM  # which ends one that has not begun yet in silence too
        while alive := [w.process for w in self._workers if w.process.is_alive()]:
            if self._received > told:
                for process in alive:
                    if process.pid is not None:
                        os.kill(process.pid, number)
                told, number = max(self._received, 1), signal.SIGINT
            left = deadline - time.monotonic()
            if left <= 0:
                for process in alive:
                    process.kill()
                    process.join()
                break
            self._wait(left)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._woken)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received += 1
        with suppress(BlockingIOError):
            os.write(self._woken, b"!")

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        for worker in self._workers:
            if worker.process.pid is not None and worker.process.is_alive():
                with suppress(ProcessLookupError):  # it has died just now
                    os.kill(worker.process.pid, number)

    def _wait(self, seconds: float | None, *, only_signals: bool = False) -> None:
        """Until a signal comes, a worker ends, or this time is over."""
        sentinels = [] if only_signals else [w.process.sentinel for w in self._workers]
        wait([self._wake, *sentinels], seconds)
        with suppress(BlockingIOError):
            while os.read(self._wake, 64):
                pass

    def _start(self) -> _Worker:
        process = _spawn.Process(target=_run, args=(self._work, self._args))
        process.start()
        return _Worker(process)


class _Worker:
    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        self.born = time.monotonic()


def _run(work: Callable[..., None], args: tuple[Any, ...]) -> None:
    # A session of its own: Ctrl-C reaches the parent alone, which hands it on.
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read anew
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(*args)
    except KeyboardInterrupt:
        sys.exit(130)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
