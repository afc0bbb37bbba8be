"""Files of Python code, edited in the middle, that end where a function is to be written."""

from __future__ import annotations

import ast
import keyword
import random
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from app.engines.embedded.tokenizer import Tokenizer
from app.prompt_files import read_objects

Kind: TypeAlias = Literal["insert", "delete", "replace"]
KINDS: tuple[Kind, ...] = ("insert", "delete", "replace")
_GAP = "\n\n"  # between two functions
_TRIES = 200  # draws of one edit; about one in three leaves code that parses
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Function:
    """A function: its signature and docstring, with what stands before them, and its body."""

    prompt: str
    body: str

    @property
    def text(self) -> str:
        return self.prompt + self.body + _GAP


@dataclass(frozen=True)
class Edit:
    """A file before and after an edit, as text; `last` ends both, untouched."""

    kind: Kind
    before: str
    after: str
    last: str


def read_functions(path: Path) -> list[Function]:
    """A file of HumanEval's form. Raises OSError, and ValueError naming the line and what it
    lacks."""
    found = []
    for number, value in read_objects(path):
        for name in ("prompt", "canonical_solution"):
            if not isinstance(value.get(name), str) or not value[name].strip():
                raise ValueError(f"{path}:{number}: {name}: is missing or empty")
        function = Function(value["prompt"], value["canonical_solution"])
        if not (_parses(function.text) and _parses(function.prompt)):
            raise ValueError(f"{path}:{number}: prompt: is no Python with a docstring")
        found.append(function)
    return found


def draw(
    functions: Sequence[Function], kind: Kind, tokenizer: Tokenizer, tokens: int, seed: int
) -> Edit:
    """A file of about `tokens` tokens, functions that are drawn, and an edit at a place that is
    drawn; the file parses before and after it.

    An insertion is another function between two, or a line of another; a deletion is of one to
    three lines; a replacement gives one name in a line another of the file's names. Raises
    ValueError where so few tokens hold no two functions, or no edit is found.
    """
    drawn = random.Random(seed)
    last, *others = drawn.sample(functions, len(functions))
    used: list[Function] = []
    left = tokens - len(tokenizer.encode(last.prompt))
    for function in others:
        length = len(tokenizer.encode(function.text))
        if length <= left:
            used.append(function)
            left -= length
    if not used:
        raise ValueError(f"{tokens} tokens hold no function beside the one to be written")
    texts = [function.text for function in used]
    unused = [function for function in others if function not in used]
    before = "".join(texts)
    for _ in range(_TRIES):
        after = _EDITS[kind](drawn, texts, unused)
        if after is not None and after != before and _parses(after + last.prompt):
            return Edit(kind, before + last.prompt, after + last.prompt, last.prompt)
    raise ValueError(f"no edit of kind {kind} was found that leaves a file of Python")


def _insert(drawn: random.Random, texts: Sequence[str], unused: Sequence[Function]) -> str | None:
    if not unused:
        return None
    other = drawn.choice(unused)
    if drawn.random() < 0.5:
        at = drawn.randint(1, len(texts))
        return "".join([*texts[:at], other.text, *texts[at:]])
    line = drawn.choice(other.body.splitlines(keepends=True))
    lines = _lines(texts)
    at = drawn.randint(1, len(lines) - 1)
    return "".join([*lines[:at], line, *lines[at:]]) if line.strip() else None


def _delete(drawn: random.Random, texts: Sequence[str], unused: Sequence[Function]) -> str | None:
    lines = _lines(texts)
    at, count = drawn.randint(1, len(lines) - 1), drawn.randint(1, 3)
    if not "".join(lines[at : at + count]).strip():
        return None  # nobody would notice
    return "".join([*lines[:at], *lines[at + count :]])


def _replace(drawn: random.Random, texts: Sequence[str], unused: Sequence[Function]) -> str | None:
    lines = _lines(texts)
    names = sorted(_names("".join(texts)))
    at = drawn.randint(1, len(lines) - 1)
    there = [name for name in dict.fromkeys(_NAME.findall(lines[at])) if name in names]
    if not there or len(names) < 2:
        return None
    old = drawn.choice(there)
    new = drawn.choice([name for name in names if name != old])
    return "".join([*lines[:at], re.sub(rf"\b{old}\b", new, lines[at]), *lines[at + 1 :]])


_EDITS: dict[Kind, Callable[[random.Random, Sequence[str], Sequence[Function]], str | None]] = {
    "insert": _insert,
    "delete": _delete,
    "replace": _replace,
}


def _lines(texts: Sequence[str]) -> list[str]:
    return "".join(texts).splitlines(keepends=True)


def _names(code: str) -> set[str]:
    """What variables and arguments are called in it."""
    nodes = list(ast.walk(_tree(code)))
    found = {node.id for node in nodes if isinstance(node, ast.Name)}
    found |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return {name for name in found if not keyword.iskeyword(name)}


def _parses(code: str) -> bool:
    try:
        _tree(code)
    except SyntaxError:
        return False
    return True


def _tree(code: str) -> ast.Module:
    with warnings.catch_warnings():  # of escapes in other people's strings
        warnings.simplefilter("ignore")
        return ast.parse(code)
