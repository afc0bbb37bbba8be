"""`farthing bench ttft` with a predictor that is told by the small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.bench.reading import Weights
from app.bench.ttft import Plan, run
from app.engines.embedded.auxiliary import auxiliary_print
from app.engines.embedded.weights import open_checkpoint
from app.errors import ConfigError
from tests.app.engines.embedded.identity import identity
from tests.app.engines.embedded.tiny import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of the same weights, a predictor of one told by the other, and questions."""
    path = tmp_path_factory.mktemp("ttft")
    for name in ("base", "small"):
        write_model(path / name)
    found = open_checkpoint(path / "small")
    identity(found.config, known=auxiliary_print(found)).save(path / "kv.safetensors")
    asked = [
        {"context": f"{n} or {n * n}.", "question": "Which?", "answers": [str(n)]} for n in range(6)
    ]
    (path / "squad.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return path


AGAIN = ", relevant 0.2"


def measured(folder: Path, small: str | None = "small") -> None:
    base = Weights("base", folder / "base", None, "fp32")
    other = None if small is None else Weights(small, folder / "small", None, "fp32")
    plan = Plan(folder / "squad.jsonl", lengths=(400,), questions=3, last=(1, 9), truncated=())
    files = [folder / "kv.safetensors"]
    run(base, other, files, plan, threads=1, json_file=folder / "report.json")


def test_told_by_itself_the_base_answers_as_ever(folder: Path) -> None:
    measured(folder)
    points = json.loads((folder / "report.json").read_text())["points"]
    by_way = {point["predictor"]: point for point in points}
    names = [f"small -> base, last {last}{more}" for last in (1, 9) for more in ("", AGAIN)]
    assert list(by_way) == ["exact", *names, "small", "extracted 0.2"]
    exact = by_way["exact"]
    for last, exactly in ((1, 1), (9, 13)):
        way = by_way[f"small -> base, last {last}"]
        assert (way["k"], way["last"], way["questions"]) == (None, last, 3)
        assert way["agreement"]["mean"] == 1.0
        assert way["nats"]["mean"] == pytest.approx(exact["nats"]["mean"], abs=1e-4)
        share = (500 + 2 * 2 * 32 * 32) / 2000
        assert way["flops_share"] == pytest.approx(1 + (share - 1) * (400 - exactly) / 400)
        more = by_way[f"small -> base, last {last}{AGAIN}"]
        assert (more["relevant"], more["agreement"]["mean"]) == (0.2, 1.0)


def test_the_small_model_must_be_the_auxiliary(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="told by small: name it with --small"):
        measured(folder, small=None)
    with pytest.raises(ConfigError, match="told by small: name it with --small"):
        measured(folder, small="another")
    for name in ("base", "small"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "squad.jsonl").symlink_to(folder / "squad.jsonl")
    identity(open_checkpoint(folder / "small").config).save(tmp_path / "kv.safetensors")
    with pytest.raises(ConfigError, match="knows small by other weights"):
        measured(tmp_path)
