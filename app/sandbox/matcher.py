"""What runs in the child process that holds a text against a client's schema.

It is started as a file and runs nothing of anybody's: what it needs a process of its own for is
that some schemas take for ever, in time or on the stack, and then it is just killed. On standard
input comes one JSON object; descriptor 1 takes the result.
"""

import json
import os
import resource
import sys
from importlib import import_module
from typing import Any


def number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def main() -> None:
    request: dict[str, Any] = json.load(sys.stdin)
    sys.path.append(request["packages"])
    validator = import_module("jsonschema_rs")
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere it bounds nothing, or cannot be set
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    os.write(1, b".")
    patterns = validator.RegexOptions(size_limit=request["pattern"])
    try:
        # Offline: a reference to another document is refused, not fetched.
        compiled = validator.validator_for(
            request["schema"], pattern_options=patterns, offline=True
        )
    except (ValueError, validator.ValidationError, validator.ReferencingError) as error:
        os.write(1, b"!" + str(error).partition("\n")[0].encode(errors="replace")[:300])
        return
    try:
        value = request["text"]
        if request["parsed"]:
            value = json.loads(value, parse_constant=number)
        fits = compiled.is_valid(value)
    except (ValueError, RecursionError):
        fits = False  # not JSON, or more deeply nested than anything is read
    os.write(1, b"1" if fits else b"0")


if __name__ == "__main__":
    main()
