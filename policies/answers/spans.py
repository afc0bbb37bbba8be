"""What of a text must stay: code, quotations, marked spans, tags, and what is asked of it."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

KEEP, KEPT = "<keep>", "</keep>"
"""Around what a client wants to be kept: its words stay, the marks themselves are taken out."""

_BLANK = re.compile(r"\n[^\S\n]*\n\s*")
_CODE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,})"
    r"|(?P<keep><keep>)"
    r"|<(?P<element>pre|code|script|style)\b"
    r"|(?P<ticks>`+)",
    re.MULTILINE,
)
_SPEECH = re.compile(
    r"(?P<tag><[A-Za-z/!?])"
    r"|(?P<math>\$\$|\\\[|\\\()"
    r"|(?P<quote>[“„«‹「『]|(?<![^\W_])\")"
    r"|(?P<reversed>(?<![^\W_])[”»›](?=\S))"
    r"|(?P<single>(?<![^\W_])['‘‚](?=\S))",
)
_CLOSERS = {"“": "”", "„": "“", "«": "»", "‹": "›", "「": "」", "『": "』", '"': '"'}
_CLOSERS |= {"”": "”", "»": "«", "›": "‹"}
_MATH = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_SINGLE = re.compile(r"(?<=\S)['’](?![^\W_])")
_TICKS = re.compile(r"`+")
_CODE_LINE = re.compile(r"^(?: {4}|\t)[^\S\n]*\S", re.MULTILINE)
_LINES = re.compile(
    r"^[^\S\n]*(?:\#{1,6}[^\S\n]|\|)[^\n]*$"  # headings, rows of tables
    r"|^[^\S\n]*\S{1,40}(?: \S{1,40}){0,5}:[^\S\n]*$",  # labels
    re.MULTILINE,
)
_SENTENCE_END = re.compile(r"[.!?…؟]+[\"'”’»)\]]*\s+|[。！？]\s*|\n\s*")
_ASKS = "?？؟"
_QUESTION = 64  # words that a question has at most, what follows it included
_OPENING = 48  # words of a first paragraph that says what is to be done with what follows
_ORDER = 32  # and of a first sentence


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text as it is shown."""

    text: str
    kept: bool  # byte for byte


def pieces(text: str) -> list[Piece]:
    """All of a text in order, the marks around what is to be kept taken out.

    What is kept: code (fenced, indented: its whole block, inline, elements of HTML), what stands
    in quotation marks, straight or typographic (one that nothing closes: to the paragraph's end),
    spans between `<keep>` and `</keep>` (in fenced and inline code these are text), tags, formulas,
    headings, rows of tables, labels, and what is asked: see `question`.
    """
    scan = _Scan(text)
    code = list(scan.spans(_CODE))
    marked = [span for span, mark in code if mark]
    others = [span for span, mark in code if not mark]
    others += [span for span, _ in scan.spans(_SPEECH, [span for span, _ in code])]
    others += [*_blocks(text), *question(text)]
    kept = [(*span, False) for other in others for span in _without(other, marked)]
    found, at = list[Piece](), 0
    for begin, end, mark in sorted([*kept, *((*span, True) for span in marked)]):
        if begin > at:
            found.append(Piece(text[at:begin], kept=False))
        if mark:
            found.append(Piece(text[begin + len(KEEP) : end - len(KEPT)], kept=True))
        elif end > at:
            found.append(Piece(text[max(begin, at) : end], kept=True))
        at = max(at, end)
    return [piece for piece in (*found, Piece(text[at:], kept=False)) if piece.text]


Span = tuple[int, int]  # where it begins and ends


def _without(span: Span, others: Sequence[Span]) -> Iterator[Span]:
    """What is left of a span without the others, which are in order."""
    at, limit = span
    for begin, end in others[bisect_left(others, at, key=lambda other: other[1]) :]:
        if begin >= limit:
            break
        if begin > at:
            yield at, begin
        at = max(at, end)
    if at < limit:
        yield at, limit


