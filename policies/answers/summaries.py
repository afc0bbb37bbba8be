"""A long text summed up part by part, what must stay of it in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from app.types import Call, Engine
from policies.answers.asking import asked, replies
from policies.answers.cutting import Words

LEAST = 60  # words of a part that is summed up; shorter ones stay
_TOGETHER = 4
_GAP = re.compile(r"(\n[^\S\n]*\n\s*)")
_SPARE = 8  # tokens for an end
_ENDS = ".!?…。！？؟"
_ASKS = (
    "Rewrite the following text in at most {words} words. Keep every name, number and date."
    " Write nothing but the shorter text.\n\n{text}"
)


def calls(call: Call, words: Words, ratio: float) -> list[Call]:
    """What the model of this call is asked for, for each part that is to be shorter: its words in
    about `ratio` of them, in at most as many tokens."""
    return [_asked(call, part.strip(), ratio) for part, long in _parts(words) if long]


def _parts(words: Words) -> Iterator[tuple[str, bool]]:
    """The text in order, and of each part whether it is summed up: paragraphs, or what is between
    two spans that stay."""
    for piece in words.pieces:
        for part in [piece.text] if piece.kept else _GAP.split(piece.text):
            yield part, not piece.kept and len(part.split()) >= LEAST


def _asked(call: Call, text: str, ratio: float) -> Call:
    said = len(text.split())
    content = _ASKS.format(words=max(int(ratio * said), 1), text=text)
    # English words have 1.3 tokens or so; where they have more the end is cut at a sentence.
    most = int(1.5 * ratio * said) + _SPARE
    return asked(call, [{"role": "user", "content": content}], max_tokens=most)


async def summed_up(words: Words, asking: Sequence[Call], engine: Engine) -> str:
    """The text with these parts shorter; one that did not become so, or failed, stays.

    Raises as the engine where none was answered.
    """
    found = await replies(asking, engine, together=_TOGETHER) if asking else []
    said = {id(reply.call): reply for reply in found}
    rest, left = iter(asking), list[str]()
    for part, long in _parts(words):
        reply = said.get(id(next(rest))) if long else None
        new = "" if reply is None else _ended(reply.text.strip(), reply.whole)
        inner = part.strip()
        if new and len(new) < len(inner):
            begin = part.index(inner)
            left += [part[:begin], new, part[begin + len(inner) :]]
        else:
            left.append(part)
    return "".join(left)


def _ended(text: str, whole: bool) -> str:
    """Without a last sentence that was cut, where there is one before it."""
    if whole:
        return text
    end = max(map(text.rfind, _ENDS)) + 1
    return text[:end] if end else text
