"""Code that would pass without its tests having been run to their end."""

from __future__ import annotations

import pytest

from app.sandbox import Limits, run_python

LIMITS = Limits(seconds=5, memory_mib=128)
EXITED = "it exited before its tests ended"

# Looks through everything that can be reached from frames, modules and objects it finds on the way.
SEARCH = """
import os, re, sys, types

def reachable():
    frame, pending, seen = sys._getframe(), [sys.modules, vars(os)], set()
    while frame is not None:
        pending += [frame.f_locals, frame.f_globals, frame.f_builtins, frame.f_code]
        frame = frame.f_back
    while pending:
        found = pending.pop()
        if id(found) in seen or len(seen) > 300_000:
            continue
        seen.add(id(found))
        yield found
        if isinstance(found, (dict, types.MappingProxyType)):
            pending += [*found.keys(), *found.values()]
        elif isinstance(found, (list, tuple, set, frozenset)):
            pending += found
        elif not isinstance(found, (str, bytes, int, float)):
            for name in ("__dict__", "__closure__", "__defaults__", "__self__", "__wrapped__",
                         "cell_contents", "func", "args", "co_consts", "__code__", "keywords"):
                try:
                    pending.append(getattr(found, name))
                except Exception:
                    pass

for found in reachable():
    text = found.decode("latin-1") if isinstance(found, bytes) else found
    if isinstance(text, str) and re.fullmatch("[0-9a-f]{32}", text):
        print("found", text)
        os.write(1, text.encode())
        os._exit(0)
"""


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "exit = quit = None\nimport builtins\nbuiltins.exec = builtins.print = lambda *a: None\n"
        "import os\nos.write = lambda *a: 0\nos._exit(0)",
        "import os\nos.write(1, b'.')\nos._exit(0)",
        "import os\nfor marker in (b'passed', b'OK', b'.', b'{\"passed\": true}', b'0' * 32):\n"
        "    os.write(1, marker)\nos._exit(0)",
        "import atexit, os\natexit.register(os._exit, 0)\nraise KeyboardInterrupt",
        "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\n1 / 0",
        "def f():\n    import os\n    os._exit(0)",
        "def f():\n    raise SystemExit(0)",
        "class f:\n    def __init__(self): import sys; sys.exit()",
        "import sys\nsys.modules['__main__'].told = lambda e: ''\ndef f(): raise GeneratorExit",
        SEARCH,
        "def f():\n" + "".join(f"    {line}\n" for line in SEARCH.splitlines()),
    ],
)
async def test_it_does_not_pass(source: str) -> None:
    outcome = await run_python(source, LIMITS, "f()\nassert False")
    assert not outcome.passed
    assert outcome.why.startswith(
        (
            EXITED,
            "KeyboardInterrupt",
            "ZeroDivisionError",
            "GeneratorExit",
            "NameError",
            "AssertionError",
            "NotImplementedError",
        )
    )


@pytest.mark.parametrize(
    "way",
    [
        "import gc\ngc.get_objects()",
        "import gc\ngc.get_referrers(print)",
        "import gc, sys\ngc.get_referents(sys._getframe())",
        "import sys\nsys.settrace(print)",
        "import sys\nsys.setprofile(print)",
        "(lambda: 0).__code__.replace(co_consts=())",
        "import marshal\nmarshal.loads(marshal.dumps(compile('', '', 'exec')))",
        "import _ctypes",
        "import ctypes",
    ],
)
async def test_what_would_look_into_the_interpreter_is_closed(way: str) -> None:
    outcome = await run_python(way, LIMITS)
    assert "not allowed here" in outcome.why or "ModuleNotFoundError" in outcome.why


async def test_what_it_does_to_builtins_does_not_outlast_it() -> None:
    source = "import builtins\nbuiltins.abs = builtins.len = lambda x: 0"
    outcome = await run_python(source, LIMITS, "assert abs(-1) == len('x') == 1")
    assert outcome.passed


async def test_tests_are_not_to_be_had_before_they_run() -> None:
    source = SEARCH.replace("[0-9a-f]{32}", ".*SE[C]RET.*")
    outcome = await run_python(source, LIMITS, "assert 'SECRET'")
    assert outcome.passed, outcome.why


async def test_what_is_kept_less_carefully_would_be_found() -> None:
    hidden = "import functools, abc\nabc.kept = functools.partial(print, {'token': 'ab' * 16})"
    outcome = await run_python(f"{hidden}\n{SEARCH}", LIMITS)
    assert outcome.output == f"found {'ab' * 16}\n" and not outcome.passed
