"""What an answer is worth beside a known one: numbers, letters, code, words in common, pass@k."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from app.bench.tasks import exact_match, f1

_NUMBER = r"-?(?:\$\s?)?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+"
_TERM = rf"[($€ ]{{0,3}}(?:{_NUMBER})[) ]{{0,3}}"
_SUM = rf"(?:(?:{_TERM}[-+*/x×÷])+{_TERM}=[*$€ ]{{0,4}})?"  # `16 + 12 = `, ahead of what it makes
_SAID = re.compile(  # where an answer says that this is its result, rather than a step
    rf"(?:####\W*?|\\boxed\{{\W*?|answer(?: is|:)\W*?){_SUM}({_NUMBER})", re.IGNORECASE
)
_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)
_DEFINES = re.compile(r"^(?:async )?(?:def|class)\s+(\w+)", re.MULTILINE)


def number_of(text: str) -> Decimal | None:
    """The number that an answer gives: the last one said to be it (`#### 18`, `\\boxed{18}`,
    "the answer is 18"), else the last one at all. None: there is none."""
    found = _SAID.findall(text) or re.findall(_NUMBER, text)
    if not found:
        return None
    try:
        return Decimal(re.sub(r"[$,\s]", "", found[-1]))
    except InvalidOperation:  # digits of other scripts that are none to Decimal
        return None


def letter_of(text: str, offered: Sequence[str]) -> str | None:
    """The letter that an answer chooses among those offered: the one said to be the answer, the
    one it begins with, else the first that stands as `B.`, `B)` or `B:`, or alone at the end."""
    letters = "".join(map(re.escape, offered))
    for pattern in (
        rf"(?i:answer)(?i:\s+is)?[\s:*(\"']+([{letters}])\b(?!\s+[a-z])",
        rf"\A[\s*(\"']*([{letters}])(?:\W*\Z|[.):,*\"\n])",
        rf"\b([{letters}])(?:[.):]|\W*\Z)",
    ):
        if found := re.search(pattern, text):
            return found[1]
    return None


def code_of(text: str, entry: str) -> str | None:
    """The Python of an answer that is to define `entry`: its last fenced block that does, a fence
    left open included; else the whole text, where that does. None: nothing defines it."""
    for block in (*reversed(_FENCED.findall(text)), text):
        if entry in _DEFINES.findall(block):
            return str(block)
    return None


def program(prompt: str, answer: str, entry: str) -> str:
    """HumanEval's program: the Python that the prompt has before the function, if it begins with
    that, then the answer's code.

    Where the answer defines nothing of that name, it is taken as the function's body.
    """
    before = prompt[: match.start()] if (match := _defined(prompt, entry)) else ""
    before = before if _is_python(before) else ""
    code = code_of(answer, entry)
    if code is None:
        blocks = _FENCED.findall(answer)
        before, code = "", prompt + (blocks[-1] if blocks else answer)
    return f"{before}\n{code}\n"


def _defined(prompt: str, entry: str) -> re.Match[str] | None:
    return re.search(rf"^def\s+{re.escape(entry)}\b", prompt, re.MULTILINE)


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def examples(prompt: str, entry: str) -> str:
    """Assertions of the doctest examples in a prompt, one a line, and one that `entry` is there.

    What a solver may know: none of the hidden tests. Examples that raise are left.
    """
    found = [f"assert callable({entry})"]
    for call, result in re.findall(r">>> (.+)\n\s*(\S.*)", prompt):
        sides = _plain(call), _plain(result)
        if entry in call and all(sides):
            found.append(f"assert ({sides[0]}) == ({sides[1]})")
    return "\n".join(found) + "\n"


def _plain(expression: str) -> str | None:
    """Without its comments; None: it is none."""
    try:
        return ast.unparse(ast.parse(expression.strip(), mode="eval"))
    except SyntaxError:
        return None


def _words(text: str) -> list[str]:
    """As the package rouge_score, without a stemmer."""
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_l(said: str, reference: str) -> float:
    """ROUGE-L's F1: the longest common subsequence of words, by both texts' lengths (Lin, 2004)."""
    ours, theirs = _words(said), _words(reference)
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0
        for at, other in enumerate(theirs, 1):
            before, row[at] = row[at], before + 1 if word == other else max(row[at], row[at - 1])
    return 2 * row[-1] / (len(ours) + len(theirs)) if row[-1] else 0.0


def hotpot_f1(said: str, answer: str) -> float:
    """HotpotQA's: as SQuAD's, but a yes or no is right as a whole or not at all."""
    verdicts = ("yes", "no", "noanswer")
    if any(exact_match(text, verdict) for text in (said, answer) for verdict in verdicts):
        return exact_match(said, answer)
    return f1(said, answer)


def pass_at(k: int, samples: int, right: int) -> float:
    """The chance that one of k samples is right, unbiased from `samples` of which `right` were:
    1 - C(samples - right, k) / C(samples, k) (Chen et al., 2021). Raises ValueError for a k that is
    not from 1 to `samples`.
    """
    if not 0 < k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, not {samples}")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)
