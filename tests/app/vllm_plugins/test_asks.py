"""What gateway and plugin say to each other survives the trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.vllm_plugins.asks import Report, format_report, parse_report

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
