"""Prompts and reference answers out of JSONL files, in the shapes that public sets have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Names under which files have what is asked, what it is about, and a reference answer.
_ASKED = ("original_prompt", "prompt", "instruction", "question")
_ABOUT = ("context", "article")
_ANSWERED = ("response", "answer", "highlights", "output", "completion")


@dataclass(frozen=True)
class Prompt:
    """One line of a file."""

    asked: str
    answer: str | None


def read_prompts(path: Path) -> list[Prompt]:
    """A file of JSON objects, one a line, in the shapes that public sets have.

    `messages` or `turns` (the first one is taken), or one of original_prompt, prompt, instruction,
    question with an optional context; or an `article`, to be summarised. Raises
    FileNotFoundError, and ValueError naming file, line and field.
    """
    found = []
    for number, value in read_objects(path):
        asked = _asked(value)
        if asked is None:
            known = ", ".join(("messages", "turns", *_ASKED, "article"))
            raise ValueError(f"{path}:{number}: has none of the fields {known}")
        found.append(Prompt(asked, _first(value, _ANSWERED)))
    return found


def read_objects(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file's lines, with the lines' numbers; raises as `read_prompts`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    found = []
    # At line feeds alone: JSON may hold the other ends of lines that Python knows.
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode())
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not readable JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}:{number}: must be a JSON object")
        found.append((number, value))
    if not found:
        raise ValueError(f"{path}: is empty")
    return found


def _asked(value: Mapping[str, Any]) -> str | None:
    turns = value.get("turns")
    if isinstance(turns, list) and turns and isinstance(turns[0], str):
        return turns[0]
    messages = value.get("messages")
    if isinstance(messages, list):
        said = [
            m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == "user"
        ]
        return said[0] if said and isinstance(said[0], str) else None
    asked, about = _first(value, _ASKED), _first(value, _ABOUT)
    if asked is None:
        return None if about is None else f"Summarize the following article.\n\n{about}"
    return asked if about is None else f"{asked}\n\n{about}"


def _first(value: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        found = value.get(name)
        if isinstance(found, str) and found.strip():
            return found
    return None
