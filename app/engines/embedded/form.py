"""The form that a request wants its answer to have, as a grammar in llguidance's words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from app.engines.embedded import tools
from app.engines.embedded.tools import Offer, Tool
from app.errors import BadRequest, EngineUnsupported
from app.types import Call

_HEAD = "%llguidance {}\n"
_LONGEST = 2**18  # characters of a grammar
_LONGEST_OF_CLIENTS = 2**13  # of one that a client wrote: its rules may mean far more work
_MOST_CALLS = 16  # in one answer: a model that knows no end of them would go on for ever
# Spelled as models learnt it. Where white space were free, small ones would write nothing else.
_SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_JOINS = ("anyOf", "oneOf", "$ref", "patternProperties")
_DATA = ("const", "enum", "default", "examples")  # what they hold is no schema


@dataclass(frozen=True, slots=True)
class Form:
    """A grammar, and of what fields it was made."""

    grammar: str
    parts: tuple[tuple[str, str], ...]  # field, and the grammar that it asks for by itself


@dataclass(frozen=True, slots=True)
class _Rule:
    """What may stand in the answer for one field of the request."""

    param: str
    lark: str  # the right side of a rule; of a `whole` one, all rules
    whole: bool = False

    @property
    def grammar(self) -> str:
        return _HEAD + (self.lark if self.whole else f"start: {self.lark}")


def form(call: Call) -> Form | None:
    """What the call's fields say of its answer's form; None: nothing.

    Raises BadRequest and EngineUnsupported naming the field. Whether the grammar holds water is
    for who compiles it to say.
    """
    offer, format = tools.offered(call), _format(call.extra)
    if offer is not None:
        made = _with_tools(offer, format)
    elif format is not None:
        made = Form(format.grammar, ((format.param, format.grammar),))
    else:
        return None
    if len(made.grammar) > _LONGEST:
        param = made.parts[0][0].split(".")[0]
        raise BadRequest(f"{param}: more than {_LONGEST} characters", param=param)
    return made


def _with_tools(offer: Offer, format: _Rule | None) -> Form:
    """Calls of these tools; or, where none need be, text or what the format says."""
    named = offer.choice if isinstance(offer.choice, Tool) else None
    callable = (named,) if named is not None else offer.tools
    rules = [_Rule(tool.param, _json(tool.parameters)) for tool in callable]
    bodies = [f"{_quoted(_opening(tool))} a{i}" for i, tool in enumerate(callable)]
    end = _quoted("}\n" + tools.CLOSE)
    several = offer.several and named is None
    more = f'("\\n{tools.OPEN}" body){{0,{_MOST_CALLS - 1}}}' if several else ""
    if offer.choice != "auto":
        start = [f'start: "{tools.OPEN}" body {more}']
    elif format is None:
        # The lazy one ends where the mark does, so the text that may go on has no mark in it.
        start = [f"start: TEXT | mark body {more}", f'mark[lazy]: TEXT "{tools.OPEN}"']
        start.append(r"TEXT: /(.|\n)*/")
    elif format.whole:
        at = format.param
        raise EngineUnsupported(f"{at}: a grammar does not go with tools", param=at)
    else:
        start = [f'start: answer | "{tools.OPEN}" body {more}', f"answer: {format.lark}"]
        rules.append(format)
    arguments = [f"a{i}: {rule.lark}" for i, rule in enumerate(rules[: len(callable)])]
    lines = [*start, f"body: ({' | '.join(bodies)}) {end}", *arguments]
    return Form(_HEAD + "\n".join(lines), tuple((rule.param, rule.grammar) for rule in rules))


def _opening(tool: Tool) -> str:
    return f'\n{{"name": {json.dumps(tool.name)}, "arguments": '


def _format(extra: Mapping[str, Any]) -> _Rule | None:
    """What the answer's text is to be, by the one field that says so."""
    found = [
        (field, read)
        for field, read in _FIELDS.items()
        if extra.get(field) not in (None, {}, [], False)
    ]
    rules = [rule for field, read in found if (rule := read(extra[field], field)) is not None]
    if len(rules) > 1:
        first, second = rules[0].param, rules[1].param
        raise BadRequest(f"{second}: {first} says already what the answer is to be", param=second)
    return rules[0] if rules else None


