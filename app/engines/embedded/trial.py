"""Whether a grammar compiles within bounds, tried where it can be ended: in a process of its own.

llguidance bounds most of its work, but not all: to find that eighteen patterns have nothing in
common takes it a second, and each further one doubles that. A thread cannot be ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import EngineError

MOST = 5.0  # seconds, of which starting takes 0.1
_MEMORY = 2**30  # bytes
_CPU = 10  # seconds: it ends also where this process did, and nobody is left to end it
# It looks for llguidance where this process found it, says that it has begun, then what it found.
_SCRIPT = f"""
import json, sys
sys.path[:], whole, *parts = json.load(sys.stdin)
from llguidance import LLMatcher
if sys.platform != "win32":
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
    resource.setrlimit(resource.RLIMIT_CPU, ({_CPU}, {_CPU}))
print(flush=True)
failed, said = LLMatcher.validate_grammar_with_warnings(whole)
tried = ((n, LLMatcher.validate_grammar_with_warnings(part)) for n, part in enumerate(parts))
own = next(((n, said[0]) for n, (bad, said) in tried if bad), None) if failed else None
json.dump((own or (None, said[0])) if failed else None, sys.stdout)
"""
_TOO_MUCH = "takes too much work to compile"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a grammar."""

    part: int | None  # of those it was made of, the one that is wrong by itself
    says: str


async def fault(whole: str, parts: Sequence[str]) -> Fault | None:
    """What is wrong with this grammar, which was made of these; None: nothing that can be told
    without a vocabulary. Raises EngineError where none can be tried."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-c", _SCRIPT),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(MOST):
            asked = json.dumps([sys.path, whole, *parts]).encode()
            told, wrong = await process.communicate(asked)
    except TimeoutError:
        return Fault(None, _TOO_MUCH)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not told:
        _log.error("no grammar can be tried: %s", wrong.decode(errors="replace"))
        raise EngineError("The engine cannot compile what the answer must look like")
    if process.returncode:
        return Fault(None, _TOO_MUCH)  # no memory was left to it, or no stack
    found = json.loads(told)
    return None if found is None else Fault(*found)
