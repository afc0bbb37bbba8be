"""farthing train acceptance-head: from a pair and files of prompts, or another run's, to a head."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.nets.acceptance_head import HEAD, AcceptanceHead
from tests.app.engines.embedded.tiny import write_model
from tests.app.training.runs import session
from tests.app.training.test_command import Output, prompts, run

ROOT = Path(__file__).parents[3]
SMALL = (
    *("--number", "8", "--answer", "8", "--depth", "1", "--batch", "32"),
    *("--device", "cpu", "--dtype", "fp32"),
)
__all__ = ["prompts"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def drafted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished draft's run."""
    folder = tmp_path_factory.mktemp("draft")
    session(folder, model, tokens=100, source="target").train()
    return folder


def test_a_head_from_files(
    model: Path, drafted: Path, prompts: Path, tmp_path: Path, capsys: Output
) -> None:
    folder = tmp_path / "run"
    given = (drafted / "draft", model, folder, "--prompts", prompts, *SMALL)
    assert run("acceptance-head", *given, "--tied", "--no-extras", "--sees", "after") == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(folder / HEAD)
    assert "held-sampled, head: ece 0." in said.err and "fixed" in said.err
    about = AcceptanceHead.load(folder / HEAD).about
    assert (about.draft, about.target) == ("draft", model.name)
    assert about.tied and not about.extras and about.sees == "after"
    # Called again it has nothing to do, and needs neither prompts nor options.
    before = (folder / HEAD).read_bytes()
    again = ("--device", "cpu", "--dtype", "fp32")
    assert run("acceptance-head", drafted / "draft", model, folder, *again) == 0
    assert (folder / HEAD).read_bytes() == before


def test_texts_of_the_drafts_own_training(model: Path, drafted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given = (drafted / "draft", model, folder, "--texts", drafted, *SMALL)
    assert run("acceptance-head", *given) == 0
    assert (folder / "inputs" / "answers.safetensors").exists()
    assert not (folder / "texts").exists()


def test_in_the_folder_of_the_draft_itself(model: Path, drafted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(drafted, folder)
    assert run("acceptance-head", folder / "draft", model, folder, *SMALL) == 0
    assert (folder / HEAD).exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "is new: name prompts with --prompts, or with --texts"),
        (("--prompts", "none.jsonl"), "none.jsonl: no such file"),
        (("--prompts", "a.jsonl", "--texts", "b"), "one or the other, not both"),
        (("--texts", "nowhere"), "nowhere/inputs/about.json: No such file"),
        (("--depth", "17"), "depth must be 0 to 16, not 17"),
        (("--mixing", "2"), "mixing must be 0 to 1, not 2"),
        (("--mixing", "1", "--sees", "after"), "mixing must be below 1 where sees is after"),
        (("--number", "0"), "texts must be at least 1"),
        (("--rejection-weight", "0"), "rejection_weight must be 0.01 to 100"),
    ],
)
def test_what_cannot_begin_says_why(
    model: Path,
    drafted: Path,
    tmp_path: Path,
    capsys: Output,
    options: tuple[str, ...],
    said: str,
) -> None:
    assert run("acceptance-head", drafted / "draft", model, tmp_path / "run", *options) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert said in err and "Traceback" not in err
    assert not (tmp_path / "run" / "head_recipe.json").exists()


def test_other_options_begin_another_run(
    model: Path, drafted: Path, tmp_path: Path, capsys: Output
) -> None:
    given = (drafted / "draft", model, tmp_path / "run")
    assert run("acceptance-head", *given, "--texts", drafted, *SMALL) == 0
    assert run("acceptance-head", *given, "--depth", "2") == 1
    assert "this run has depth 1, not 2; begin another" in capsys.readouterr().err


def test_a_draft_that_is_not_there(model: Path, tmp_path: Path, capsys: Output) -> None:
    assert run("acceptance-head", "no-such-model", model, tmp_path / "run", *SMALL) == 1
    assert "'no-such-model' does not exist" in capsys.readouterr().err


def test_a_pair_with_different_tokenizers(model: Path, tmp_path: Path, capsys: Output) -> None:
    other = write_model(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert run("acceptance-head", other, model, tmp_path / "run", *SMALL) == 1
    assert "have different tokenizers" in capsys.readouterr().err


def test_ctrl_c_and_the_same_command_again(model: Path, drafted: Path, tmp_path: Path) -> None:
    long = ("--texts", str(drafted), *SMALL, "--epochs", "300", "--batch", "16")
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    assert run("acceptance-head", drafted / "draft", model, whole, *long) == 0
    program = "import sys, torch; torch.set_num_threads(1); from app.cli import main; main()"
    pair = ["train", "acceptance-head", str(drafted / "draft"), str(model), str(halted)]
    command = [sys.executable, "-c", program, *pair, *long]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (halted / "head_state.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "goes on from here" in err and "Traceback" not in err
    assert not (halted / HEAD).exists()
    assert run("acceptance-head", drafted / "draft", model, halted, *long) == 0
    for name in (HEAD, "report.json"):
        assert (halted / name).read_bytes() == (whole / name).read_bytes()
