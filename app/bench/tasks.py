"""Two small tasks with answers to compare: SQuAD, and multiple choice."""

from __future__ import annotations

import re
import statistics
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.estimates import mean
from app.prompt_files import read_objects
from app.types import Sampling

if TYPE_CHECKING:
    from app.bench.reading import Measured  # brings torch, which scoring does without

SQUAD = ("context", "question", "answers")  # fields of a question
MULTIPLE_CHOICE = ("system", "prompt", "answer")


def squad(model: Measured, questions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """SQuAD v1.1's exact match and F1 of short greedy answers."""
    asked = [model.chat(squad_prompt(question)) for question in questions]
    written = model.write(asked, 24, Sampling(temperature=0.0))
    said = [b"".join(map(model.tokenizer.piece, ids)).decode(errors="replace") for ids in written]
    pairs = list(zip(said, map(answers_of, questions), strict=True))
    exact = [max(exact_match(s, a) for a in answers) for s, answers in pairs]
    scores = [max(f1(s, a) for a in answers) for s, answers in pairs]
    return {
        "exact_match": asdict(mean(exact)),
        "f1": asdict(mean(scores)),
        "questions": len(scores),
    }


def read_questions(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a task's file. Raises ValueError naming the line and the field it lacks."""
    found = []
    for number, value in read_objects(path):
        for field in fields:
            if field == "answers" and value.get("answer"):
                continue  # the one that there is
            if not value.get(field):
                raise ValueError(f"{path}:{number}: {field}: is missing or empty")
        if "answers" in fields and not answers_of(value):
            raise ValueError(f"{path}:{number}: answers: holds no text")
        found.append(value)
    return found


def squad_prompt(question: Mapping[str, Any]) -> str:
    """How a question of SQuAD is put to a model that chats."""
    return (
        f"{question['context']}\n\nQuestion: {question['question']}\n"
        "Answer with a few words from the text, and nothing else."
    )


def answers_of(question: Mapping[str, Any]) -> list[str]:
    """The answers that count as right, in any of the forms in which SQuAD is passed on."""
    answers = question.get("answers") or [question.get("answer")]
    if isinstance(answers, Mapping):
        answers = answers.get("text", [])
    texts = [a.get("text") if isinstance(a, Mapping) else a for a in answers]
    return [text for text in texts if isinstance(text, str)]


def _plain(text: str) -> str:
    """As SQuAD's own script: lower case, no punctuation, no articles."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(said: str, answer: str) -> float:
    """SQuAD's: the words that two answers share."""
    ours, theirs = _plain(said).split(), _plain(answer).split()
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 0.0 if not same else 2 * same / (len(ours) + len(theirs))


def exact_match(said: str, answer: str) -> float:
    """SQuAD's: 1.0 where two answers are the same, but for case, punctuation and articles."""
    return float(_plain(said) == _plain(answer))


def contains(said: str, answer: str) -> float:
    """1.0 where the answer's words stand in what was said: subspan exact match (Liu et al., 2023),
    for models that answer in sentences."""
    return float(bool(_plain(answer)) and f" {_plain(answer)} " in f" {_plain(said)} ")


def multiple_choice(model: Measured, questions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The share of questions whose right letter is the likeliest of the letters offered."""
    right, chance = [], []
    for q in questions:
        said = ("system", q["system"]), ("user", q["prompt"])
        ids = model.tokenizer.chat([{"role": role, "content": text} for role, text in said])
        letters = re.findall(r"^([A-Z])\. ", q["prompt"], re.MULTILINE)
        logits = model.decoder.logits(model.hidden(ids)[-1:])[0]
        if not letters:
            raise ValueError(
                f"a question offers no lines of the form `A. ...`: {q['prompt'][:80]!r}"
            )
        scores = {a: float(logits[model.tokenizer.continued(a)[0]]) for a in letters}
        right.append(float(max(scores, key=lambda a: scores[a]) == q["answer"].strip()[:1]))
        chance.append(1 / len(letters))
    return {
        "accuracy": asdict(mean(right)),
        "chance": statistics.mean(chance),
        "questions": len(right),
    }
