"""`farthing train confidence`: what it leaves in its folder, and how it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.bench.grading import questions
from app.cli import main
from app.confidence import Calibration
from app.errors import ConfigError
from app.training.answers import Interrupted
from app.training.confidence.asking import Asking, read_samples
from app.training.confidence.command import ConfidenceChoices, _is_right, run_confidence
from tests.app.engines.embedded.tiny import write_model
from tests.app.training.confidence.oracle import MODEL, Oracle, write_questions
from tests.upstreams.server import Upstream

NUMBER = 800


def choices(folder: Path, **recipe: Any) -> ConfidenceChoices:
    folder.mkdir(exist_ok=True)
    prompts = folder / "questions.jsonl"
    if not prompts.exists():
        write_questions(prompts, NUMBER)
    given = {"checkpoints": (4, 16, 64), **recipe}
    return ConfidenceChoices(MODEL, folder / "run", (("gsm8k", prompts),), given, 16)


def written(folder: Path) -> tuple[Calibration, dict[str, Any]]:
    calibration = Calibration.model_validate_json((folder / "run/confidence.json").read_bytes())
    return calibration, json.loads((folder / "run/report.json").read_text("utf-8"))


async def test_it_finds_what_chance_there_is(tmp_path: Path) -> None:
    await run_confidence(choices(tmp_path), Oracle())
    known, report = written(tmp_path)
    assert (known.model, known.tasks, known.max_tokens) == (MODEL, ("gsm8k",), 320)
    assert known.entropy and known.checked is None
    assert known.checkpoints == (4, 16)  # no answer has 64 tokens
    whole, half = report["whole"], report["after 16 tokens"]
    assert whole["answers"] == NUMBER * 0.4 and 0.3 * NUMBER > half["answers"] > 0.1 * NUMBER
    assert whole["after"]["ece"]["mean"] < whole["before"]["ece"]["mean"] / 2
    early = report["decided as early as it can be"]["promises"]
    assert all(one["within"] for one in whole["promises"] if one["kept"])
    # No more is promised than holds; caution may make it less.
    assert all(one["promised"] <= one["right"]["high"] for one in early if one["kept"])
    assert all(one["right"]["mean"] - one["promised"] < 0.1 for one in early if one["kept"])
    assert sum(one["kept"] for one in early) >= sum(one["kept"] for one in whole["promises"])
    assert known.held_out["ece_after"] == whole["after"]["ece"]["mean"]
    for sample in read_samples(tmp_path / "run/samples.jsonl"):
        of = sample.signals()
        assert of is not None
        assert known.probability(of) == pytest.approx(1 + of.mean_logprob, abs=0.2)


async def test_no_answer_is_made_twice(tmp_path: Path) -> None:
    first, again = Oracle(), Oracle()
    await run_confidence(choices(tmp_path), first)
    before = written(tmp_path)
    path = tmp_path / "run/samples.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # as a machine left it that lost its power
    await run_confidence(choices(tmp_path), again)
    assert (len(first.asked), len(again.asked)) == (NUMBER, 1)
    assert written(tmp_path) == before


async def test_a_model_asked_about_its_answers_is_told_apart_better(tmp_path: Path) -> None:
    oracle = Oracle()
    await run_confidence(choices(tmp_path, self_check=True), oracle)
    known, report = written(tmp_path)
    assert known.checked is not None and "self_check" in known.checked.features
    auroc = {
        way: report[way]["after"]["auroc"]["mean"] for way in ("whole", "whole, with self-check")
    }
    assert auroc["whole, with self-check"] == 1.0 > auroc["whole"]
    judging = [call for call in oracle.asked if len(call.messages) == 3]
    assert len(judging) == NUMBER
    assert all((call.max_tokens, call.sampling.logprobs) == (1, 20) for call in judging)


async def test_questions_are_drawn_by_the_seed(tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        folder = tmp_path / str(len(drawn))
        await run_confidence(choices(folder, number=100, seed=seed), Oracle())
        found = read_samples(folder / "run/samples.jsonl")
        drawn.append({sample.number for sample in found})
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 100


async def test_a_folder_goes_on_with_its_own_run_only(tmp_path: Path) -> None:
    await run_confidence(choices(tmp_path), Oracle())
    with pytest.raises(ConfigError, match="this run has seed 0, not 1; begin another"):
        await run_confidence(choices(tmp_path, seed=1), Oracle())
    write_questions(tmp_path / "questions.jsonl", NUMBER + 1)
    with pytest.raises(ConfigError, match="this run is of model oracle and prompts"):
        await run_confidence(choices(tmp_path), Oracle())


async def test_what_cannot_be_fitted_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokens come without log-probabilities"):
        await run_confidence(choices(tmp_path / "a"), Oracle(silent=True))
    with pytest.raises(ConfigError, match=r"\d of 12 answers are right: at least 10 must be"):
        await run_confidence(choices(tmp_path / "b", number=20), Oracle())
    with pytest.raises(ConfigError, match=r"held_out must be 0\.1 to 0\.9, not 1"):
        await run_confidence(choices(tmp_path / "c", held_out=1), Oracle())
    missing = choices(tmp_path / "d")
    with pytest.raises(ConfigError, match=r"none\.jsonl: No such file"):
        await run_confidence(replace(missing, prompts=(("gsm8k", Path("none.jsonl")),)), Oracle())
    with pytest.raises(ConfigError, match="there is no task chess"):
        path = missing.prompts[0][1]
        await run_confidence(replace(missing, prompts=(("chess", path),)), Oracle())


async def test_it_stops_when_told_to_and_keeps_what_there_is(tmp_path: Path) -> None:
    class Told:
        done = 0

        @property
        def stopping(self) -> bool:
            return self.done >= 50

        def progress(self, what: str, done: int, total: int) -> None:
            self.done = done

        def say(self, line: str) -> None:
            raise AssertionError(line)

    asked = questions("gsm8k", choices(tmp_path).prompts[0][1])
    path = tmp_path / "samples.jsonl"
    with pytest.raises(Interrupted):
        await Asking(Oracle(), MODEL, 8, Told()).answers(asked, path, self_check=False)
    assert 50 <= len(read_samples(path)) < 60


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Denver Broncos", True),
        ("The team was the Denver Broncos, I think, that won in the year 2016.", True),
        ("Broncos of Denver", True),  # by F1
        ("The Denverites won.", False),
        ("", False),
    ],
)
async def test_words_are_right_in_a_sentence_too(tmp_path: Path, text: str, right: bool) -> None:
    line = {"context": "c", "question": "q", "answers": ["the Denver Broncos"]}
    path = tmp_path / "squad.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    (question,) = questions("squad", path)
    assert await _is_right(question, text) is right


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"task": "gsm8k"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"samples\.jsonl:1: is no answer of ours"):
        read_samples(path)


def test_from_the_command_line_with_a_model_of_the_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights are never right; what they answered is there all the same."""
    write_model(tmp_path / "weights")
    (tmp_path / "farthing.toml").write_text(
        '[models.tiny]\nengine = "embedded"\nweights = "weights"\nfamily = "f"\n'
        "aliases = ['alias']\nprice = { input = 0, output = 0 }\n"
    )
    monkeypatch.chdir(tmp_path)
    prompts = str(write_questions(tmp_path / "questions.jsonl", 4))
    asked = ["train", "confidence", "alias", "run", "--prompts", prompts, "--task"]
    with pytest.raises(SystemExit):
        main([*asked, "gsm8k", "--task", "squad"])
    assert "--task: 2 for 1 files: name one for each" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*asked, "gsm8k", "--prompts", prompts, "--task", "gsm8k"])
    assert "--task: each once" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*asked, "gsm8k", "--checkpoints", "2"])
    assert "0 of 2 answers are right: at least 10 must be" in capsys.readouterr().err
    samples = read_samples(tmp_path / "run/samples.jsonl")
    assert [len(sample.logprobs) == len(sample.entropies) > 0 for sample in samples] == [True] * 4
    recipe = json.loads((tmp_path / "run/confidence_recipe.json").read_text("utf-8"))
    assert recipe["inputs"]["model"] == "tiny"
    assert recipe["recipe"]["checkpoints"] == [2]


def test_a_vllm_server_is_asked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It tells the likeliest tokens, and so bounds of the entropy."""
    server = Upstream()
    server.start()
    (tmp_path / "farthing.toml").write_text(
        f'[models.large]\nengine = "vllm"\nurls = ["{server.url}"]\nfamily = "f"\n'
        'served = "small"\n'
        "price = { input = 0, output = 0 }\n"
    )
    monkeypatch.chdir(tmp_path)
    prompts = str(write_questions(tmp_path / "questions.jsonl", 4))
    with pytest.raises(SystemExit):
        main(["train", "confidence", "large", "run", "--prompts", prompts, "--task", "gsm8k"])
    server.stop()
    assert "0 of 2 answers are right" in capsys.readouterr().err
    samples = read_samples(tmp_path / "run/samples.jsonl")
    assert [len(sample.logprobs) == len(sample.entropies) > 0 for sample in samples] == [True] * 4
    assert not server.complaints
