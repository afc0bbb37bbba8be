"""Prompts in our own form, each with what grades its answer: files of them, and those shipped."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from app.bench.grading import LIMITS, TASKS, Line, Messages, Need, Question, Task, questions
from app.bench.scoring import code_of, examples, letter_of, number_of, rouge_l
from app.bench.tasks import contains, exact_match, f1
from app.errors import ConfigError
from app.prompt_files import read_objects
from app.sandbox import check, run_python

SHIPPED = Path(__file__).with_name("calibration.jsonl")
MT_BENCH = "mt_bench"

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Grader = Literal[
    "exact", "contains", "f1", "rouge_l", "number", "choice", "json", "code", "agree", "judge"
]
_LETTERS = string.ascii_uppercase
_LISTED = re.compile(r"^\W*[A-Z][.):] .*$", re.MULTILINE)  # a choice, as it was listed
_WORDS = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen"
    "|sixteen|seventeen|eighteen|nineteen|twenty"
)
_SPELT = re.compile(rf"\b({_WORDS})\b")
_MOST_TRIED = 64  # braces at which an object may begin


class Item(BaseModel):
    """One line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Text | None = None
    kind: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*$")
    system: Text | None = None
    context: Text | None = None  # goes ahead of the prompt
    prompt: Text
    choices: list[Text] | None = Field(None, min_length=2, max_length=len(_LETTERS))
    grader: Grader
    reference: Text | list[Text] | dict[str, Any] | None = None
    entry_point: str | None = Field(None, pattern=r"^[A-Za-z_]\w*$")  # what code must define
    tests: Text | None = None  # assertions about it
    max_tokens: PositiveInt | None = None

    @property
    def references(self) -> list[str]:
        if isinstance(self.reference, dict) or self.reference is None:
            return []
        return [self.reference] if isinstance(self.reference, str) else self.reference

    @model_validator(mode="after")
    def _can_be_graded(self) -> Self:
        if (self.choices is not None) != (self.grader == "choice"):
            raise ValueError("choices: come with the grader choice, and only there")
        for field in ("entry_point", "tests"):
            if (getattr(self, field) is not None) != (self.grader == "code"):
                raise ValueError(f"{field}: comes with the grader code, and only there")
        wrong = _REFERENCES[self.grader](self)
        if wrong:
            raise ValueError(f"reference: {wrong}")
        return self


def _text(item: Item) -> str:
    return "" if item.references else "must be a text, or several of which one will do"


def _number(item: Item) -> str:
    told = [number_of(each) for each in item.references]
    return "" if told and None not in told else "must be a number, as a text"


def _letter(item: Item) -> str:
    offered = _LETTERS[: len(item.choices or ())]
    right = isinstance(item.reference, str) and item.reference in tuple(offered)
    return "" if right else f"must be a letter from {offered[:1]} to {offered[-1:]}"


def _object(item: Item) -> str:
    return "" if isinstance(item.reference, dict) and item.reference else "must be a JSON object"


def _nothing(item: Item) -> str:
    return "" if item.reference is None else f"the grader {item.grader} has none"


def _known(item: Item) -> str:
    texts = item.reference is None or isinstance(item.reference, str)
    return "" if texts else "must be the text of a right answer, or left out"


_REFERENCES: Mapping[Grader, Callable[[Item], str]] = {
    "exact": _text,
    "contains": _text,
    "f1": _text,
    "rouge_l": _text,
    "number": _number,
    "choice": _letter,
    "json": _object,
    "code": _known,
    "agree": _nothing,
    "judge": _known,
}


@dataclass(frozen=True)
class _Way:
    """How a grader judges, and what answers it is for."""

    grade: Callable[[str, Line], Awaitable[float]]
    max_tokens: int
    binary: bool = True
    stop: tuple[str, ...] = ()
    needs: Need = ""


def _best_of(score: Callable[[str, str], float]) -> Callable[[str, Line], Awaitable[float]]:
    async def grade(text: str, line: Line) -> float:
        said = line["reference"]
        return max(score(text, each) for each in ([said] if isinstance(said, str) else said))

    return grade


def _same_number(text: str, reference: str) -> float:
    found = number_of(text)
    if found is None and (words := _SPELT.findall(text.lower())):
        found = Decimal(_WORDS.split("|").index(words[-1]))
    return float(found is not None and found == number_of(reference))


async def _choice(text: str, line: Line) -> float:
    """By its letter, or where it says none by the only choice that stands in it."""
    if len(_LISTED.findall(text)) > 1:
        text = _LISTED.sub("", text)  # it says the choices again: none of them is its answer
    offered = _LETTERS[: len(line["choices"])]
    found = letter_of(text, offered)
    if found is None:
        pairs = zip(offered, line["choices"], strict=True)
        named = [letter for letter, choice in pairs if contains(text, choice)]
        found = named[0] if len(named) == 1 else None
    return float(found == line["reference"])


async def _json(text: str, line: Line) -> float:
    found, wanted = object_of(text) or {}, line["reference"]
    right = sum(name in found and _alike(found[name], value) for name, value in wanted.items())
    return right / len(wanted.keys() | found.keys())


def object_of(text: str) -> dict[str, Any] | None:
    """The first JSON object in an answer; None: there is none."""
    at, decoder = text.find("{"), json.JSONDecoder()
    for _ in range(_MOST_TRIED):
        if at < 0:
            break
        try:
            found = decoder.raw_decode(text, at)[0]
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
            continue
        return dict(found)
    return None


