"""`farthing train confidence` on a real model: it finds out what the model does not know."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.catalog import read
from app.confidence import Calibration
from app.settings import DEFAULT_CONFIG

pytestmark = [pytest.mark.model, pytest.mark.slow]

MODEL = "smollm2-135m-int8"
_NAMES = ("Ada", "Ben", "Cora", "Dan", "Eva", "Finn", "Gia", "Hugo", "Ida", "Jon", "Kim", "Leo")
_TOWNS = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Tokyo", "Delhi")


def write_questions(path: Path) -> Path:
    """Half of them the context answers; the others nobody could know."""
    lines = []
    for number in range(84):
        name, town = _NAMES[number % 12], _TOWNS[number % 7]
        context = f"{name} lives in {town}."
        known = {"question": f"Where does {name} live?", "answers": [town]}
        unknown = {"question": f"What is the middle name of {name}?", "answers": ["Zebulon"]}
        lines.append({"context": context, **(known if number % 2 else unknown)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_real_model_s_answers_are_told_apart(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "squad.jsonl")
    command = ["train", "confidence", MODEL, "run", "--prompts", str(questions), "--task", "squad"]
    done = subprocess.run(
        [sys.executable, "-c", "from app.cli import main; main()", *command, "--checkpoints", "4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "run/confidence.json"
    report = json.loads((tmp_path / "run/report.json").read_text("utf-8"))
    after = report["whole"]["after"]
    assert after["auroc"]["mean"] > 0.8
    assert after["ece"]["mean"] < report["whole"]["before"]["ece"]["mean"]

    fleet = DEFAULT_CONFIG.read_text("utf-8").replace(
        f"[models.{MODEL}]\n", f'[models.{MODEL}]\nconfidence = "{tmp_path}/run/confidence.json"\n'
    )
    (tmp_path / "farthing.toml").write_text(fleet, encoding="utf-8")
    known = read(tmp_path / "farthing.toml").models[MODEL].confidence
    assert isinstance(known, Calibration) and known.tasks == ("squad",)
