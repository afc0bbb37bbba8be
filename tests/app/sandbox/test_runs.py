"""How runs come and go: how many at once, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from app.errors import SandboxUnavailable
from app.sandbox import Limits, run_python, seccomp

LOOP = "while True: pass"


def running() -> list[str]:
    """The sandboxes that are children of ours."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may just have ended
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(os.getpid()) and "inside.py" in (process / "cmdline").read_text():
                found.append(process.name)
    return found


@pytest.mark.parametrize("after", [0, 0.001, 0.02, 0.2])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_it_is_killed_when_nobody_waits_for_it(loop, after) -> None:
    async def leave() -> None:
        before = running()
        task = asyncio.create_task(run_python(LOOP, Limits(seconds=60)))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(500):
            if running() == before:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{running()} are left")

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(leave())


async def test_no_more_run_at_once_than_may() -> None:
    limits, most = Limits(seconds=5, at_once=2), 0
    tasks = [
        asyncio.create_task(run_python("import time\ntime.sleep(0.1)", limits)) for _ in range(5)
    ]
    while not all(task.done() for task in tasks):
        most = max(most, len(running()))
        await asyncio.sleep(0.005)
    assert most == 2
    assert all(task.result().passed for task in tasks)


async def test_who_waits_for_a_place_may_leave() -> None:
    limits = Limits(seconds=0.3, at_once=1)
    first, second = (asyncio.create_task(run_python(LOOP, limits)) for _ in range(2))
    await asyncio.sleep(0.05)
    second.cancel()
    assert not (await first).passed
    assert (await run_python("", limits)).passed


def test_it_may_be_called_without_a_loop() -> None:
    limits = Limits(seconds=5)
    assert asyncio.run(run_python("x = 1", limits, "assert x == 1")).passed
    assert asyncio.run(run_python("x = 1", limits, "assert x == 2")).why == (
        "AssertionError (line 1 of the tests)"
    )


async def test_what_cannot_be_confined_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "program", lambda: struct.pack("<HBBI", 0, 0, 0, 0))
    with pytest.raises(SandboxUnavailable, match="prctl 22"):
        await run_python("print('it ran')", Limits())


@pytest.mark.parametrize(
    "source",
    [
        "import math, re, collections, itertools, functools, heapq, bisect, typing, string, random",
        "import datetime, decimal, fractions, hashlib, json, copy, statistics, dataclasses, enum",
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\nassert P(1, 2).y == 2",
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 1\nassert A().x == 1",
        "import enum, typing\nE = enum.Enum('E', 'a b')\nclass N(typing.NamedTuple):\n    a: int",
        "import datetime\nassert datetime.datetime.strptime('2020', '%Y').year == 2020",
        "import random, uuid, secrets\nrandom.random(), uuid.uuid4(), secrets.token_hex()",
        "import traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc()",
        "assert 'ä'.encode('latin-1') == b'\\xe4' and 'ä'.encode('utf-16')",
        "if __name__ == '__main__':\n    raise SystemExit",
    ],
)
async def test_what_solutions_do_works(source: str) -> None:
    outcome = await run_python(source, Limits())
    assert outcome.passed, outcome.why


async def test_unittest_works() -> None:
    source = "def double(x): return {} * x"
    tests = (
        "import unittest\nclass T(unittest.TestCase):\n"
        "    def test(self): self.assertEqual(double(2), 4)\n"
        "assert unittest.main(exit=False).result.wasSuccessful()"
    )
    assert (await run_python(source.format(2), Limits(), tests)).passed
    outcome = await run_python(source.format(3), Limits(), tests)
    assert not outcome.passed and "6 != 4" in outcome.output
