"""Tasks with known answers: how a question is put, and what an answer is worth, 0 to 1."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.bench.scoring import examples, hotpot_f1, letter_of, number_of, program, rouge_l
from app.bench.tasks import (
    MULTIPLE_CHOICE,
    SQUAD,
    answers_of,
    exact_match,
    f1,
    read_questions,
    squad_prompt,
)
from app.errors import ConfigError
from app.sandbox import Limits, run_python

LIMITS = Limits(seconds=5, memory_mib=512)

Need = Literal["", "best", "judge"]
Line = Mapping[str, Any]
Messages = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Task:
    """A set of questions of one kind."""

    name: str
    fields: tuple[str, ...]  # of a line of its file
    ask: Callable[[Line], Messages]
    grade: Callable[[str, Line], Awaitable[float]]  # an answer's worth, 0 to 1
    max_tokens: int
    binary: bool  # an answer is right or wrong
    stop: tuple[str, ...] = ()
    also: Callable[[str, Line], float] | None = None  # a second score: exact match beside F1
    examples: Callable[[Line], str] | None = None  # that the question gives, as assertions
    needs: Need = ""  # beside an answer, to grade it: the best way's answer, or a judge's opinion
    runs_code: bool = False  # to grade it


@dataclass(frozen=True)
class Question:
    """One line of a task's file."""

    task: Task
    number: int  # of the line, from 0
    line: Line

    @property
    def messages(self) -> Messages:
        return self.task.ask(self.line)

    @property
    def examples(self) -> str:
        """Assertions in Python that a right answer keeps and that the question itself gives."""
        return "" if self.task.examples is None else self.task.examples(self.line)

    async def grade(self, text: str) -> float:
        return await self.task.grade(text, self.line)

    async def passes(self, text: str) -> bool:
        """Whether the code of an answer keeps the question's examples, as a verifier sees it."""
        code = program(self.line["prompt"], text, self.line["entry_point"])
        return (await run_python(code, LIMITS, self.examples)).passed


def questions(task: str, path: Path) -> list[Question]:
    """All of a file. Raises ConfigError for a task that there is not, FileNotFoundError, and
    ValueError naming file, line and field."""
    if task not in TASKS:
        raise ConfigError(f"there is no task {task}: they are {', '.join(TASKS)}")
    found = TASKS[task]
    lines = read_questions(path, found.fields)
    return [Question(found, number, line) for number, line in enumerate(lines)]


def _user(text: str) -> Messages:
    return ({"role": "user", "content": text},)


def _ask_gsm8k(line: Line) -> Messages:
    return _user(
        f"{line['question']}\n\nThink step by step, briefly, and end with: The answer is N."
    )


async def _gsm8k(text: str, line: Line) -> float:
    right = number_of(line["answer"])
    return float(right is not None and number_of(text) == right)


def _ask_humaneval(line: Line) -> Messages:
    return _user(
        "Complete this Python function. Answer with the whole function in one code block, "
        f"without explanations.\n\n```python\n{line['prompt'].rstrip()}\n```"
    )


def _humaneval_examples(line: Line) -> str:
    return examples(line["prompt"], line["entry_point"])


async def _humaneval(text: str, line: Line) -> float:
    entry = line["entry_point"]
    tests = f"{line['test']}\n\ncheck({entry})\n"
    return float((await run_python(program(line["prompt"], text, entry), LIMITS, tests)).passed)


def _ask_squad(line: Line) -> Messages:
    return _user(squad_prompt(line))


def _best(score: Callable[[str, str], float]) -> Callable[[str, Line], float]:
    return lambda text, line: max(score(text, answer) for answer in answers_of(line))


def _scored(score: Callable[[str, str], float]) -> Callable[[str, Line], Awaitable[float]]:
    best = _best(score)

    async def grade(text: str, line: Line) -> float:
        return best(text, line)

    return grade


def _ask_cnn_dm(line: Line) -> Messages:
    return _user(f"{line['article']}\n\nSummarize this article in three short sentences.")


async def _cnn_dm(text: str, line: Line) -> float:
    return rouge_l(text, line["highlights"])


def _ask_choice(line: Line) -> Messages:
    return (
        {"role": "system", "content": line["system"]},
        {"role": "user", "content": line["prompt"]},
    )


async def _choice(text: str, line: Line) -> float:
    offered: Sequence[str] = re.findall(r"^([A-Z])\. ", line["prompt"], re.MULTILINE)
    if not offered:
        raise ValueError(f"a question offers no lines of the form `A. ...`: {line['prompt'][:80]}")
    return float(letter_of(text, offered) == line["answer"].strip()[:1])


_CODE = ("prompt", "entry_point", "test")
_FENCE_AND_MORE = "\n```\n\n"  # a code block's end, and a text about it that nobody asked for

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("gsm8k", ("question", "answer"), _ask_gsm8k, _gsm8k, 320, True),
        Task(
            "humaneval",
            _CODE,
            _ask_humaneval,
            _humaneval,
            384,
            True,
            (_FENCE_AND_MORE,),
            examples=_humaneval_examples,
            runs_code=True,
        ),
        Task("squad", SQUAD, _ask_squad, _scored(f1), 32, False, also=_best(exact_match)),
        Task(
            "hotpot_qa", SQUAD, _ask_squad, _scored(hotpot_f1), 32, False, also=_best(exact_match)
        ),
        Task("cnn_dm", ("article", "highlights"), _ask_cnn_dm, _cnn_dm, 128, False),
        Task("truthful_qa", MULTIPLE_CHOICE, _ask_choice, _choice, 16, True),
    )
}
"""By name. Sources: GSM8K (Cobbe et al., 2021), HumanEval (Chen et al., 2021), SQuAD 1.1, HotpotQA,
CNN/DailyMail, and TruthfulQA as multiple choice."""
