"""Each task's answers are graded as its own paper does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.bench.grading import TASKS, Question, questions
from app.errors import ConfigError
from app.sandbox import Limits

GSM8K = {"question": "2 and 2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}
ADD = '''def add(a, b):
    """ Add.
    >>> add(1, 2)
    3
    """
'''
HUMANEVAL = {
    "prompt": f"from typing import List\n\n\n{ADD}",
    "entry_point": "add",
    "test": "\n\ndef check(candidate):\n    assert candidate(2, 3) == 5\n",
}
SQUAD = {"context": "Ada did.", "question": "Who?", "answers": ["Ada", "Ada Lovelace"]}
HOTPOT = {"context": "Both did.", "question": "Did both?", "answer": "yes"}
CNN_DM = {"article": "Much happened.", "highlights": "police kill the gunman"}
CHOICE = {"system": "A letter.", "prompt": "Which?\n\nA. This\nB. That", "answer": "B"}


def question(task: str, line: dict[str, Any]) -> Question:
    return Question(TASKS[task], 0, line)


@pytest.mark.parametrize(
    ("task", "line", "text", "worth"),
    [
        ("gsm8k", GSM8K, "2 + 2 = 4.\n#### 4.0", 1),
        ("gsm8k", GSM8K, "#### 5", 0),
        ("gsm8k", GSM8K, "I do not know.", 0),
        ("squad", SQUAD, "The Ada Lovelace.", 1),
        ("squad", SQUAD, "Ada and Bob", 0.5),
        ("hotpot_qa", HOTPOT, "Yes", 1),
        ("hotpot_qa", HOTPOT, "yes, both", 0),
        ("cnn_dm", CNN_DM, "police killed the gunman", 0.75),
        ("truthful_qa", CHOICE, "B. That", 1),
        ("truthful_qa", CHOICE, "A", 0),
        ("truthful_qa", CHOICE, "neither", 0),
    ],
)
async def test_what_an_answer_is_worth(
    task: str, line: dict[str, Any], text: str, worth: float
) -> None:
    assert await question(task, line).grade(text) == pytest.approx(worth)


@pytest.mark.parametrize(
    ("body", "worth"),
    [
        ("return a + b", 1),
        ("return a - b", 0),
        ("while True: pass", 0),
        ("import os; os._exit(0)", 0),
    ],
)
async def test_code_is_worth_what_the_hidden_tests_say(
    body: str, worth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bench.grading.LIMITS", Limits(seconds=1 if "while" in body else 30))
    asked = question("humaneval", HUMANEVAL)
    signature = "def add(a: List[int], b: List[int]):"  # the prompt's imports are there
    assert await asked.grade(f"```python\n{signature}\n    {body}\n```") == worth


def test_a_question_gives_its_examples_and_not_its_tests() -> None:
    assert question("humaneval", HUMANEVAL).examples == (
        "assert callable(add)\nassert (add(1, 2)) == (3)\n"
    )
    assert question("gsm8k", GSM8K).examples == ""


@pytest.mark.parametrize(
    ("task", "line", "holds"),
    [
        ("gsm8k", GSM8K, "2 and 2?"),
        ("humaneval", HUMANEVAL, ADD.strip()),
        ("squad", SQUAD, "Ada did.\n\nQuestion: Who?"),
        ("hotpot_qa", HOTPOT, "Both did.\n\nQuestion: Did both?"),
        ("cnn_dm", CNN_DM, "Much happened."),
        ("truthful_qa", CHOICE, "Which?\n\nA. This\nB. That"),
    ],
)
def test_what_is_asked_holds_the_question_and_no_answer(
    task: str, line: dict[str, Any], holds: str
) -> None:
    asked = question(task, line)
    said = "".join(message["content"] for message in asked.messages)
    assert holds in said and asked.messages[-1]["role"] == "user"
    assert "<<2+2=4>>" not in said and "candidate" not in said and "gunman" not in said


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_questions_of_a_file(tmp_path: Path) -> None:
    found = questions("gsm8k", write(tmp_path / "f.jsonl", GSM8K, GSM8K))
    assert [each.number for each in found] == [0, 1] and found[0].task is TASKS["gsm8k"]


def test_no_such_task_and_no_such_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no task mmlu: they are gsm8k, humaneval"):
        questions("mmlu", tmp_path)
    with pytest.raises(ValueError, match=r"f\.jsonl:1: entry_point: is missing"):
        questions("humaneval", write(tmp_path / "f.jsonl", {"prompt": "p", "test": "t"}))


async def test_a_choice_that_offers_nothing() -> None:
    with pytest.raises(ValueError, match="offers no lines"):
        await question("truthful_qa", {**CHOICE, "prompt": "Which?"}).grade("A")
