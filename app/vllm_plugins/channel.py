"""Datagrams by which vLLM's engine tells its API server what it saw and did, never waiting."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

_ROWS = 256  # of one datagram, to stay far below the socket's buffer
_KEPT = 4096  # reports that wait for a reader who is behind
_READS = 1024  # datagrams taken at once, so that no sender can hold the event loop
_LARGEST = 1 << 18  # bytes


class Seen(NamedTuple):
    """What the engine saw of one token that it was about to draw."""

    call: str
    token: int  # its index in what the call writes
    bits: float
    mean: float | None  # the rolling mean, bits, where the call was made to stop here


class Placed(NamedTuple):
    """How much of a call's prompt was put in place, as `asks.Placed` has it."""

    call: str
    predicted: int
    computed: int


class Sender:
    """The engine's end. Nothing here waits or raises: what cannot be sent is dropped."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._kept: list[Seen | Placed] = []

    def send(self, step: Sequence[Seen | Placed]) -> None:
        """Tell of one step's rows.

        Linux queues ten datagrams of a socket by default, which a busy API server falls behind
        quickly: what finds no place is kept, within bounds, for the next step's datagram.
        """
        waiting = [*self._kept, *step][-_KEPT:]
        self._kept = []
        while waiting:
            try:
                self._socket.sendto(json.dumps(waiting[:_ROWS]).encode(), self._path)
            except BlockingIOError:
                self._kept = waiting
                return
            except OSError:
                return  # nobody reads (yet), or the reader is gone
            waiting = waiting[_ROWS:]

    def close(self) -> None:
        self._socket.close()


class Receiver:
    """The API server's end: a bound socket; the file of an earlier one is replaced.

    A folder that is not there is made, for its owner alone.
    """

    def __init__(self, path: str) -> None:
        """Raises OSError where the path cannot be bound."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            os.makedirs(os.path.dirname(path) or ".", 0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(path)
            self._socket.bind(path)
            os.chmod(path, 0o600)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> Iterator[Seen | Placed]:
        """What has come, oldest first; datagrams that are not ours are passed over."""
        for _ in range(_READS):
            try:
                datagram = self._socket.recv(_LARGEST)
            except OSError:
                return
            yield from _parse(datagram)

    def close(self) -> None:
        self._socket.close()
        with suppress(OSError):
            os.unlink(self._path)


def _parse(datagram: bytes) -> list[Seen | Placed]:
    try:
        return [_row(*fields) for fields in json.loads(datagram)]
    except (ValueError, TypeError):
        return []


def _row(call: Any, count: Any, *more: Any) -> Seen | Placed:
    """Raises ValueError or TypeError for what is neither."""
    if len(more) == 1:
        return Placed(str(call), int(count), int(more[0]))
    bits, mean = more
    return Seen(str(call), int(count), float(bits), None if mean is None else float(mean))
