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
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

CANNOT_START = 3
"""Exit status of a worker whose successors would fail the same way."""
_LIVED_S = 5.0  # a worker that dies sooner is not replaced at once
log = logging.getLogger(__name__)
_spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's threads and our locks


def once() -> Any:
    """Something that one worker alone can acquire, ever."""
    return _spawn.Semaphore(1)


def supervise(count: int, work: Callable[..., None], args: tuple[Any, ...], grace: float) -> bool:
    """Run `work(*args)` in this many processes until SIGTERM or SIGINT.

    A second SIGINT reaches them too. What has not ended `grace` seconds after the first signal is
    killed. False: a worker could not start.
    """
    received: list[int] = []
    wake, woken = os.pipe()
    os.set_blocking(woken, False)

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        os.write(woken, b"!")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        workers = [_start(work, args) for _ in range(count)]
        fine = _watch(workers, work, args, received, wake)
        _end(workers, received, wake, time.monotonic() + grace)
        return fine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake)
        os.close(woken)


def _watch(
    workers: list[_Worker],
    work: Callable[..., None],
    args: tuple[Any, ...],
    received: list[int],
    wake: int,
) -> bool:
    """Until a signal comes, or a worker cannot start: then False."""
    while not received:
        wait([wake, *(worker.process.sentinel for worker in workers)])
        for place, worker in enumerate(workers):
            if received or worker.process.is_alive():
                continue
            if worker.process.exitcode == CANNOT_START:
                return False
            log.error("worker %s died (%s)", worker.process.pid, worker.process.exitcode)
            if time.monotonic() - worker.born < _LIVED_S:
                time.sleep(1.0)
            workers[place] = _start(work, args)
    return True


def _end(workers: list[_Worker], received: list[int], wake: int, deadline: float) -> None:
    """Tell them to end, and to end at once where that is asked for again."""
    told, number = 0, signal.SIGTERM  # which ends one that has not begun yet in silence too
    while alive := [worker.process for worker in workers if worker.process.is_alive()]:
        if told == 0 or len(received) > told:
            for process in alive:
                if process.pid is not None:
                    os.kill(process.pid, number)
            told, number = max(len(received), 1), signal.SIGINT
            if received:
                os.read(wake, 64)
        left = deadline - time.monotonic()
        if left <= 0:
            for process in alive:
                process.kill()
                process.join()
            return
        wait([wake, *(process.sentinel for process in alive)], left)


class _Worker:
    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        self.born = time.monotonic()


def _start(work: Callable[..., None], args: tuple[Any, ...]) -> _Worker:
    process = _spawn.Process(target=_run, args=(work, args))
    process.start()
    return _Worker(process)


def _run(work: Callable[..., None], args: tuple[Any, ...]) -> None:
    # A session of its own: Ctrl-C reaches the parent alone, which hands it on.
    os.setsid()
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
