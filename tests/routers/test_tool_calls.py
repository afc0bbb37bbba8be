"""The reader of tool calls: what it tells, whole and in pieces."""

import json
import re
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.tool_calls import ToolDelta, ToolReader


def call(name: str, arguments: object) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def read(*pieces: str) -> tuple[str, list[tuple[str, str]]]:
    """The text, and each call's name and arguments."""
    reader = ToolReader("chatcmpl-1")
    told = [piece for text in pieces for piece in reader.feed(text)] + reader.flush()
    deltas = [piece for piece in told if isinstance(piece, ToolDelta)]
    calls = []
    for index, (number, group) in enumerate(groupby(deltas, lambda delta: delta.index)):
        first, *rest = group
        assert number == index
        assert first.id and re.fullmatch("call_[0-9a-f]{24}", first.id) and first.name is not None
        assert all(delta.id is None and delta.name is None for delta in rest)
        calls.append((first.name, first.arguments + "".join(delta.arguments for delta in rest)))
    assert reader.calls == len(calls)
    return "".join(piece for piece in told if isinstance(piece, str)), calls


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        ("Hello <b>there</b>, ", "Hello <b>there</b>, ", []),
        ("", "", []),
        (call("f", {}), "", [("f", "{}")]),
        ("See: \n" + call("f", {"a": "}{"}) + "\n", "See:", [("f", '{"a": "}{"}')]),
        (
            call("f", {"a": '"\\'}) + "\n" + call("g", {"b": {"c": 1}}) + " Done.",
            " Done.",
            [("f", '{"a": "\\"\\\\"}'), ("g", '{"b": {"c": 1}}')],
        ),
        ("<tool_call>\nno</tool_call> x", "<tool_call>\nno</tool_call> x", []),
        (
            '<tool_call>{"name": "\\q", "arguments": {',
            '<tool_call>{"name": "\\q", "arguments": {',
            [],
        ),
        # Broken off: before, in and after the arguments.
        ("a\n<tool", "a\n<tool", []),
        ('a <tool_call>\n{"name": "f"', 'a <tool_call>\n{"name": "f"', []),
        ('<tool_call>{"name": "f", "arguments": {"a": "b\\', "", [("f", '{"a": "b\\')]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}', "", [("f", '{"a": 1}')]),
    ],
)
def test_text_and_calls(text: str, shown: str, calls: list[tuple[str, str]]) -> None:
    assert read(text) == (shown, calls)
    assert read(*text) == (shown, calls)


ARGUMENTS = st.dictionaries(
    st.text(), st.recursive(st.text() | st.integers() | st.none(), st.lists), max_size=3
)
PARTS = st.text() | st.sampled_from(["<tool_call>", "</tool_call>", '{"name": "', "\\", '"', "{"])


@given(st.lists(st.tuples(st.text('abc"\\é', min_size=1), ARGUMENTS), max_size=3), st.text(" \n"))
def test_calls_come_back(calls: list[tuple[str, object]], space: str) -> None:
    text, told = read(space.join(call(name, arguments) for name, arguments in calls))
    assert [(name, json.loads(arguments)) for name, arguments in told] == calls
    assert not text


@given(st.lists(PARTS | st.builds(call, st.just("f"), ARGUMENTS)), st.data())
def test_pieces_change_nothing(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(*pieces) == read(text)


def test_arguments_come_as_they_are_written() -> None:
    reader = ToolReader("a")
    start, *_ = reader.feed('<tool_call>{"name": "f", "arguments": {')
    assert isinstance(start, ToolDelta) and start.name == "f"
    assert reader.feed('"x": 1') == [ToolDelta(0, None, None, '"x": 1')]
    assert ToolReader("a").feed(call("f", {}))[0] == start  # an answer's ids are its own
    assert ToolReader("b").feed(call("f", {}))[0] != start
