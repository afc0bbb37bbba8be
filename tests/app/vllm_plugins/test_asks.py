"""What gateway and plugin say to each other survives the trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.vllm_plugins.asks import (
    Placed,
    Report,
    format_placed,
    format_report,
    parse_placed,
    parse_report,
)

bits = st.floats(0, 20)


@given(st.integers(0, 10**6), st.lists(bits, max_size=5), st.none() | bits)
def test_a_report_is_read_as_it_was_written(
    first: int, entropies: list[float], mean: float | None
) -> None:
    written = format_report(Report(first, tuple(entropies), mean))
    line, end, rest = written.partition(b"\n")
    assert (end, rest) == (b"\n", b"\n")
    report = parse_report(line)
    assert report is not None
    assert (report.first, report.mean) == (first, mean)
    assert report.bits == pytest.approx(entropies, abs=1e-6)


def test_a_report_is_a_comment_to_others() -> None:
    report = Report(3, (0.25, 1.0), 0.625)
    expected = b': farthing {"first":3,"bits":[0.25,1.0],"mean":0.625}\n\n'
    assert format_report(report) == expected


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b": ping",
        b'data: {"first": 0, "bits": [], "mean": null}',
        b": farthing ",
        b": farthing []",
        b": farthing {",
        b': farthing {"first": 0}',
        b': farthing {"first": "x", "bits": [], "mean": null}',
        b': farthing {"first": 0, "bits": 7, "mean": null}',
        b': farthing {"first": 0, "bits": [NaN], "mean": null}',
        b": farthing \xff",
    ],
)
def test_what_is_no_report_is_none(line: bytes) -> None:
    assert parse_report(line) is None


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_what_was_put_in_place_is_read_as_it_was_written(predicted: int, computed: int) -> None:
    placed = Placed(predicted, computed)
    line = format_placed(placed).partition(b"\n")[0]
    assert parse_placed(line) == placed and parse_report(line) is None
    assert parse_placed(format_report(Report(0, (1.0,)))) is None


@pytest.mark.parametrize(
    "line",
    [
        b'data: {"predicted": 1, "computed": 0}',
        b": farthing []",
        b": farthing {",
        b': farthing {"predicted": 1}',
        b': farthing {"predicted": -1, "computed": 0}',
        b': farthing {"predicted": true, "computed": 0}',
        b': farthing {"predicted": "1", "computed": 0}',
    ],
)
def test_what_says_nothing_of_it_is_none(line: bytes) -> None:
    assert parse_placed(line) is None
