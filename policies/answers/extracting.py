r"""The answer within a text, so written that equal answers are equal strings.

Models end in many ways: GSM8K's `#### 18`, "The answer is $1,234.50.", `\boxed{\frac{1}{2}}`, a
letter of several choices, a fenced block of code, JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

How = Literal["auto", "number", "letter", "boxed", "code", "json", "line", "text"]

_NUMBER = re.compile(
    # Not within a name, a version or a date; "10 - 3" has no negative number.
    r"(?<![\w./])(?:(?<![)\]}])(?P<sign>[-+])(?=[$€£]?-?\.?[0-9]))?[$€£]?[ ]?(?P<minus>-)?"
    r"(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?P<rest>\.[0-9]+)?|(?P<only>\.[0-9]+))"
    r"(?:[eE](?P<power>[-+]?[0-9]{1,3})(?![0-9]))?"
    r"(?:[ ]?/[ ]?(?P<under>[0-9]{1,18})(?![0-9]|[./,][0-9]))?"
)
_IS = r"(?:is|was|are|equals|(?:would|should|must|will)[ ]be)\b[ ]*[:=]?"
_MARKED = re.compile(rf"####|\banswer\b(?:[^\n.:=]{{0,40}}?\b{_IS}|[ ]*[:=])", re.IGNORECASE)
_LETTER_MARKED = re.compile(
    rf"####|\b(?:answer|option|choice)\b[ ]*(?:{_IS}|[:=])?(?:[ ]*(?:option|choice)\b)?",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\s*(?:\(([A-Za-z])\)|([A-Z])(?![\w'’]))")
# Where words may follow too, a letter is no word: not "a dog", nor "I think".
_LETTER_ONLY = re.compile(
    r"\s*(?:\(([A-Za-z])\)|([A-Z])(?=\s*(?:$|[).:,;])|\s+(?:because|since|as)\b))"
)
_ALONE = re.compile(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])\s*(?:[).:]|$))")
_BRACKETED = re.compile(r"\(([A-Z])\)")
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*$", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\s*\{\s*(-?[0-9]+)\s*\}\s*\{\s*(-?[0-9]+)\s*\}")
_UNIT = re.compile(r"\s*%?|\s[A-Za-z.\s]*")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_LATEX = (
    *(("{,}", ","), ("\\,", ""), ("\\!", ""), ("\\;", ""), ("\\$", "$"), ("\\%", "%")),
    *(("\\left", ""), ("\\right", ""), ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac")),
)
_SIGNS = str.maketrans({"−": "-", "–": "-", "*": None, "`": None, "\u00a0": " ", "\u202f": " "})
_EDGES = " \t\r\n.,;:!?\"'“”‘’*_`"
_MOST_TRIED = 64  # places where an answer may begin that are tried
_MOST_DIGITS = 4000  # of a number; Python's integers are read from no longer text


def extract(text: str, how: How = "auto") -> str | None:
    """The answer in this text; None: there is none of this kind.

    `number`: the one marked as the answer (`####`, "answer is", a box), else the last one; without
    separators and needless zeros, fractions in their lowest terms, and never rounded. `letter`: of
    several choices, upper case. `boxed`: what LaTeX's last box holds. `code`: the longest fenced
    block, without fences all of the text. `json`: the longest object or array, its keys in order.
    `line`: the last line that says something; `text`: all of it; both without regard to case and
    spaces. `auto`: a box; what is marked as the answer; code or JSON where the text has some; a
    letter that stands alone; the last number; the last line.
    """
    return _WAYS[how](text)


def number(text: str) -> str | None:
    """The number that this text is, or begins with, as its shortest decimal or lowest fraction."""
    return next(_numbers(text), None)


def _number(text: str) -> str | None:
    boxes = [found for box in _boxes(text) for found in [_of_box(box)] if found is not None]
    if boxes and (found := number(boxes[-1])) is not None:
        return found
    text = _plain(text)
    for said in _marked(text, _MARKED):
        # "The answer is 3 + 4 = 7": what comes after the last sign is the result.
        found = number(said.rpartition("=")[2]) or number(said)
        if found is not None:
            return found
    numbers = map(_canonical, reversed(list(_NUMBER.finditer(text))))
    return next((each for each in numbers if each is not None), None)


def _letter(text: str) -> str | None:
    for box in reversed(list(_boxes(text))):
        alone = _ALONE.fullmatch(_of_box(box) or "")
        if alone is not None:
            return (alone[1] or alone[2]).upper()
    plain = _plain(text)
    for said in _marked(plain, _LETTER_MARKED):
        found = _LETTER.match(said)
        if found is not None:
            return (found[1] or found[2]).upper()
    return _letter_alone(plain) or _last(match[1] for match in _BRACKETED.finditer(plain))


def _letter_alone(text: str) -> str | None:
    """Of a text that begins with one, as `B) because ...`, or whose last line is one."""
    if len(set(_BRACKETED.findall(text))) > 1:
        return None
    lines = [line for line in text.splitlines() if line.strip()]
    for line in lines[:1] + lines[-1:]:
        found = _ALONE.match(line)
        if found is not None:
            return (found[1] or found[2]).upper()
    return None


def _boxed(text: str) -> str | None:
    return _last(filter(None, map(_of_box, _boxes(text))))


def _of_box(box: str) -> str | None:
    for old, new in _LATEX:
        box = box.replace(old, new)
    box = _WRAPPED.sub(r"\1", box).strip("$ ").rstrip(".")
    found = _FRACTION.fullmatch(box.strip())
    if found is not None:
        return _fraction(found[1] + found[2], found[3])
    with_unit = _NUMBER.match(box.translate(_SIGNS))
    if with_unit is not None and _UNIT.fullmatch(box, with_unit.end()):
        return _canonical(with_unit)
    return "".join(box.split()) or None


def _boxes(text: str) -> Iterator[str]:
    """What is in each box, braces within it included; of one that does not end, nothing."""
    for box in list(_BOX.finditer(text))[-_MOST_TRIED:]:
        depth = 1
        for at in range(box.end(), min(len(text), box.end() + 2000)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                yield text[box.end() : at]
                break


def _code(text: str) -> str | None:
    blocks = [code for _, code in _fenced(text)]
    found = max(blocks, key=len) if blocks else text
    lines = [line.rstrip() for line in found.splitlines()]
    return "\n".join(lines).strip("\n") or None


def _fenced(text: str) -> Iterator[tuple[str, str]]:
    """The language and the lines of each fenced block; the last one may not have ended yet."""
    begun: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if begun is None:
            begun = fence
        elif fence[1].startswith(begun[1]) and not fence[2]:
            yield begun[2].lower(), text[begun.end() + 1 : fence.start()]
            begun = None
    if begun is not None:
        yield begun[2].lower(), text[begun.end() + 1 :]


def _json(text: str) -> str | None:
    decoder = json.JSONDecoder(
        parse_int=_Numeral, parse_float=_Numeral, parse_constant=_Numeral, strict=False
    )
    best, found, at = 0, None, 0
    for _ in range(_MOST_TRIED):
        begin = min((i for i in (text.find("{", at), text.find("[", at)) if i >= 0), default=-1)
        if begin < 0:
            break
        try:
            value, at = decoder.raw_decode(text, begin)
            if at - begin > best:
                best, found = at - begin, _written(value)
        except (ValueError, RecursionError):  # no JSON, or nested too deep to be an answer
            at = begin + 1
    return found


class _Numeral(str):
    """A number in JSON as it was written."""


def _written(value: Any) -> str:
    """As JSON, its keys in order; numbers that are equal are written alike."""
    if isinstance(value, _Numeral):
        whole = _NUMBER.fullmatch(value)
        return str(value) if whole is None else _canonical(whole) or str(value)
    if isinstance(value, dict):
        pairs = sorted((json.dumps(key), _written(one)) for key, one in value.items())
        return "{" + ",".join(f"{key}:{one}" for key, one in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return json.dumps(value)


def _line(text: str) -> str | None:
    return _last(filter(None, map(_said, text.splitlines())))


def _text(text: str) -> str | None:
    return _said(text)


def _said(text: str) -> str | None:
    return " ".join(text.casefold().split()).strip(_EDGES) or None


def _auto(text: str) -> str | None:
    for way in (_boxed, _marked_as_answer, _block, _short_letter, _number, _line):
        found = way(text)
        if found is not None:
            return found
    return None


def _marked_as_answer(text: str) -> str | None:
    """What follows `####` or "answer is": a number, a letter, or words."""
    plain = _plain(text)
    for said in _marked(plain, _MARKED):
        letter = _LETTER_ONLY.match(said)
        if letter is not None:
            return (letter[1] or letter[2]).upper()
        found = number(said.rpartition("=")[2]) or number(said) or _said(said)
        if found is not None:
            return found
    return None


def _block(text: str) -> str | None:
    languages = [language for language, _ in _fenced(text)]
    if languages and set(languages) <= {"json", ""}:
        return _json(text) or _code(text)
    if languages:
        return _code(text)
    return _json(text) if text.lstrip()[:1] in ("{", "[") else None


def _short_letter(text: str) -> str | None:
    return _letter_alone(_plain(text))


def _marked(text: str, mark: re.Pattern[str]) -> Iterator[str]:
    """What follows each such mark, to the end of its line or sentence; the last one first."""
    for found in list(mark.finditer(text))[: -_MOST_TRIED - 1 : -1]:
        line = text[found.end() : found.end() + 400].lstrip().partition("\n")[0]
        said = re.split(r"[.!?](?=\s|$)", line, maxsplit=1)[0]
        if said.strip(_EDGES):
            yield said


def _numbers(text: str) -> Iterator[str]:
    for found in _NUMBER.finditer(text):
        canonical = _canonical(found)
        if canonical is not None:
            yield canonical


def _canonical(found: re.Match[str]) -> str | None:
    """The number as its shortest decimal, or lowest fraction."""
    whole = (found["whole"] or "0").replace(",", "")
    rest = (found["rest"] or found["only"] or ".")[1:]
    negative = (found["sign"] == "-") != (found["minus"] == "-")
    power = int(found["power"] or 0)
    if power:
        whole, rest = _shifted(whole, rest, power)
    whole, rest = whole.lstrip("0") or "0", rest.rstrip("0")
    sign = "-" if negative and (whole, rest) != ("0", "") else ""
    if found["under"]:
        return _fraction(sign + whole + rest, found["under"] + "0" * len(rest))
    return f"{sign}{whole}.{rest}" if rest else sign + whole


def _shifted(whole: str, rest: str, power: int) -> tuple[str, str]:
    """The digits before and after a point that has moved; digits stay as they are."""
    if power > 0:
        rest = rest.ljust(power, "0")
        return whole + rest[:power], rest[power:]
    whole = whole.rjust(-power, "0")
    return whole[:power], whole[power:] + rest


def _fraction(over: str, under: str) -> str | None:
    if max(len(over), len(under)) > _MOST_DIGITS or int(under) == 0:
        return None
    a, b = int(over), int(under)
    shared = math.gcd(a, b) * (1 if b > 0 else -1)
    a, b = a // shared, b // shared
    twos = fives = 0
    rest = b
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"{a}/{b}"
    # It ends: 1/4 and 0.25 are one answer.
    places = max(twos, fives)
    digits = str(abs(a) * 10**places // b).rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :].rstrip("0")
    return ("-" if a < 0 else "") + whole + (f".{decimals}" if decimals else "")


def _plain(text: str) -> str:
    """Without emphasis and LaTeX's spaces, with a minus that is one."""
    for old, new in _LATEX[:6]:
        text = text.replace(old, new)
    return _WRAPPED.sub(r"\1", text).translate(_SIGNS)


def _last(found: Iterator[str]) -> str | None:
    last = deque(found, maxlen=1)
    return last[0] if last else None


_WAYS: Mapping[How, Callable[[str], str | None]] = {
    "auto": _auto,
    "number": _number,
    "letter": _letter,
    "boxed": _boxed,
    "code": _code,
    "json": _json,
    "line": _line,
    "text": _text,
}
