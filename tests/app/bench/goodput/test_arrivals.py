"""Windows of a trace keep its unevenness at any pace."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from app.bench.goodput.arrivals import read_trace, unevenness, window

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


def test_a_trace_is_read_in_order_from_its_first_request(tmp_path: Path) -> None:
    lines = ("2023-11-16 18:15:50.9951690,396,109\n", "2023-11-16 18:15:46.6805900,374,44\n")
    found = read_trace(written(tmp_path, HEAD + "".join(lines)))
    assert found == pytest.approx([0.0, 4.314579], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("when,how\n1,2\n", "has no column TIMESTAMP"),
        (HEAD, "holds no request"),
        (HEAD + "2023-11-16 18:15:46,1,1\nsoon,1,1\n", "csv:3: TIMESTAMP: .*soon"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_trace(written(tmp_path, text))


def test_no_trace(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file"):
        read_trace(tmp_path / "none.csv")


BURSTS = [10.0 * n + 0.1 * m for n in range(50) for m in range(10)]


def test_a_window_has_the_pace_that_is_asked_for() -> None:
    found = window(BURSTS, 100, 4.0, 1)
    assert (len(found), found[0]) == (100, 0.0)
    assert found[-1] == pytest.approx(99 / 4.0)
    gaps = {round(b - a, 6) for a, b in zip(found, found[1:], strict=False)}
    assert len(gaps) == 2 and max(gaps) / min(gaps) == pytest.approx(91, rel=1e-3)
    assert unevenness(found) == pytest.approx(unevenness(window(BURSTS, 100, 1.0, 1)))


def test_a_seed_draws_its_start() -> None:
    uneven = [n**1.5 for n in range(500)]
    assert window(uneven, 20, 1.0, 1) == window(uneven, 20, 1.0, 1)
    assert window(uneven, 20, 1.0, 1) != window(uneven, 20, 1.0, 2)
    assert window(uneven, 1, 1.0, 2) == [0.0]


def test_what_has_no_window() -> None:
    with pytest.raises(ValueError, match="has 3 arrivals, and 4"):
        window([0.0, 1.0, 2.0], 4, 1.0, 0)
    with pytest.raises(ValueError, match="came at once"):
        window([1.0, 1.0], 2, 1.0, 0)


def test_how_uneven_gaps_are() -> None:
    assert unevenness([0.0, 1.0, 2.0, 3.0]) == 0
    assert unevenness([0.0, 1.0, 4.0]) == pytest.approx(math.sqrt(2) / 2)
    assert math.isnan(unevenness([0.0, 1.0]))
