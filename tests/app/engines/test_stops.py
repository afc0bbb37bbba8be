"""Stop strings are found wherever they are cut, and what cannot become one is not held back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engines.stops import StopStrings

pieces = st.lists(st.text("ab", max_size=5), max_size=12)
stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


def first_stop(text: str, stop: list[str]) -> tuple[int, str] | None:
    """Where the stop string that is complete first begins; of several the longest."""
    for end in range(1, len(text) + 1):
        done = [s for s in stop if text[:end].endswith(s)]
        if done:
            longest = max(done, key=len)
            return end - len(longest), longest
    return None


@settings(max_examples=1000)
@given(pieces, stops)
def test_as_a_plain_search_finds_them_however_the_text_is_cut(
    pieces: list[str], stop: list[str]
) -> None:
    one, text = StopStrings(stop), "".join(pieces)
    shown = "".join(map(one.push, pieces)) + one.flush()
    found = first_stop(text, stop)
    assert (shown, one.stopped_by) == (
        (text, None) if found is None else (text[: found[0]], found[1])
    )


@given(pieces, stops)
def test_exactly_what_may_become_a_stop_string_is_held_back(
    pieces: list[str], stop: list[str]
) -> None:
    one, text = StopStrings(stop), "".join(pieces)
    shown = "".join(map(one.push, pieces))
    if one.stopped_by is None:
        prefixes = [s[:n] for s in stop for n in range(1, len(s))]
        held = max((len(p) for p in prefixes if text.endswith(p)), default=0)
        assert shown == text[: len(text) - held]


@given(pieces, stops, st.integers(0, 12))
def test_what_is_shown_depends_on_the_text_alone(
    pieces: list[str], stop: list[str], at: int
) -> None:
    """Whoever goes on primes a new instance with all that was written."""
    whole, second = StopStrings(stop), StopStrings(stop)
    expected = [whole.push(piece) for piece in pieces]
    second.push("".join(pieces[:at]))
    assert [second.push(piece) for piece in pieces[at:]] == expected[at:]
    assert second.stopped_by == whole.stopped_by


def test_after_the_stop_nothing_is_shown() -> None:
    one = StopStrings(["x"])
    assert (one.push("axb"), one.push("c"), one.flush()) == ("a", "", "")


def test_a_long_stop_string_costs_no_more_than_its_text() -> None:
    """Quadratic, this would take minutes."""
    one = StopStrings(["a" * 1000 + "b"])
    shown = sum(len(one.push("a" * 1000)) for _ in range(300))
    assert shown == 300_000 - 1000


def test_what_was_flushed_is_not_flushed_again() -> None:
    one = StopStrings(["ab"])
    assert (one.push("xa"), one.flush(), one.flush()) == ("x", "a", "")


def test_an_empty_stop_string_is_none() -> None:
    one = StopStrings(["", "b"])
    assert (one.push("a"), one.stopped_by) == ("a", None)


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("aaab", "aab", "a"),
        ("abababac", "ababac", "ab"),
        ("aabaabaaa", "aabaaa", "aab"),
        ("mississippi", "issip", "miss"),
    ],
)
def test_a_stop_string_that_begins_within_itself(text: str, stop: str, shown: str) -> None:
    one = StopStrings([stop])
    assert "".join(map(one.push, text)) + one.flush() == shown
    assert one.stopped_by == stop
