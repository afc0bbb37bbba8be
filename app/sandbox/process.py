"""A child process that is talked to and then gone, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

from app.errors import SandboxUnavailable

FLAGS = ("-I", "-S", "-E", "-B", "-X", "utf8")  # of Python: nothing of the user's or of a site
READY = b"."  # what a child says first, before its time begins
_START_S = 30.0  # until it says so; a machine may be busy
_KEPT = 8192  # bytes of each pipe
_MOST = 2**20  # bytes of each pipe before it is stopped

# Of each event loop, by command and number.
_places: WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[tuple[str | int, ...], asyncio.Semaphore]
] = WeakKeyDictionary()


@dataclass(slots=True)
class Spoken:
    """What came of a child."""

    result: bytearray = field(default_factory=bytearray)  # on its descriptor 1, after READY
    output: bytearray = field(default_factory=bytearray)  # on its descriptor 2; both cut
    code: int = 0  # its exit status, negative: the signal that ended it
    stopped: str = ""  # why we ended it, if we did


def command(program: Path, *arguments: str) -> Sequence[str]:
    return (sys.executable, *FLAGS, str(program), *arguments)


async def converse(words: Sequence[str], request: bytes, seconds: float, at_once: int) -> Spoken:
    """Start this command, send the request and hear what it says.

    Waits for a place while `at_once` processes of this command run. It is killed, with all of its
    session, after so many seconds from its READY, when it says too much, and when whoever waits for
    it is cancelled. Raises SandboxUnavailable where it never gets ready.
    """
    places = _places.setdefault(asyncio.get_running_loop(), {})
    async with places.setdefault((*words, at_once), asyncio.Semaphore(at_once)):
        return await _conversed(words, request, seconds)


async def _conversed(words: Sequence[str], request: bytes, seconds: float) -> Spoken:
    spoken, loop = Spoken(), asyncio.get_running_loop()
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=PIPE, stdout=PIPE, stderr=PIPE, env={}, cwd="/", start_new_session=True
        )
    except OSError as error:
        raise SandboxUnavailable(f"no process for it could be started: {error.strerror}") from error

    def stop(why: str) -> None:
        spoken.stopped = spoken.stopped or why
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    timer = loop.call_later(_START_S, stop, "it did not start")
    try:
        first = await _asked(process, request)
        timer.cancel()
        timer = loop.call_later(seconds, stop, f"it took longer than {seconds:g} s")
        assert process.stdout and process.stderr  # both are pipes
        await asyncio.gather(
            _heard(process.stdout, spoken.result, stop),
            _heard(process.stderr, spoken.output, stop),
        )
        spoken.code = await process.wait()
    finally:
        timer.cancel()
        stop("")
        await process.communicate()  # to the pipes' ends, so that nothing of it is left
    if first != READY:
        why = spoken.stopped or spoken.output.decode(errors="replace").strip().rpartition("\n")[2]
        raise SandboxUnavailable(f"no process for it could be set up: {why or spoken.code}")
    return spoken


async def _asked(process: Process, request: bytes) -> bytes:
    """What it says first."""
    assert process.stdin and process.stdout  # both are pipes
    with suppress(ConnectionError):  # it died: its first word tells
        process.stdin.write(request)
        await process.stdin.drain()
    process.stdin.close()
    return await process.stdout.read(1)


async def _heard(
    stream: asyncio.StreamReader, kept: bytearray, stop: Callable[[str], None]
) -> None:
    """All of it to its end, of which the beginning is kept."""
    total = 0
    while data := await stream.read(65536):
        total += len(data)
        kept += data[: _KEPT - len(kept)]
        if total > _MOST:
            stop(f"it wrote more than {_MOST // 2**20} MiB")
