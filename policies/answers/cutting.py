"""Words are left out of a text until it has so many tokens, and what is left reads as one."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from policies.answers.spans import pieces

_WORD = re.compile(r"(\s*)(\S+)")
_OPEN, _CLOSE, _ENDS = "([{", ")]}", ".!?…。！？؟;:"
_HAN = "\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # written without spaces: each is a word
_KANA = "\u3040-\u30ff"  # so is a run of these
_EAST = re.compile(f"[{_HAN}]|[{_KANA}]+|[^{_HAN}{_KANA}]+")
# Written without spaces, and nobody tells the words of a line apart.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_JOINERS = "'’-‐\u200c\u200d"
_DENIALS = frozenset(
    ("no", "not", "nor", "never", "none", "without", "neither", "cannot", "nobody", "nothing")
)
_ROUNDS = 14  # counts of one text, at most


@dataclass(frozen=True, slots=True)
class Word:
    """What may be left out, or not; with the white space before it."""

    space: str
    text: str
    start: int  # of its core in the text as shown: characters
    end: int
    free: bool  # whether it may be left out
    name: bool = False  # whether it has a capital amid a sentence
    lead: str = ""  # brackets that open before its core
    trail: str = ""  # marks after it


class Words:
    """A text as words, some of which may be left out."""

    def __init__(self, text: str) -> None:
        self._words: list[Word] = []
        self._at = 0
        self.pieces = parts = pieces(text)
        for number, piece in enumerate(parts):
            if piece.kept:
                self._add("", piece.text, free=False)
                continue
            self._split(piece.text, number > 0, number + 1 < len(parts))
        self.text = "".join(word.space + word.text for word in self._words)
        self.free = [number for number, word in enumerate(self._words) if word.free]

    def __getitem__(self, number: int) -> Word:
        return self._words[number]

    def _split(self, text: str, before: bool, after: bool) -> None:
        """`before`, `after`: whether something that is kept stands beside it."""
        end = 0
        for match in _WORD.finditer(text):
            end = match.end()
            # A word goes whole or stays: so does what is joined to something that stays.
            joined = before and match.start() == 0 and not match[1]
            joined = joined or (after and end == len(text))
            space = match[1]
            for part in _EAST.findall(match[2]):
                self._add(space, part, free=not joined)
                space = ""
        if end < len(text):
            self._add(text[end:], "", free=False)

    def _add(self, space: str, text: str, free: bool) -> None:
        start = self._at + len(space)
        self._at = start + len(text)
        word = Word(space, text, start, self._at, free=False)
        if free:
            core = text.lstrip(_OPEN)
            lead = text[: len(text) - len(core)]
            core = core.rstrip(f",{_ENDS}{_CLOSE}")
            trail = text[len(lead) + len(core) :]
            begin, end = start + len(lead), self._at - len(trail)
            name = core[:1].isupper() and self._amid(space)
            word = Word(space, text, begin, end, _plain(core), name, lead, trail)
        self._words.append(word)

    def _amid(self, space: str) -> bool:
        """Whether what comes after this space goes on with a sentence."""
        before = self._words[-1].text[-1:] if self._words else ""
        return bool(before) and before not in _ENDS and "\n" not in space

    def without(self, dropped: Sequence[int]) -> str:
        """The text without these words: in order, its paragraphs and sentences still ended."""
        gone, left = set(dropped), _Left()
        for number, word in enumerate(self._words):
            if number in gone:
                left.drop(word)
            else:
                left.keep(word)
        return "".join(left.parts)


class _Left:
    """What is left of a text."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._gap: str | None = None  # white space before what was left out
        self._opened = ""  # brackets before it
        self._free = False  # whether the last word is free text

    def keep(self, word: Word) -> None:
        space = word.space
        if self._gap is not None:
            space = max(self._gap, space, key=lambda each: each.count("\n"))
        self.parts.append(f"{space}{self._opened}{word.text}")
        self._gap, self._opened, self._free = None, "", bool(word.lead or word.trail or word.free)

    def drop(self, word: Word) -> None:
        gap = word.space if self._gap is None else self._gap
        self._gap = max(gap, word.space, key=lambda each: each.count("\n"))
        self._opened += word.lead
        closing = [mark for mark in word.trail if mark in _CLOSE]
        while closing and self._opened:
            del closing[0]
            self._opened = self._opened[:-1]
        ends = [mark for mark in word.trail if mark in _ENDS]
        if not self.parts or "\n" in self._gap:
            return  # there is nothing before it in its paragraph
        last = self.parts[-1].rstrip(",") if self._free and ends else self.parts[-1]
        if ends and last and last[-1] not in _ENDS and not self._opened:
            closing += ends[:1]
        elif last != self.parts[-1] and not closing:
            last = self.parts[-1]
        self.parts[-1] = last + "".join(closing)


def _plain(core: str) -> bool:
    """Whether this is a word of letters: numbers, names with marks in them, addresses, symbols
    and what denies stay."""
    if not core or core.lower() in _DENIALS or core.lower().endswith(("n't", "n’t")):
        return False
    if core.isascii():
        return core.isalpha() or (core[0].isalpha() and core.translate(_NO_JOINERS).isalpha())
    if _UNSPACED.search(core):
        return False
    return unicodedata.category(core[0])[0] == "L" and all(
        char in _JOINERS or unicodedata.category(char)[0] in "LM" for char in core
    )


_NO_JOINERS = str.maketrans("", "", _JOINERS)


@dataclass(frozen=True, slots=True)
class Cut:
    """A text from which words were left out."""

    text: str
    tokens: int
    words: int  # that were left out


async def cut(
    words: Words, order: Sequence[int], goal: int, count: Callable[[str], Awaitable[int]]
) -> Cut:
    """As few words left out as brings the text to `goal` tokens, in this order, or all of them.

    `count`: tokens of a text. Each word adds a few of them, so that the result has one or two less
    than `goal` at most, or one word's.
    """
    low, below = 0, await count(words.text)
    if below <= goal or not order:
        return Cut(words.text, below, 0)
    high, text = len(order), words.without(order)
    above = await count(text)
    best = Cut(text, above, high)
    for number in range(_ROUNDS):
        if above >= goal - 1 or high - low <= 1:
            break
        share = (below - goal) / (below - above) if number < _ROUNDS // 2 else 0.5
        middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        text = await asyncio.to_thread(words.without, order[:middle])
        tokens = await count(text)
        if tokens > goal:
            low, below = middle, tokens
        else:
            high, above, best = middle, tokens, Cut(text, tokens, middle)
    return best
