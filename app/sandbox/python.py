"""Untrusted Python, and tests of it, run in a process that can do nothing but compute."""

from __future__ import annotations

import json
import math
import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from app.errors import ConfigError, SandboxUnavailable
from app.sandbox import seccomp
from app.sandbox.limits import Limits
from app.sandbox.process import READY, Spoken, command, converse

_INSIDE = command(Path(__file__).with_name("inside.py"))
_OUTPUT = 2000  # characters of what it printed that are told
_CHECK_S = 30.0

_PROBE = """
import os
for attempt in (os.fork, os.getcwd, lambda: os.listdir("/"), lambda: open("/proc/self/environ")):
    try:
        attempt()
    except PermissionError:
        continue
    raise AssertionError("what must be refused was not")
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    passed: bool  # the code and its tests ran to their ends
    why: str = ""  # why not
    output: str = ""  # what it printed, its beginning; words of nobody we trust


async def run_python(source: str, limits: Limits, tests: str = "") -> Outcome:
    """Run this code, then these tests in its namespace, confined as the README says.

    It passes where both ran to their last line: nothing raised, nothing exited. The code can make
    tests of its own result meaningless, as it shares an interpreter with them (an object may equal
    everything); it cannot end the run early and pass. Waits for a place while as many run as
    `limits.at_once`; killed when the awaiting task is cancelled.

    Raises SandboxUnavailable where it cannot be confined: then nothing was run.
    """
    token = secrets.token_hex(16)
    request = _request(source, tests, token, limits)
    return _outcome(await converse(_INSIDE, request, limits.seconds, limits.at_once), token)


def check(limits: Limits) -> None:
    """See that this system confines what runs. Raises ConfigError where it does not.

    Not for a running event loop: it waits for a process.
    """
    token = secrets.token_hex(16)
    try:
        done = subprocess.run(
            _INSIDE,
            input=_request(_PROBE, "", token, limits),
            capture_output=True,
            env={},
            cwd="/",
            timeout=_CHECK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, SandboxUnavailable) as error:
        raise ConfigError(f"[sandbox]: it does not run here: {error}") from error
    if done.stdout != READY + token.encode():
        said = done.stdout.removeprefix(READY + b"!") or done.stderr.strip().rpartition(b"\n")[2]
        why = said.decode(errors="replace") or f"it ended with {done.returncode}"
        raise ConfigError(f"[sandbox]: untrusted code cannot be confined here: {why}")


def _request(source: str, tests: str, token: str, limits: Limits) -> bytes:
    try:
        filter = seccomp.program().hex()
    except ConfigError as error:
        raise SandboxUnavailable(error.message) from error
    request = {
        "answer": source,
        "tests": tests,
        "token": token,
        "filter": filter,
        "memory": limits.memory_mib * 2**20,
        "seconds": math.ceil(limits.seconds) + 2,  # of a processor: two for the start
        "parent": os.getpid(),
    }
    return json.dumps(request).encode()


def _outcome(spoken: Spoken, token: str) -> Outcome:
    output = spoken.output.decode(errors="replace")[:_OUTPUT]
    if spoken.result == token.encode() and not spoken.code and not spoken.stopped:
        return Outcome(True, output=output)
    said = spoken.result.decode(errors="replace")
    if spoken.stopped:
        why = spoken.stopped
    elif spoken.code < 0:
        why = f"it was ended by {Signals(-spoken.code).name}"
    elif said.startswith("!") and spoken.code:
        why = said[1:400]
    else:
        why = "it exited before its tests ended"
    return Outcome(False, why, output)