@dataclass
class _Scan:
    """Looks for spans from left to right; in linear time, whatever is opened and never closed."""

    text: str
    _ends: list[int] = field(default_factory=list)  # of paragraphs
    _ticks: dict[int, list[int]] = field(default_factory=dict)  # where runs of so many begin
    _missing: dict[str, int] = field(default_factory=dict)  # there is none of it before this place

    def __post_init__(self) -> None:
        self._ends = [match.start() for match in _BLANK.finditer(self.text)]
        for run in _TICKS.finditer(self.text):
            self._ticks.setdefault(len(run[0]), []).append(run.start())

    def spans(
        self, openers: re.Pattern[str], passed: Sequence[Span] = ()
    ) -> Iterator[tuple[Span, bool]]:
        """What these open, but for what is opened within those passed over; and whether it has
        marks."""
        at, place = 0, 0
        while (opener := openers.search(self.text, at)) is not None:
            while place < len(passed) and passed[place][1] <= opener.start():
                place += 1
            if place < len(passed) and passed[place][0] <= opener.start():
                at = passed[place][1]
                continue
            end = self._end(opener)
            if end is None:
                at = opener.end()
                continue
            yield (opener.start(), end), opener.lastgroup == "keep"
            at = max(end, opener.end())

    def _end(self, opener: re.Match[str]) -> int | None:
        """Where what is opened here ends; None: it is no opener."""
        kind, sign, after = opener.lastgroup, opener[0], opener.end()
        match kind:
            case "fence":
                return self._fence(opener["fence"], after)
            case "keep":
                return self._find(KEPT, after, len(self.text))
            case "element":
                return self._find(f"</{opener['element']}>", after, len(self.text))
            case "tag":
                return self._find(">", after, self._paragraph(after))
            case "ticks":
                return self._inline(len(sign), after)
            case "math":
                return self._find(_MATH[sign], after, self._paragraph(after))
            case "single":
                return self._single(after)
        limit = self._paragraph(after)
        end = self._find(_CLOSERS[sign], after, limit)
        return limit if end is None and kind == "quote" else end

    def _paragraph(self, at: int) -> int:
        """Where the paragraph ends."""
        place = bisect_left(self._ends, at)
        return self._ends[place] if place < len(self._ends) else len(self.text)

    def _find(self, sign: str, at: int, limit: int) -> int | None:
        if at < self._missing.get(sign, 0):
            limit = min(limit, at)
        found = self.text.find(sign, at, limit)
        if found < 0:
            self._missing[sign] = max(self._missing.get(sign, 0), limit)
            return None
        return found + len(sign)

    def _fence(self, sign: str, at: int) -> int:
        """Its last line's end; the text's where there is none, as Markdown has it."""
        mark, least = sign[0], len(sign)
        key = f"fence {mark}{least}"
        if at >= self._missing.get(key, 0):
            closing = re.compile(rf"^ {{0,3}}{re.escape(mark)}{{{least},}}[^\S\n]*$", re.MULTILINE)
            if (found := closing.search(self.text, at)) is not None:
                return found.end()
            self._missing[key] = len(self.text)
        return len(self.text)

    def _inline(self, length: int, at: int) -> int | None:
        starts = self._ticks[length]
        place = bisect_left(starts, at)
        if place == len(starts) or starts[place] > self._paragraph(at):
            return None
        return starts[place] + length

    def _single(self, at: int) -> int | None:
        limit = self._paragraph(at)
        if limit <= self._missing.get("'", 0):
            return None
        found = _SINGLE.search(self.text, at, limit)
        if found is None:
            self._missing["'"] = limit
        return None if found is None else found.end()


def _blocks(text: str) -> Iterator[Span]:
    """Blocks of lines in which one is indented like code, and lines that are headings or rows."""
    starts = [0, *(match.end() for match in _BLANK.finditer(text))]
    for begin, after in zip(starts, [*starts[1:], len(text)], strict=True):
        # The spaces before its first word belong to the gap before it.
        line = text.rfind("\n", 0, begin) + 1
        if _CODE_LINE.search(text, line, after):
            yield line, after
    for match in _LINES.finditer(text):
        yield match.start(), match.end()


def question(text: str) -> Iterator[Span]:
    """What is asked: the part after the last blank line, or where that is most of the text its
    last sentence; the last sentence that asks, with what follows it closely; and a short paragraph
    ahead that says what is to be done, or such a sentence where nothing asks."""
    body, end = text.rstrip(), len(text)
    gaps = list(_BLANK.finditer(body))
    sentences = [0, *(match.end() for match in _SENTENCE_END.finditer(body))]
    tail = gaps[-1].end() if gaps else 0
    if not gaps or _words(body, tail) > max(_QUESTION, _words(body) // 2):
        tail = sentences[-1]
    yield tail, end
    asks = max(map(body.rfind, _ASKS))
    if asks >= 0:
        place = bisect_left(sentences, asks + 1)
        begin = sentences[place - 1]
        close = _words(body, begin) <= _QUESTION
        after = sentences[place] if place < len(sentences) else end
        yield begin, end if close else after
    if gaps and _words(body[: gaps[0].start()]) <= _OPENING:
        yield 0, gaps[0].start()
    elif asks < 0 and len(sentences) > 1 and _words(body[: sentences[1]]) <= _ORDER:
        yield 0, sentences[1]


def _words(text: str, start: int = 0) -> int:
    return len(text[start:].split())


def prose(text: str) -> bool:
    """Whether this is plain text: what a tool gives back may be anything."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or text.lstrip()[:1] in "{[<":
        return False
    plain = sum(char.isalnum() or char.isspace() or char in ".,;:!?'’()-–—%" for char in text)
    wordy = _words(text) / len(lines) >= 8  # tables, listings and logs have short lines
    return wordy and plain >= 0.95 * len(text)
