"""Which lines of a log can be replayed, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import ConfigError
from app.replay.decisions import grades_of, of_documents, of_file
from tests.app.replay.logs import document, way

WAYS = [way("small", 0.9, chosen=True), way("large", 0.1)]


def written(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def test_decisions_of_others_and_those_that_cannot_be_replayed_are_skipped_and_counted(
    tmp_path: Path,
) -> None:
    lines = [
        document("a", WAYS),
        document("b", [], plan={"policy": "cascade"}),
        document("c", [], plan={"policy": "direct"}),
        document("d", [], outcome="refused"),
        document("e", WAYS, outcome="closed"),
        {**document("f", WAYS), "left_out": {"alternatives": 3}},
        {**document("g", WAYS), "left_out": {"calls": 3}},
    ]
    log = of_file(written(tmp_path / "log.jsonl", *lines))
    assert [one.id for one in log.decided] == ["a", "g"]
    assert dict(log.skipped) == {
        "of other policies": 2,
        "refused before a way was chosen": 1,
        "left by their clients": 1,
        "whose ways were left out of a document that was too long": 1,
    }
    assert log.explored
    assert [each.name for each in log.decided[0].alternatives] == ["small", "large"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not readable JSON"),
        ("[]", "must be a JSON object"),
        ({"id": "a"}, "no explanation"),
        (document("a", [way("small", 1.2, chosen=True)]), "alternatives.0.propensity"),
        (document("a", [way("small", 1.0, chosen=True, usd=None)]), "alternatives.0.usd"),
        (document("a", [way("small", 1.0, chosen=True, usd="inf")]), "alternatives.0.usd"),
        (document("a", [way("small", 1.0)]), "one must be chosen, not 0"),
        (document("a", [way("small", 0.0, chosen=True), way("b", 1.0)]), "with propensity 0"),
        (document("a", [way("small", 0.5, chosen=True), way("b", 0.3)]), "sum to 0.8"),
        (document("a", [way("b", 0.5, chosen=True), way("b", 0.5)]), "the same name"),
        ({**document("a", WAYS), "cost": {}}, "cost.usd"),
        ({**document("a", WAYS), "alternatives": 7}, "alternatives"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: Any, said: str) -> None:
    path = written(tmp_path / "log.jsonl", document("a", WAYS), line)
    with pytest.raises(ConfigError, match=r"log\.jsonl:2: ") as caught:
        of_file(path)
    assert said in caught.value.message


def test_a_log_that_is_not_there_or_empty_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        of_file(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="is empty"):
        of_file(written(tmp_path / "empty.jsonl"))


def test_the_least_quality_is_the_request_s_or_else_the_planner_s() -> None:
    def least(**more: Any) -> float | None:
        return of_documents([document("a", WAYS, **more)]).decided[0].quality

    assert least() is None
    assert least(plan={"options": {"quality": 0.7}}) == 0.7
    assert least(plan={"options": {"quality": 0.7}}, request={"quality": 0.8}) == 0.8


def test_grades_are_by_id(tmp_path: Path) -> None:
    path = written(tmp_path / "grades.jsonl", {"id": "a", "worth": 1}, {"id": "b", "worth": 0.5})
    assert grades_of(path) == {"a": 1.0, "b": 0.5}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"id": "a", "worth": 1.5}, "must be"),
        ({"id": "b"}, "must be"),
        ({"id": 7, "worth": 1}, "must be"),
        ({"id": "a", "worth": 1}, "graded before"),
    ],
)
def test_a_malformed_grade_is_named(tmp_path: Path, line: Any, said: str) -> None:
    path = written(tmp_path / "grades.jsonl", {"id": "a", "worth": 0}, line)
    with pytest.raises(ConfigError, match=rf"grades\.jsonl:2: .*{said}"):
        grades_of(path)
