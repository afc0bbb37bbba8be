"""What answers must stand up to: schemas, patterns, tests of their code, and judges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from app.engines.fake import Fake, Script
from app.errors import BadRequest, UnknownModel
from app.sandbox import Limits
from app.types import Usage
from policies.answers.verifying import Verifier
from tests.policies.scripts import call, engine, fleet

CODE = "Here it is:\n```python\ndef double(x):\n    return {} * x\n```\nIt doubles."


def verifier(**options: Any) -> Verifier:
    return Verifier.model_validate(options).fit(replace(fleet(), sandbox=Limits()), "best_of_n")


async def passes(text: str, **options: Any) -> float:
    return await verifier(**options).passes(text, call("large"), engine())


async def test_a_schema() -> None:
    schema = {"type": "object", "required": ["x"]}
    assert await passes('{"x": 1}', kind="schema", schema=schema) == 1
    assert await passes('{"y": 1}', kind="schema", schema=schema) == 0


async def test_a_schema_that_refers_to_nothing_is_the_client_s_fault() -> None:
    with pytest.raises(BadRequest, match="/none") as refused:
        await passes("{}", kind="schema", schema={"$ref": "#/none"})
    assert refused.value.param == "policy"


async def test_a_pattern() -> None:
    assert await passes("so it is\n42", kind="regex", pattern=r"\d+$") == 1
    assert await passes("42 it is", kind="regex", pattern=r"\d+$") == 0


async def test_tests_of_the_code_in_an_answer() -> None:
    tests = "assert double(2) == 4"
    assert await passes(CODE.format(2), kind="tests", tests=tests) == 1
    assert await passes(CODE.format(3), kind="tests", tests=tests) == 0
    assert await passes("def double(x): return 2 * x", kind="tests", tests=tests) == 1
    assert await passes("I cannot.", kind="tests", tests=tests) == 0
    assert await passes("", kind="tests", tests="pass") == 0


async def test_code_is_run_only_where_the_operator_allows_it() -> None:
    tests = Verifier(kind="tests", tests="pass")
    with pytest.raises(BadRequest, match=r"best_of_n.*\[sandbox\]") as refused:
        tests.fit(fleet(), "best_of_n")
    assert refused.value.param == "policy"
    with pytest.raises(BadRequest):
        await tests.passes("x = 1", call("large"), engine())


def judges(*words: str) -> Fake:
    return Fake({"small": Script(list(words)), "large": Script(["l0"])})


@pytest.mark.parametrize(
    ("words", "chance"),
    [
        (("Yes", "indeed"), 1.0),
        (("no",), 0.0),
        (("**Yes**",), 1.0),
        ((" ", "No"), 0.0),
        (("Perhaps", "Yes"), 0.5),
        ((), 0.5),
    ],
)
async def test_a_judge_by_its_first_word(words: tuple[str, ...], chance: float) -> None:
    judge, fake = verifier(kind="judge", judge="small"), judges(*words)
    assert await judge.passes("42", call("large"), fake) == chance
    (asked,) = fake.calls
    assert (asked.model, asked.sampling.temperature, asked.extra) == ("small", 0.0, {})
    assert [message["role"] for message in asked.messages] == ["user", "assistant", "user"]
    assert asked.messages[1]["content"] == "42"
    worst = judge.worst(await fake.count(call("large")), 1)["small"]
    assert worst.prompt >= await fake.count(asked) and worst.completion == asked.max_tokens


def test_only_a_judge_costs() -> None:
    assert verifier(kind="regex", pattern="x").worst(100, 100) == {}
    worst = verifier(kind="judge", judge="small").worst(100, 80)
    assert list(worst) == ["small"] and worst["small"].prompt > 180
    assert worst["small"] == Usage(prompt=worst["small"].prompt, completion=2)
    longer = verifier(kind="judge", judge="small").worst(200, 80)
    assert longer["small"].prompt == worst["small"].prompt + 100


def test_a_judge_must_be_there_and_tell_what_it_thinks() -> None:
    judge = Verifier(kind="judge", judge="nobody")
    with pytest.raises(UnknownModel, match="nobody"):
        judge.fit(fleet(), "refine")
    models = dict(fleet().models)
    models["small"] = models["small"].model_copy(update={"engine": "openai"})
    with pytest.raises(BadRequest, match="another server's"):
        Verifier(kind="judge", judge="small").fit(replace(fleet(), models=models), "refine")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "tests"},
        {"kind": "oracle"},
        {"kind": "regex", "schema": {}},
        {"kind": "regex", "pattern": "x", "judge": "small"},
        {"kind": "regex", "pattern": "(?=a)"},
        {"kind": "regex", "pattern": "x" * 5000},
        {"kind": "schema", "schema": {"type": "point"}},
        {"kind": "schema", "schema": {}, "more": 1},
        {"kind": "tests", "tests": "x" * 300_000},
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Verifier.model_validate(options)
