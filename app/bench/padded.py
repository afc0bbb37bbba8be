"""Questions over a context that is padded with others' paragraphs to a length in tokens."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.bench.reading import Measured
from app.bench.tasks import answers_of

# Facts that stand before every text, and questions about them that are answered before the one that
# is asked: a small model does not answer briefly because it is told to, but goes on as it began.
_SHOTS = (
    ("Everest was first climbed on 29 May 1953.", "When was Everest climbed?", "29 May 1953"),
    ("The Danube flows into the Black Sea.", "Where does the Danube flow?", "into the Black Sea"),
)


@dataclass(frozen=True)
class Padded:
    """A question as token ids, the answers that count as right, and one of them as ids."""

    ids: tuple[int, ...]
    right: tuple[str, ...]
    reference: tuple[int, ...]


def padded(
    model: Measured, question: Mapping[str, Any], others: Sequence[str], tokens: int, seed: int
) -> Padded:
    """A prompt of about `tokens` tokens, at most: the question's own context stands at a place
    drawn among paragraphs drawn from `others`; of the last of these only a part may be there.
    Where `others` hold too little it is shorter. No chat: text, to be gone on from, with two
    answered questions before the one that is asked; the answer ends with its line.

    Raises ValueError where the question alone is longer.
    """
    drawn = random.Random(seed)
    own = str(question["context"])
    pool = [text for text in others if text != own]
    drawn.shuffle(pool)
    around: list[str] = []
    place = drawn.random()

    def asked(texts: Sequence[str]) -> list[int]:
        at = round(place * len(texts))
        context = "\n\n".join([*texts[:at], own, *texts[at:]])
        facts = " ".join(fact for fact, _, _ in _SHOTS)
        answered = "".join(f"Question: {asked}\nAnswer: {said}\n\n" for _, asked, said in _SHOTS)
        asks = f"Question: {question['question']}\nAnswer:"
        return model.tokenizer.encode(f"Text: {facts} {context}\n\n{answered}{asks}")

    ids = asked(around)
    if len(ids) > tokens:
        raise ValueError(f"a question of {len(ids)} tokens does not fit {tokens}")
    for text in pool:
        longer = asked([*around, text])
        if len(longer) > tokens:
            words = text.split()
            share = (tokens - len(ids)) / (len(longer) - len(ids))
            part = " ".join(words[: int(0.95 * share * len(words))])
            cut = asked([*around, part]) if part else ids
            ids = cut if len(cut) <= tokens else ids
            break
        around, ids = [*around, text], longer
    right = answers_of(question)
    return Padded(tuple(ids), tuple(right), tuple(model.tokenizer.encode(f" {right[0]}")))


def template_opening(model: Measured) -> int:
    """How many tokens the template writes before what the user says."""
    one, other = model.chat("A"), model.chat("b")
    return next(at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def rouge_l(said: str, reference: str) -> float:
    """ROUGE-L's F1: by the longest common subsequence of words (Lin 2004)."""
    ours, theirs = (re.findall(r"\w+", text.lower()) for text in (said, reference))
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0
        for at, other in enumerate(theirs, 1):
            above = row[at]
            row[at] = before + 1 if word == other else max(above, row[at - 1])
            before = above
    common = row[-1]
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0
