"""A body is one JSON object of bounded size and depth, or a 4xx."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BadRequest
from routers.body import MAX_DEPTH, parse

MALFORMED = [
    b"",
    b"{",
    b"nonsense",
    b'{"a": 1} {"b": 2}',
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": -Infinity}',
    b'{"a": 1e400}',
    b'{"a": -1e400}',
    b'{"a": ' + b"9" * 10_000 + b"}",
    b"\xff\xfe{}",
    b'{"a": "\xed\xa0\x80"}',
    b'{"a": "\\ud800"}',
    b'{"\\uDFFF": 1}',
    b"[]",
    b'"text"',
    b"null",
    b"17",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"a":' * 900 + b"1" + b"}" * 900,
    b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:20]))
def test_what_is_not_a_plain_json_object_is_refused(body):
    with pytest.raises(BadRequest) as refusal:
        parse(body)
    assert refusal.value.param == "body"


def test_what_is_large_in_breadth_only_is_taken():
    document = {"messages": [{"content": [{"text": "x"}]} for _ in range(1000)]}
    assert parse(json.dumps(document).encode()) == document


def test_the_deepest_that_is_allowed_is_taken():
    parse(b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}")


@pytest.mark.parametrize("text", ["\ufeff{}", '{"a": "\\ud83d\\ude00"}', '{"a": "\U0001f600"}'])
def test_whole_characters_are_taken_however_they_are_written(text):
    assert set(parse(text.encode()).values()) <= {"\U0001f600"}


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), values), st.booleans())
def test_json_comes_through_unchanged(document, ascii_only):
    assert parse(json.dumps(document, ensure_ascii=ascii_only).encode()) == document


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_nothing_worse(body):
    try:
        assert isinstance(parse(body), dict)
    except BadRequest as refusal:
        assert refusal.param == "body"
