"""Prompts of our own form: what is in a line, what grades it, and those that are shipped."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from app.bench.grading import TASKS, Question
from app.bench.items import MT_BENCH, SHIPPED, gradable, object_of, read, shipped
from app.bench.opinions import worth
from app.bench.tasks import contains
from app.errors import ConfigError

ROOT = Path(__file__).parents[3]
KINDS = {"math", "code", "reading", "facts", "summary", "extraction", "chat"}

NUMBER = {"prompt": "2 and 2?", "grader": "number", "reference": "4"}
EXACT = {"prompt": "Who?", "grader": "exact", "reference": ["Ada Lovelace", "Ada"]}
CHOICE = {"prompt": "Which?", "grader": "choice", "choices": ["This", "That"], "reference": "B"}
JSON = {"prompt": "As JSON.", "grader": "json", "reference": {"name": "Ada", "age": 36}}
LISTS = {
    "prompt": "As JSON.",
    "grader": "json",
    "reference": {"a": ["x", True], "b": {"c": 1}},
}
CODE = {
    "prompt": "Write `add(a, b)`.\n\n>>> add(1, 2)\n3",
    "grader": "code",
    "entry_point": "add",
    "tests": "assert add(2, 3) == 5",
    "reference": "def add(a, b):\n    return a + b\n",
}
OPEN = {"prompt": "Say hello.", "grader": "agree"}


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.jsonl"


def one(path: Path, line: dict[str, Any], judged: bool = False) -> Question:
    (found,) = read("mine", write(path, line), judged=judged)
    return found


@pytest.mark.parametrize(
    ("line", "text", "value"),
    [
        (NUMBER, "2 + 2 makes 4.0", 1),
        (NUMBER, "The answer is 5, not 4.", 0),
        (NUMBER, "Two and two make four.", 1),
        (NUMBER, "fourteen", 0),
        (NUMBER, "none", 0),
        (EXACT, "ada lovelace.", 1),
        (EXACT, "It was Ada.", 0),
        (EXACT | {"grader": "contains"}, "It was Ada.", 1),
        (EXACT | {"grader": "contains"}, "It was Adam.", 0),
        (EXACT | {"grader": "f1"}, "It was Ada", 0.5),
        (EXACT | {"grader": "f1"}, "Nobody", 0),
        (EXACT | {"grader": "rouge_l"}, "It was Ada Lovelace", 2 * 2 / (4 + 2)),
        (EXACT | {"grader": "rouge_l"}, "", 0),
        (CHOICE, "B. That", 1),
        (CHOICE, "A", 0),
        (CHOICE, "C", 0),
        (CHOICE | {"reference": "A"}, "A. This\nB. That", 0),  # says them all again
        (CHOICE, "A. This\nB. That\n\nThe answer is B.", 1),
        (CHOICE, "It is that one.", 1),
        (CHOICE, "It is this one.", 0),
        (CHOICE, "This or that.", 0),
        (JSON, '```json\n{"name": "ada", "age": 36}\n```', 1),
        (JSON, 'Here: {"age": 36}', 0.5),
        (JSON, '{"name": "Ada", "age": "36"}', 0.5),
        (JSON, '{"name": "Ada", "age": 36, "x": 1, "y": 2}', 0.5),
        (JSON, "name: Ada", 0),
        (JSON, '["name"]', 0),
        (LISTS, '{"a": ["X", true], "b": {"c": 1.0}}', 1),
        (LISTS, '{"a": ["x", 1], "b": {"c": true}}', 0),
        (LISTS, '{"a": ["x"], "b": {"d": 1}}', 0),
        (CODE, "```python\ndef add(a, b):\n    return a + b\n```", 1),
        (CODE, "def add(a, b):\n    return a - b", 0),
        (CODE, "def plus(a, b):\n    return a + b", 0),
    ],
)
async def test_what_an_answer_is_worth(
    path: Path, line: dict[str, Any], text: str, value: float
) -> None:
    assert await one(path, line).grade(text) == pytest.approx(value)


def test_an_object_among_braces_that_are_none() -> None:
    assert object_of("{x} {" * 40 + '{"a": 1}') is None  # not looked for without end
    assert object_of('{x} {y: {"a": {"b": 1}} {"c": 2}') == {"a": {"b": 1}}
    assert object_of("{" * 100_000) is None
    assert object_of('{"a": ' * 100_000) is None


def test_what_is_asked(path: Path) -> None:
    plain = one(path, NUMBER | {"max_tokens": 7})
    assert plain.messages == ({"role": "user", "content": "2 and 2?"},)
    assert (plain.task.name, plain.task.max_tokens, plain.task.binary) == ("mine", 7, True)
    chosen = one(path, CHOICE | {"system": "A letter.", "context": "Here."})
    assert chosen.messages == (
        {"role": "system", "content": "A letter."},
        {"role": "user", "content": "Here.\n\nWhich?\n\nA. This\nB. That"},
    )
    assert one(path, CODE).examples == "assert callable(add)\nassert (add(1, 2)) == (3)\n"
    assert one(path, NUMBER).examples == ""


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({}, "prompt: Field required"),
        (NUMBER | {"prompt": " "}, "prompt: String should match"),
        (NUMBER | {"grader": "vibes"}, "grader: Input should be 'exact', 'contains'"),
        (NUMBER | {"answer": "4"}, "answer: Extra inputs are not permitted"),
        (NUMBER | {"max_tokens": 0}, "max_tokens: Input should be greater than 0"),
        (NUMBER | {"kind": "My kind"}, "kind: String should match"),
        (NUMBER | {"reference": "four"}, "reference: must be a number"),
        (NUMBER | {"reference": ["4", "x"]}, "reference: must be a number"),
        (NUMBER | {"choices": ["a", "b"]}, "choices: come with the grader choice"),
        (CHOICE | {"choices": ["a"]}, "choices: List should have at least 2 items"),
        (CHOICE | {"reference": "C"}, "reference: must be a letter from A to B"),
        (EXACT | {"reference": []}, "reference: must be a text"),
        (JSON | {"reference": "{}"}, "reference: must be a JSON object"),
        ({"prompt": "p", "grader": "f1"}, "reference: must be a text"),
        (OPEN | {"reference": "Hello."}, "reference: the grader agree has none"),
        (CODE | {"tests": None}, "tests: comes with the grader code"),
        (CODE | {"entry_point": "a b"}, "entry_point: String should match"),
        (NUMBER | {"tests": "x"}, "tests: comes with the grader code"),
    ],
)
def test_a_wrong_line_is_told_by_file_line_and_field(
    path: Path, line: dict[str, Any], told: str
) -> None:
    write(path, NUMBER, line)
    with pytest.raises(ValueError, match=rf"mine\.jsonl:2: {told}"):
        read("mine", path)


def test_files_of_several_kinds(path: Path) -> None:
    math, other = NUMBER | {"kind": "math", "id": "one"}, EXACT | {"kind": "other", "id": "two"}
    write(path, other, math, CHOICE)
    assert [(q.task.name, q.number) for q in read("math", path)] == [("math", 1), ("math", 2)]
    with pytest.raises(ValueError, match=r"mine\.jsonl: kind: no line is of the kind chat"):
        read("chat", write(path, math, other))
    with pytest.raises(ValueError, match=r"mine\.jsonl:3: id: one is an earlier line's, too"):
        read("math", write(path, math, other, math))


def test_the_tasks_of_others_are_read_as_theirs(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", {"question": "2 and 2?", "answer": "#### 4"})
    assert read("gsm8k", path)[0].task is TASKS["gsm8k"]


async def test_mt_bench_asks_the_first_turn(tmp_path: Path) -> None:
    line = {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Rewrite it."]}
    path = write(tmp_path / "question.jsonl", line)
    (open,) = read(MT_BENCH, path)
    assert (open.task.name, open.task.needs) == ("mt_bench", "best")
    assert open.messages == ({"role": "user", "content": "Write a poem."},)
    assert read(MT_BENCH, path, judged=True)[0].task.needs == "judge"
    for turns in ([], [1], "Write.", [""]):
        with pytest.raises(ValueError, match=r"question\.jsonl:1: turns: must be texts"):
            read(MT_BENCH, write(path, line | {"turns": turns}))


def test_what_needs_a_judge(path: Path) -> None:
    judged = OPEN | {"grader": "judge", "reference": "Hello."}
    with pytest.raises(ConfigError, match=r"mine\.jsonl:1: grader: .*--judge MODEL"):
        one(path, judged)
    assert one(path, judged, judged=True).task.needs == "judge"
    assert one(path, OPEN, judged=True).task.needs == "judge"
    assert one(path, OPEN).task.needs == "best"
    assert one(path, NUMBER, judged=True).task.needs == ""


def test_code_is_left_out_where_it_cannot_be_confined(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = read("mine", write(path, NUMBER, CODE))
    assert gradable(asked) == (asked, "")

    def refuse(_: object) -> None:
        raise ConfigError("[sandbox]: untrusted code cannot be confined here: no seccomp")

    monkeypatch.setattr("app.bench.items.check", refuse)
    kept, why = gradable(asked)
    assert kept == asked[:1] and "no seccomp" in why
    assert gradable(kept) == (kept, "")


async def test_each_shipped_prompt_has_a_right_answer() -> None:
    for question in shipped():
        line = question.line
        if question.task.needs:
            assert "reference" not in line and await worth(question, "So.", best="So.") == 1.0
            continue
        said = line["reference"]
        for right in said if isinstance(said, list) else [said]:
            text = json.dumps(right) if isinstance(right, dict) else right
            assert await question.grade(text) == 1.0, line["id"]
        assert await question.grade("I do not know.") < 0.3, line["id"]


async def test_no_shipped_code_is_right_for_doing_nothing() -> None:
    for question in shipped():
        if question.task.runs_code:
            name = question.line["entry_point"]
            for does in ("pass", "return 0", "return []", "return args[0]", "return ''"):
                text = f"```python\ndef {name}(*args):\n    {does}\n```"
                assert await question.grade(text) == 0.0, question.line["id"]
            assert name in question.line["prompt"] and question.examples.count("\n") > 1
            assert await question.passes(question.line["reference"])


def test_the_shipped_prompts_are_balanced_short_and_all_different() -> None:
    found = shipped()
    counts = Counter(question.task.name for question in found)
    assert counts.keys() == KINDS
    assert max(counts.values()) <= 2 * min(counts.values())
    assert len({question.line["id"] for question in found}) == len(found)
    for question in found:
        said = "\n".join(message["content"] for message in question.messages)
        assert len(said) < 1500, question.line["id"]  # under 400 tokens
        assert said == said.strip()
        assert question.task.max_tokens <= 320
    words = [set(question.line["prompt"].split()) for question in found]
    about = [set(question.line.get("context", "").split()) for question in found]
    for (a, b), (c, d) in zip(combinations(words, 2), combinations(about, 2), strict=True):
        # The same task about another text is another prompt.
        assert not _alike(a, b) or bool(c and d and not _alike(c, d)), (a, b)


def _alike(a: set[str], b: set[str]) -> bool:
    return len(a & b) > 0.8 * len(a | b)


def test_what_is_asked_of_a_text_stands_in_it() -> None:
    for question in shipped():
        line = question.line
        if question.task.name in ("reading", "extraction") and line["grader"] != "json":
            said = line["reference"]
            right = [said] if isinstance(said, str) else said
            stands = any(contains(line["context"], each) for each in right)
            assert stands or right[0] in ("not stated", "negative"), line["id"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("facts-05", "A spider has eight legs.", 1),
        ("facts-05", "Spiders have 8 legs, 4 on each side.", 1),
        ("facts-05", "A spider has 6 legs.", 0),
        ("facts-13", "Canberra", 1),
        ("facts-13", "Sydney or Canberra", 0),
        ("math-02", "Ten minus three is seven.", 1),
        ("math-11", "The answer is 16 + 12 = 28 euros.", 1),
        ("reading-04", "2 pm", 1),
        ("reading-09", "Ruth, her sister Ines, and the guide Paolo", 0),
        ("reading-09", "It was Ruth.", 1),
        ("extraction-03", "The number of the order is 5518.", 1),
        ("extraction-03", "Order 5518: 2 lamps at 40 euros each", 0),
        ("extraction-05", "0171-555-0192", 1),
        ("extraction-06", "Positive or negative.", 0),
        ("extraction-06", "**Negative**", 1),
        ("extraction-10", "Gate A12", 1),
        ("extraction-10", "B34", 0),
    ],
)
async def test_right_in_other_words_and_wrong_ones(name: str, text: str, value: float) -> None:
    (question,) = [one for one in shipped() if one.line["id"] == name]
    assert await question.grade(text) == value


def test_a_right_letter_is_no_matter_of_habit() -> None:
    letters = Counter(q.line["reference"] for q in shipped() if q.line["grader"] == "choice")
    assert max(letters.values()) <= 0.5 * letters.total()


def test_a_wheel_has_them_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["app"]
    assert SHIPPED in {path for pattern in patterns for path in (ROOT / "app").glob(pattern)}
