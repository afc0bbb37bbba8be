"""What answers are worth: known answers, and cases made by hand."""

from __future__ import annotations

import itertools
from decimal import Decimal

import pytest

from app.bench.scoring import (
    code_of,
    examples,
    hotpot_f1,
    letter_of,
    number_of,
    pass_at,
    program,
    rouge_l,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16 - 3 = 13 eggs, 13 * 2 = 26.\n#### 18", "18"),
        ("#### $1,234.50\nThat is 3 more than 2.", "1234.5"),
        ("The answer is 7, as 3 + 4 = 7 and not 8.", "7"),
        ("**Answer:** $70,000", "70000"),
        (r"So \boxed{-12} it is; check: 1.", "-12"),
        ("She needs 2 and then 5 apples.", "5"),
        ("It costs $.50.", "0.5"),
        ("#### 5\nNo, wait.\n#### 6", "6"),
        ("#### 18.00", "18"),
        ("In all:\n- 18 eggs", "18"),
        ("It costs $ 18.", "18"),
        ("The answer is 2 x 8 + 3 x 4 = 28 euros, 4 each.", "28"),
        ("Answer: $16 + $12 = $28", "28"),
        ("The answer is 5. x = 3 was a step.", "5"),
        ("The answer is 16 + 12 = **28**", "28"),
        ("answer is " + "1 + " * 5000, "1"),
        ("answer is " + "(" * 50_000, None),
        ("none at all", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: str | None) -> None:
    assert number_of(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" (C) Vatican City", "C"),
        ("**B.** Nauru", "B"),
        ("B. Nauru is smaller than A. Monaco", "B"),
        ("The correct answer is D.", "D"),
        ("Answer: C", "C"),
        ("A small country, so B.", "B"),
        ("A country that is small", None),
        ("I would say option C", "C"),
        ("E. Something that was not offered", None),
        ("", None),
    ],
)
def test_the_letter_of_an_answer(text: str, letter: str | None) -> None:
    assert letter_of(text, "ABCD") == letter


ADD = "def add(a, b):\n    return a + b"


@pytest.mark.parametrize(
    "text",
    [
        f"Here it is:\n```python\n{ADD}\n```\nDone.",
        f"```\n{ADD}",  # cut, or ended by a stop string
        ADD,
        f"```python\nimport math\n```\n\n```python\n{ADD}\n```\n```python\nprint(add(1, 2))\n```",
        f"```python\ndef add(a, b):\n    return 0\n```\nBetter:\n```python\n{ADD}\n```",
    ],
)
def test_the_code_of_an_answer(text: str) -> None:
    assert code_of(text, "add") == ADD


def test_no_code_of_that_name() -> None:
    assert code_of("```python\ndef added(a):\n    return a\n```", "add") is None
    assert code_of("I cannot define add.", "add") is None


PROMPT = '''import math

def helper(x):
    return x + 1

def add(a, b):
    """ Add.
    >>> add(1, 2) # three (3)
    3
    >>> add("a", "b")
    'ab'
    >>> helper(1)
    2
    >>> add(1, [2])
    Traceback (most recent call last):
    """
'''


@pytest.mark.parametrize(
    "answer", [f"```python\n{ADD}\n```", "    return a + b", "```python\n    return a + b\n```"]
)
def test_a_program_of_a_function_or_of_its_body(answer: str) -> None:
    names: dict[str, object] = {}
    exec(program(PROMPT, answer, "add") + "\nfound = add(helper(1), math.floor(2.5))", names)
    assert names["found"] == 4


def test_the_examples_of_a_prompt() -> None:
    assert examples(PROMPT, "add").splitlines() == [
        "assert callable(add)",
        "assert (add(1, 2)) == (3)",
        "assert (add('a', 'b')) == ('ab')",
    ]


@pytest.mark.parametrize(
    ("said", "reference", "score"),
    [  # as the package rouge_score 0.1.2 has them, without a stemmer
        ("the cat sat on the mat", "the cat was found under the bed", 0.4615384615384615),
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("police kill the gunman", "the gunman kill police", 0.5),
        ("A b-c, d1 E!", "a B c d1", 0.888888888888889),
        (
            "the transcript is a written version of each day's CNN Student News",
            "This page includes the show Transcript. Use the Transcript to help students with"
            " reading comprehension.",
            0.14285714285714288,
        ),
        ("", "x", 0.0),
    ],
)
def test_rouge_l(said: str, reference: str, score: float) -> None:
    assert rouge_l(said, reference) == pytest.approx(score, abs=1e-12)


def test_a_yes_is_right_as_a_whole_or_not_at_all() -> None:
    assert hotpot_f1("Yes.", "yes") == 1
    assert hotpot_f1("yes, both are", "yes") == 0
    assert hotpot_f1("no", "no time") == 0
    assert hotpot_f1("the Knox County airport", "Knox County Regional Airport") == pytest.approx(
        2 * 3 / 7
    )


@pytest.mark.parametrize(("samples", "right"), [(5, 0), (5, 2), (5, 5), (7, 3)])
def test_pass_at_k_is_the_share_of_all_draws(samples: int, right: int) -> None:
    outcomes = [True] * right + [False] * (samples - right)
    for k in range(1, samples + 1):
        draws = list(itertools.combinations(outcomes, k))
        assert pass_at(k, samples, right) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("k", [0, 6])
def test_pass_at_more_than_there_are(k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} needs"):
        pass_at(k, 5, 1)