def _response_format(value: Any, field: str) -> _Rule | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return _Rule(field, _json({"type": "object"}))
    if kind != "json_schema":
        raise EngineUnsupported(
            f"{field}.type: must be text, json_object or json_schema", param=f"{field}.type"
        )
    inner = value.get("json_schema")
    if not isinstance(inner, Mapping):
        raise BadRequest(f"{field}.json_schema: must be an object", param=f"{field}.json_schema")
    return _schema(inner.get("schema"), f"{field}.json_schema.schema")


def _structured_outputs(value: Any, field: str) -> _Rule | None:
    if not isinstance(value, Mapping):
        raise BadRequest(f"{field}: must be an object", param=field)
    given = {key: inner for key, inner in value.items() if inner not in (None, False)}
    kinds = [key for key in given if key in _STRUCTURED]
    if len(kinds) != 1:
        there = ", ".join(_STRUCTURED)
        raise BadRequest(f"{field}: must name one of {there}", param=field)
    return _STRUCTURED[kinds[0]](given[kinds[0]], f"{field}.{kinds[0]}")


def _schema(value: Any, field: str) -> _Rule:
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        rule = _Rule(field, _json(schema)) if isinstance(schema, Mapping) else None
    except (ValueError, RecursionError):  # nobody else bounds how deep a string's JSON is
        rule = None
    if rule is None:
        raise BadRequest(f"{field}: must be a JSON schema, an object", param=field)
    return rule


def _regex(value: Any, field: str) -> _Rule:
    return _Rule(field, f"/{regex_to_lark(_text(value, field))}/")


def _choice(value: Any, field: str) -> _Rule:
    if not isinstance(value, list | tuple) or not value:
        raise BadRequest(f"{field}: must be a list of strings", param=field)
    texts = [_text(each, f"{field}.{i}") for i, each in enumerate(value)]
    return _Rule(field, " | ".join(map(_quoted, texts)))


def _grammar(value: Any, field: str) -> _Rule:
    """Lark, or the EBNF of llama.cpp and xgrammar."""
    text = _text(value, field)
    if len(text) > _LONGEST_OF_CLIENTS:
        raise BadRequest(f"{field}: more than {_LONGEST_OF_CLIENTS} characters", param=field)
    try:
        return _Rule(field, any_to_lark(text), whole=True)
    except Exception as error:  # bare ones, for bad grammars
        raise BadRequest(f"{field}: {error}", param=field) from error


def _object(_: Any, field: str) -> _Rule:
    return _Rule(field, _json({"type": "object"}))


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{field}: must be a string that is not empty", param=field)
    return value


_STRUCTURED: Mapping[str, Callable[[Any, str], _Rule]] = {
    "json": _schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _object,
}
_FIELDS: Mapping[str, Callable[[Any, str], _Rule | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _schema,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
}


def _json(schema: Mapping[str, Any]) -> str:
    told = {key: value for key, value in schema.items() if key != "x-guidance"}
    # What is longer will be refused: to walk through a whole body takes a second.
    if len(json.dumps(told)) <= _LONGEST and not _composed(told):
        told = _closed(told)
    return f"%json {json.dumps({**told, 'x-guidance': _SPELLING})}"


def _composed(schema: Any) -> bool:
    """Whether an object in it is told by several schemas, each of which may know a part of it."""
    if isinstance(schema, Mapping):
        joined = "allOf" in schema or ("properties" in schema and any(k in schema for k in _JOINS))
        return joined or any(map(_composed, schema.values()))
    return isinstance(schema, list | tuple) and any(map(_composed, schema))


def _closed(schema: Any) -> Any:
    """Objects that name their properties have no others: the answer is no less valid, and a
    model with leave to invent some may never come to an end."""
    if isinstance(schema, list | tuple):
        return [_closed(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {k: value if k in _DATA else _closed(value) for k, value in schema.items()}
    known, needed = schema.get("properties"), schema.get("required", [])
    if not isinstance(known, Mapping) or not isinstance(needed, list | tuple):
        return closed
    if "minProperties" not in schema and all(name in known for name in needed):
        closed.setdefault("additionalProperties", False)
    return closed


def _quoted(text: str) -> str:
    return json.dumps(text)