def _alike(said: Any, wanted: Any) -> bool:
    """Equal, but for case, punctuation and articles of texts; `true` is not 1."""
    if isinstance(said, str) and isinstance(wanted, str):
        return said.strip() == wanted.strip() or bool(exact_match(said, wanted))
    if isinstance(said, list) and isinstance(wanted, list):
        return len(said) == len(wanted) and all(map(_alike, said, wanted))
    if isinstance(said, dict) and isinstance(wanted, dict):
        return said.keys() == wanted.keys() and all(_alike(said[k], wanted[k]) for k in wanted)
    return isinstance(said, bool) == isinstance(wanted, bool) and bool(said == wanted)


async def _runs(text: str, line: Line) -> float:
    code = code_of(text, line["entry_point"])
    return float(code is not None and (await run_python(code, LIMITS, line["tests"])).passed)


async def _not_alone(text: str, line: Line) -> float:
    raise ValueError("this answer is not graded by its text alone: see app.bench.opinions")


_FENCE_AND_MORE = "\n```\n\n"  # a code block's end, and a text about it that nobody asked for
_WAYS: Mapping[Grader, _Way] = {
    "exact": _Way(_best_of(exact_match), 24),
    "contains": _Way(_best_of(contains), 48),
    "f1": _Way(_best_of(f1), 32, binary=False),
    "rouge_l": _Way(_best_of(rouge_l), 96, binary=False),
    "number": _Way(_best_of(_same_number), 160),
    "choice": _Way(_choice, 16),
    "json": _Way(_json, 96, binary=False),
    "code": _Way(_runs, 256, stop=(_FENCE_AND_MORE,)),
    "agree": _Way(_not_alone, 128, binary=False, needs="best"),
    "judge": _Way(_not_alone, 128, binary=False, needs="judge"),
}


def shipped(*, judged: bool = False) -> list[Question]:
    """The prompts that come with this package, of all kinds. Raises as `read`."""
    return _own(SHIPPED, "", judged)


def read(kind: str, path: Path, *, judged: bool = False) -> list[Question]:
    """The questions of one kind in a file: a task of `grading`, MT-bench's lines, or our own form.

    `judged`: there is a judge, who grades what has no reference, rather than agreement with the
    best way's answer. Raises FileNotFoundError, ValueError naming file, line and field, ConfigError
    where a line wants a judge and there is none.
    """
    if kind in TASKS:
        return questions(kind, path)
    return _mt_bench(path, judged) if kind == MT_BENCH else _own(path, kind, judged)


def gradable(asked: list[Question]) -> tuple[list[Question], str]:
    """Those whose answers can be graded here, and why the others cannot be: code where this system
    cannot confine it. Not for a running event loop."""
    code = [one for one in asked if one.task.runs_code]
    if not code:
        return asked, ""
    try:
        check(LIMITS)
    except ConfigError as error:
        return [one for one in asked if not one.task.runs_code], str(error)
    return asked, ""


def _mt_bench(path: Path, judged: bool) -> list[Question]:
    """FastChat's lines (question_id, category, turns), of which the first turn is asked."""
    found = []
    for number, (place, line) in enumerate(read_objects(path)):
        turns = line.get("turns")
        if not (isinstance(turns, list) and turns and isinstance(turns[0], str) and turns[0]):
            raise ValueError(f"{path}:{place}: turns: must be texts, the first of which is asked")
        asked = Item(id=str(line.get("question_id")), prompt=turns[0], grader="agree")
        found.append(_question(asked, MT_BENCH, number, judged))
    return found


def _own(path: Path, kind: str, judged: bool) -> list[Question]:
    """Lines of this kind, and those that name none; of all kinds where this is empty."""
    found, names = list[Question](), set[str]()
    for number, (place, line) in enumerate(read_objects(path)):
        item = _item(line, f"{path}:{place}")
        if item.id in names:
            raise ValueError(f"{path}:{place}: id: {item.id} is an earlier line's, too")
        if item.id is not None:
            names.add(item.id)
        its_kind = item.kind or kind
        if not its_kind:
            raise ValueError(f"{path}:{place}: kind: is missing")
        if item.grader == "judge" and not judged:
            raise ConfigError(f"{path}:{place}: grader: name a judge: --judge MODEL")
        if kind in ("", its_kind):
            found.append(_question(item, its_kind, number, judged))
    if not found:
        raise ValueError(f"{path}: kind: no line is of the kind {kind}")
    return found


def _item(line: Mapping[str, Any], where: str) -> Item:
    try:
        return Item.model_validate(line)
    except ValidationError as error:
        first = error.errors()[0]
        told = first["msg"].removeprefix("Value error, ")
        field = f"{first['loc'][0]}: " if first["loc"] else ""  # else the message begins with it
        raise ValueError(f"{where}: {field}{told}") from error


def _question(item: Item, kind: str, number: int, judged: bool) -> Question:
    grader: Grader = "judge" if judged and item.grader == "agree" else item.grader
    way = _WAYS[grader]
    task = Task(
        name=kind,
        fields=(),
        ask=_asked,
        grade=way.grade,
        max_tokens=item.max_tokens or way.max_tokens,
        binary=way.binary,
        stop=way.stop,
        examples=_examples if grader == "code" else None,
        needs=way.needs,
        runs_code=grader == "code",
    )
    return Question(task, number, item.model_dump(exclude_none=True))


def _asked(line: Line) -> Messages:
    said = f"{line['context']}\n\n{line['prompt']}" if "context" in line else line["prompt"]
    if "choices" in line:
        offered = zip(_LETTERS, line["choices"], strict=False)
        said = "\n".join([f"{said}\n", *(f"{letter}. {text}" for letter, text in offered)])
    user = {"role": "user", "content": said}
    return ({"role": "system", "content": line["system"]}, user) if "system" in line else (user,)


def _examples(line: Line) -> str:
    return examples(line["prompt"], line["entry_point"])
