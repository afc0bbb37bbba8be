"""The tokens that a form of answer lets through, and where an answer stands in it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engines.embedded import grammar, trial
from app.engines.embedded.grammar import Constraint, Grammars
from app.engines.embedded.tokenizer import Tokenizer
from app.engines.embedded.trial import Fault, fault
from app.errors import BadRequest, EngineUnsupported
from app.types import Call, Sampling

SIZE = 300  # more than the vocabulary has, as of padded models
FREE = ({"role": "user", "content": "hello"},)


def asking(**extra: Any) -> Call:
    return Call("tiny", FREE, extra=extra)


def held(grammars: Grammars, call: Call) -> Constraint:
    constraint = asyncio.run(grammars.constraint(call))
    assert constraint is not None
    return constraint


def allowed(constraint: Constraint, ahead: tuple[int, ...] = ()) -> set[int]:
    return set(constraint.allowed(SIZE, ahead).nonzero()[0].tolist())


def wander(constraint: Constraint, tokenizer: Tokenizer, seed: int, most: int = 4000) -> str:
    """An answer of tokens drawn evenly from what may come next; ends where it may, when it can."""
    rng, ids = random.Random(seed), list[int]()
    while not constraint.over and len(ids) < most:
        choices = allowed(constraint)
        if choices & tokenizer.eos_ids:
            break
        ids.append(rng.choice(sorted(choices)))
        assert constraint.advance(ids[-1:])
    return b"".join(map(tokenizer.piece, ids)).decode()


NAMES = st.sampled_from(["a", "b", "name", 'q"\\', "é"])
LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-50, 50),
        st.integers(0, 200),
    ),
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 6)),
    st.builds(
        lambda values: {"enum": values}, st.lists(st.text(max_size=4), min_size=1, max_size=3)
    ),
    st.builds(lambda value: {"const": value}, st.integers() | st.text(max_size=3)),
    st.just({"type": "string", "pattern": "^[a-c]{1,3}$"}),
    st.just({"type": ["integer", "null"], "minimum": 0, "maximum": 9}),
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    @st.composite
    def build(draw: Any) -> dict[str, Any]:
        properties = draw(st.dictionaries(NAMES, inner, max_size=3))
        needed = [name for name in properties if draw(st.booleans())]
        schema: dict[str, Any] = {"type": "object", "properties": properties, "required": needed}
        if draw(st.booleans()):
            schema["additionalProperties"] = False
        return schema

    return build()


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        _objects(inner),
        st.builds(lambda items, least, more: {"type": "array", "items": items, "minItems": least,
                                              "maxItems": least + more},
                  inner, st.integers(0, 2), st.integers(0, 2)),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=5,
)  # fmt: skip


def referred(schema: dict[str, Any]) -> dict[str, Any]:
    return {"$defs": {"d": schema}, "type": "array", "items": {"$ref": "#/$defs/d"}, "maxItems": 2}


async def _no_fault(whole: str, parts: Sequence[str]) -> None:
    pass


@settings(max_examples=25)
@given(schema=SCHEMAS | SCHEMAS.map(referred), seed=st.integers())
def test_whatever_is_drawn_is_valid(
    grammars: Grammars, tiny: Tokenizer, schema: dict[str, Any], seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trial, "fault", _no_fault)  # a process for each would take its time
        constraint = held(grammars, asking(guided_json=schema))
    jsonschema_rs.validate(schema, json.loads(wander(constraint, tiny, seed)))


def test_nothing_but_what_the_form_allows_passes(grammars: Grammars, tiny: Tokenizer) -> None:
    """Over all tokens of the vocabulary, at every step of every answer."""
    texts = ["red", "rest", "a b", "é"]
    answers = [tuple(tiny.continued(text)) for text in texts]
    before = {answer[:n] for answer in answers for n in range(len(answer))}
    for begun in before:
        constraint = held(grammars, asking(structured_outputs={"choice": texts}))
        assert constraint.advance(begun)
        goes_on = {answer[len(begun)] for answer in answers if answer[: len(begun)] == begun}
        assert allowed(constraint) == goes_on


def test_an_end_stands_only_where_the_answer_may_end(grammars: Grammars, tiny: Tokenizer) -> None:
    constraint = held(grammars, asking(guided_regex="ab?"))
    assert not allowed(constraint) & tiny.eos_ids
    constraint.advance(tiny.continued("a"))
    assert tiny.eos_ids < allowed(constraint)
    assert not constraint.over
    constraint.advance(tiny.continued("b"))
    assert constraint.over and constraint.fault is None


def test_an_end_that_is_ignored_stands_only_where_nothing_else_may(
    grammars: Grammars, tiny: Tokenizer
) -> None:
    call = replace(asking(guided_regex="ab?"), sampling=Sampling(ignore_eos=True))
    constraint = held(grammars, call)
    constraint.advance(tiny.continued("a"))
    assert allowed(constraint) == set(tiny.continued("b"))
    constraint.advance(tiny.continued("b"))
    assert allowed(constraint) == tiny.eos_ids


def test_it_stands_where_the_answer_s_ids_say(grammars: Grammars, tiny: Tokenizer) -> None:
    """However it got there: step by step, after a hand-over, after text of another family, or
    ahead of time."""
    call = asking(response_format={"type": "json_object"})
    ids = tuple(tiny.continued('{"a": [1, "x'))
    stepped = held(grammars, call)
    for place, id in enumerate(ids):
        ahead = stepped.allowed(SIZE, ids[place:])
        handed = held(grammars, call.after(ids[: place + 1]))
        said = held(grammars, replace(call, said=tiny_text(tiny, ids[: place + 1])))
        assert stepped.permits(ids[place:]) == len(ids) - place
        assert stepped.advance((id,))
        assert allowed(stepped) == allowed(handed) == allowed(said)
        assert (ahead == stepped.allowed(SIZE, ids[place + 1 :])).all()


def tiny_text(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    return b"".join(map(tokenizer.piece, ids)).decode()


def test_guesses_that_it_refuses_are_seen(grammars: Grammars, tiny: Tokenizer) -> None:
    constraint = held(grammars, asking(guided_regex="[ab]{5}"))
    wrong = tuple(tiny.continued("abxb"))
    before = allowed(constraint)
    assert constraint.permits(wrong) == 2
    assert allowed(constraint, wrong) == set()
    assert allowed(constraint) == before and constraint.fault is None


def test_an_answer_that_it_refuses_is_at_fault(grammars: Grammars, tiny: Tokenizer) -> None:
    constraint = held(grammars, asking(guided_regex="a+"))
    assert not constraint.advance(tiny.continued("b"))
    assert constraint.fault
    call = asking(guided_regex="a+").after(tuple(tiny.continued("b")))
    with pytest.raises(EngineUnsupported) as caught:
        held(grammars, call)
    assert caught.value.param == "guided_regex"


def tool(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


BROKEN = {"$ref": "#/a"}


@pytest.mark.parametrize(
    ("extra", "param", "says"),
    [
        ({"guided_json": {"type": "wood"}}, "guided_json", "wood"),
        ({"guided_json": '{"a":' * 600 + "{}" + "}" * 600}, "guided_json", "a JSON schema"),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar", "nothing"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json", "not"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": BROKEN}}},
            "response_format.json_schema.schema",
            "/a",
        ),
        (
            {"tools": [tool({"type": "object"}), {**tool({"properties": {"a": {"contains": {}}}}),
             "function": {"name": "g", "parameters": {"properties": {"a": {"contains": {}}}}}}]},
            "tools.1.function.parameters",
            "contains",
        ),
        ({"guided_json": {"enum": ["x" * 2**18]}}, "guided_json", "characters"),
        ({"guided_grammar": "start: " + '"a" ' * 2**11}, "guided_grammar", "characters"),
        ({"tools": [tool({"properties": {"a": {"enum": ["x" * 2**18]}}})]}, "tools", "characters"),
        # Small to write, and without end to compile.
        (
            {"guided_json": {"allOf": [{"pattern": f"x{i}y"} for i in range(40)]}},
            "guided_json",
            "too much work",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_by_name(
    grammars: Grammars,
    monkeypatch: pytest.MonkeyPatch,
    extra: dict[str, Any],
    param: str,
    says: str,
) -> None:
    monkeypatch.setattr(trial, "MOST", 2.0)
    with pytest.raises(BadRequest) as caught:
        held(grammars, asking(**extra))
    assert caught.value.param == param
    assert caught.value.message.startswith(f"{param}: ")
    assert says in caught.value.message and "%llguidance" not in caught.value.message


def test_what_takes_too_much_work_in_mid_answer_ends_it(
    grammars: Grammars, tiny: Tokenizer
) -> None:
    constraint = held(grammars, asking(guided_grammar='start: (("a"|"b"|"ab")*){50}'))
    for _ in range(500):
        allowed(constraint)
        if constraint.fault is not None:
            break
        constraint.advance(tiny.continued("a"))
    assert constraint.fault is not None


async def test_a_grammar_is_compiled_once_and_not_for_ever(
    tiny: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    async def count(whole: str, parts: Sequence[str]) -> Fault | None:
        compiled.append(whole)
        return await fault(whole, parts)

    monkeypatch.setattr(trial, "fault", count)
    monkeypatch.setattr(grammar, "_KEPT", 2)
    grammars = Grammars(tiny)
    first = asking(guided_regex="a")
    await asyncio.gather(*(grammars.constraint(first) for _ in range(5)))
    assert len(compiled) == 1
    for other in ("b", "c"):
        await grammars.constraint(asking(guided_regex=other))
    await grammars.constraint(first)
    assert len(compiled) == 4


async def test_a_grammar_that_is_known_waits_for_no_trial(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, begun, over = asking(guided_regex="known"), asyncio.Event(), asyncio.Event()
    assert await grammars.constraint(known)

    async def slow(whole: str, parts: Sequence[str]) -> Fault | None:
        begun.set()
        await over.wait()
        return None

    monkeypatch.setattr(trial, "fault", slow)
    other = asyncio.create_task(grammars.constraint(asking(guided_regex="other")))
    await begun.wait()
    async with asyncio.timeout(30):
        assert await grammars.constraint(known)
    over.set()
    assert await other


async def test_who_asks_for_nothing_is_free(grammars: Grammars) -> None:
    assert await grammars.constraint(asking(tools=[], response_format={"type": "text"})) is None
