"""The system calls that are left to a confined program, as a filter that the kernel runs."""

from __future__ import annotations

import platform
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from app.errors import ConfigError

# linux/filter.h, linux/seccomp.h, linux/audit.h: instructions of classic BPF, and what they return.
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE: fails with EPERM
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data; arguments follow, 8 bytes each
_EXECUTABLE = 4  # PROT_EXEC
_WRITABLE = (1, 2)  # the pipes to us: its result and its output


@dataclass(frozen=True)
class Machine:
    """The numbers of one architecture's system calls."""

    audit: int  # AUDIT_ARCH_*
    allowed: tuple[int, ...]  # whatever their arguments
    write: int  # to _WRITABLE alone
    memory: tuple[int, int]  # mmap, mprotect: not for executable memory


# In this order: exit, exit_group, brk, munmap, mremap, futex, sched_yield, clock_gettime,
# clock_getres, gettimeofday, nanosleep, clock_nanosleep, restart_syscall, getrandom, getpid; and of
# x86_64 time. No madvise: root may spoil the machine's memory by it.
MACHINES = {
    "x86_64": Machine(
        0xC000003E,
        (60, 231, 12, 11, 25, 202, 24, 228, 229, 96, 35, 230, 219, 318, 39, 201),
        write=1,
        memory=(9, 10),
    ),
    "aarch64": Machine(
        0xC00000B7,
        (93, 94, 214, 215, 216, 98, 124, 113, 114, 169, 101, 115, 128, 278, 172),
        write=64,
        memory=(222, 226),
    ),
}


def program() -> bytes:
    """The filter for this machine, an array of struct sock_filter.

    Raises ConfigError where there is none: on systems other than Linux, and on other processors.
    """
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if sys.platform != "linux" or name not in MACHINES or struct.calcsize("P") != 8:
        raise ConfigError(
            f"untrusted code can be run on Linux (x86_64, aarch64) only, this is {sys.platform}"
            f" ({name}): take out [sandbox]"
        )
    return b"".join(struct.pack("<HBBI", *each) for each in _instructions(MACHINES[name]))


def _instructions(machine: Machine) -> Iterator[tuple[int, int, int, int]]:
    """Code, jump if so, jump if not, operand. All but what is listed is refused; a call by the
    rules of another architecture, whose numbers mean something else, kills."""
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield _EQUAL, 1, 0, machine.audit
    yield _RETURN, 0, 0, KILL
    yield _LOAD, 0, 0, _NUMBER
    for number in machine.allowed:
        yield _EQUAL, 0, 1, number
        yield _RETURN, 0, 0, ALLOW
    yield _EQUAL, 0, 5, machine.write
    yield _LOAD, 0, 0, _argument(0)
    yield _EQUAL, 1, 0, _WRITABLE[0]
    yield _EQUAL, 0, 1, _WRITABLE[1]
    yield _RETURN, 0, 0, ALLOW
    yield _RETURN, 0, 0, REFUSE
    for number in machine.memory:
        yield _EQUAL, 0, 4, number
        yield _LOAD, 0, 0, _argument(2)
        yield _ANY_BIT, 1, 0, _EXECUTABLE
        yield _RETURN, 0, 0, ALLOW
        yield _RETURN, 0, 0, REFUSE
    yield _RETURN, 0, 0, REFUSE


def _argument(index: int) -> int:
    """The offset of its lower 32 bits: the kernel reads no more of a descriptor or of flags."""
    return 16 + 8 * index
