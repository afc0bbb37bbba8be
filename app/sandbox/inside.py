"""What runs in the child process: it locks itself up for good, and then runs the untrusted code.

It is started as a file, by `python -I -S -E`, and so imports nothing of ours. On standard input
comes one JSON object; descriptor 1 takes the result, descriptor 2 all that the code prints.
"""

import builtins
import ctypes
import functools
import io
import json
import operator
import os
import resource
import sys
import types
from typing import Any

# What solutions of programming tasks import: once it is locked up, no file can be opened.
MODULES = """
    abc argparse array ast base64 binascii bisect calendar cmath codecs collections.abc contextlib
    copy csv dataclasses datetime decimal difflib enum fractions functools graphlib hashlib heapq
    hmac html inspect io itertools json keyword linecache math numbers operator os.path pickle
    pprint queue random re reprlib secrets shutil signal statistics string struct textwrap threading
    time token tokenize traceback types typing unicodedata unittest urllib.parse uuid warnings
    weakref zlib _strptime
    encodings.ascii encodings.cp1252 encodings.hex_codec encodings.idna encodings.latin_1
    encodings.raw_unicode_escape encodings.unicode_escape encodings.utf_16 encodings.utf_32
"""
_DEATH_SIGNAL, _DUMPABLE, _NO_NEW_PRIVILEGES, _SECCOMP = 1, 4, 38, 22  # linux/prctl.h
_FILTER, _KILL = 2, 9
_HIDDEN = {
    *("gc.get_objects", "gc.get_referrers", "gc.get_referents"),
    *("sys.settrace", "sys.setprofile", "code.__new__", "marshal.load", "marshal.loads"),
}


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def limit(memory: int, seconds: int) -> None:
    """Bounds that no process of its own may raise, should it be allowed to try; memory in bytes."""
    bounds = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 3,
        resource.RLIMIT_NPROC: 0,
    }
    for name, most in bounds.items():
        hard = resource.getrlimit(name)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(name, (least, least))


def confine(program: bytes, parent: int) -> None:
    """Nothing but what this filter allows from here on. Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(option: int, argument: object, further: object = 0) -> None:
        # Without a type an integer would be passed as 32 bits.
        given = (argument, further, 0, 0)
        arguments = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in given]
        if libc.prctl(option, *arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"prctl {option}: {os.strerror(number)}")

    prctl(_DEATH_SIGNAL, _KILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before that
    prctl(_DUMPABLE, 0)
    prctl(_NO_NEW_PRIVILEGES, 1)
    filter = _Program(len(program) // 8, program)
    prctl(_SECCOMP, _FILTER, ctypes.byref(filter))


def told(error: BaseException) -> str:
    """What was raised, and in which line; whatever its own methods do."""
    try:
        place, trace = "", error.__traceback__
        while trace is not None:
            file = trace.tb_frame.f_code.co_filename
            if file in ("answer", "tests"):
                place = f" (line {trace.tb_lineno} of the {file})"
            trace = trace.tb_next
        if isinstance(error, SystemExit):
            return f"it exited before its tests ended{place}"
        text = str(error)[:200]
        return f"{type(error).__name__}{': ' if text else ''}{text}{place}"
    except BaseException:  # noqa: BLE001 - whatever the code's own class raises
        return "it failed, and so did what tells why"


def watch(event: str, _: object) -> None:
    """An audit hook, which nobody can take out: no looking for objects that have no name, no
    stepping through frames, no instructions that no compiler wrote, no access to raw memory."""
    if event in _HIDDEN or event.startswith("ctypes."):
        raise RuntimeError(f"{event} is not allowed here")


def prepared(request: dict[str, Any]) -> list[Any]:
    """The token, and an iterator of what is done before it goes out; the request loses them."""
    # Not __main__, so that what only a script does is left out; but the runner is nobody's to see.
    module = sys.modules["answer"] = sys.modules["__main__"] = types.ModuleType("answer")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ctypes", "_ctypes")]:
        del sys.modules[name]
    restored = functools.partial(vars(builtins).update, dict(vars(builtins)))
    answer, tests = (
        functools.partial(
            exec, compile(request.pop(name), name, "exec", dont_inherit=True), vars(module)
        )
        for name in ("answer", "tests")
    )
    return [request.pop("token").encode(), iter([answer, restored, tests])]


def run(request: dict[str, Any]) -> None:
    """Run the answer, then the tests in its namespace; the token goes out only where both came to
    their end."""
    write, leave, failed = os.write, os._exit, told
    write(1, b".")
    try:
        pending = prepared(request)
        # While they run neither the token nor what is yet to be run has a name: they are on the
        # evaluation stack, which is not to be seen from a frame, nor to be changed.
        write(1, [pending.pop(0), *map(operator.call, pending.pop())][0])
    except BaseException as error:  # noqa: BLE001 - nothing of it may go on
        write(1, b"!" + failed(error).encode(errors="replace"))
        leave(1)
    leave(0)


def main() -> None:
    request: dict[str, Any] = json.load(sys.stdin)
    for name in MODULES.split():
        __import__(name)
    printed = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), "utf-8", "replace", write_through=True
    )
    for stream in ("stdout", "stderr", "stdin"):
        for name in (stream, f"__{stream}__"):
            setattr(sys, name, io.StringIO() if stream == "stdin" else printed)
    limit(request.pop("memory"), request.pop("seconds"))
    confine(bytes.fromhex(request.pop("filter")), request.pop("parent"))
    sys.addaudithook(watch)
    run(request)


if __name__ == "__main__":
    main()
