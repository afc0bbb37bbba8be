"""Files of numbers on a disk that may fill up: what they need they take before they use it."""

from __future__ import annotations

import os

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

_FIRST = 64 * 1024  # bytes of a new file
_AROUND = 32  # bytes that a key takes beyond its own, at most


class Allocated(MmapedDict):
    """The library's file, without holes: where the disk is full a write into one that is mapped
    ends the process (SIGBUS), whatever it was doing. Here it is an OSError, and sooner."""

    def __init__(self, filename: str) -> None:
        with open(filename, "ab") as file:
            _fill(file.fileno(), _FIRST)
        super().__init__(filename)  # type: ignore[no-untyped-call]  # the library does not say

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + _AROUND > self._capacity:
            _fill(self._f.fileno(), 2 * self._capacity)  # the size to which it is set next
        super()._init_value(key)  # type: ignore[no-untyped-call]


def install() -> None:
    """From now on this process writes its numbers into such files."""
    # It offers no other way.
    values.MmapedDict = Allocated  # type: ignore[assignment, attr-defined]


def in_memory() -> None:
    """From now on this process keeps its numbers to itself: a folder that the library is told of by
    the environment is another program's."""
    values.ValueClass = values.MutexValue


def _fill(file: int, size: int) -> None:
    """Make it that long, of zeros. Raises OSError."""
    while (left := size - os.fstat(file).st_size) > 0:
        os.write(file, bytes(left))
