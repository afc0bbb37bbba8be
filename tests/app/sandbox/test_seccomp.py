"""The filter, as numbers and as the kernel takes it."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import ConfigError, SandboxUnavailable
from app.sandbox import Limits, check, inside, run_python, seccomp

EPERM = 1


def decided(filter: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What this program returns for a system call."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    at, loaded = 0, 0
    while True:
        code, yes, no, operand = struct.unpack_from("<HBBI", filter, 8 * at)
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", data, operand)
        elif code == 0x15:
            at += yes if loaded == operand else no
        elif code == 0x45:
            at += yes if loaded & operand else no
        else:
            assert code == 0x06
            return int(operand)


@pytest.fixture(params=seccomp.MACHINES)
def machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[seccomp.Machine]:
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    return seccomp.MACHINES[request.param]


def test_all_but_what_is_listed_is_refused(machine: seccomp.Machine) -> None:
    filter = seccomp.program()
    listed = {*machine.allowed, machine.write, *machine.memory}
    allowed = {
        number
        for number in (*range(1024), *range(0x40000000, 0x40000400), 2**32 - 1)
        if decided(filter, machine.audit, number, 1) == seccomp.ALLOW
    }
    assert allowed == listed
    assert decided(filter, machine.audit, 999) == seccomp.REFUSE == 0x00050000 | EPERM


def test_only_its_pipes_are_written_to_and_no_memory_is_executable(
    machine: seccomp.Machine,
) -> None:
    filter, audit = seccomp.program(), machine.audit
    written = [fd for fd in range(64) if decided(filter, audit, machine.write, fd) == seccomp.ALLOW]
    assert written == [1, 2]
    for number in machine.memory:
        protections = [
            p for p in range(8) if decided(filter, audit, number, 0, 0, p) == seccomp.ALLOW
        ]
        assert protections == [0, 1, 2, 3]


def test_calls_by_another_architecture_s_rules_kill(machine: seccomp.Machine) -> None:
    for other in (0x40000003, 0x40000028, 0):  # i386, arm
        assert decided(seccomp.program(), other, machine.write, 1) == seccomp.KILL


@pytest.mark.parametrize(("system", "processor"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_elsewhere_it_says_so(monkeypatch: pytest.MonkeyPatch, system: str, processor: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    with pytest.raises(ConfigError, match=f"Linux .* this is {system} .*take out"):
        seccomp.program()
    with pytest.raises(ConfigError, match=r"^\[sandbox\]: it does not run here: .* Linux"):
        check(Limits())
    with pytest.raises(SandboxUnavailable, match="Linux"):
        asyncio.run(run_python("print('it ran')", Limits()))


# Every call by its number, past Python: whatever is not listed must come back as EPERM.
RAW = """
import ctypes, errno, json, os, sys
sys.path.insert(0, {folder!r})
import inside
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
inside.confine(bytes.fromhex({filter!r}), os.getppid())
refused = []
for number in {tried!r}:
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6)
    if (result, ctypes.get_errno()) == (-1, errno.EPERM):
        refused.append(number)
os.write(1, json.dumps(refused).encode())
os._exit(0)
"""
PROBES = {"x86_64": (335, 336)}  # uretprobe, uprobe: no filter sees them, and they kill who calls


def test_the_kernel_keeps_to_it() -> None:
    name = platform.machine()
    machine = seccomp.MACHINES[name]
    spared = {*machine.allowed, machine.write, *machine.memory, *PROBES.get(name, ())}
    tried = [number for number in range(480) if number not in spared]
    folder = str(Path(inside.__file__).parent)
    program = RAW.format(folder=folder, filter=seccomp.program().hex(), tried=tried)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(done.stdout) == tried


def test_it_needs_no_privilege() -> None:
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    program = (
        "from app.sandbox import Limits, check\n"
        "status = open('/proc/self/status').read()\n"
        "assert int(status.partition('CapEff:')[2].split()[0], 16) == 0\n"
        "check(Limits())"
    )
    done = subprocess.run(
        [*without, sys.executable, "-c", program], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_does_not_confine_is_seen_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    check(Limits())
    allows = struct.pack("<HBBI", 0x06, 0, 0, seccomp.ALLOW)
    monkeypatch.setattr(seccomp, "program", lambda: allows)
    with pytest.raises(ConfigError, match=r"\[sandbox\].*what must be refused was not"):
        check(Limits())
    monkeypatch.setattr(seccomp, "program", lambda: b"\0" * 8)
    with pytest.raises(ConfigError, match=r"\[sandbox\].*prctl 22: Invalid argument"):
        check(Limits())
