"""farthing train: from a model and files of prompts to a draft, here and on a bare machine."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.engines.embedded.weights import load
from tests.app.engines.embedded.tiny import VOCABULARY, write_model
from tests.app.training.runs import log

ROOT = Path(__file__).parents[3]
SMALL = (
    *("--layers", "1", "--texts", "6", "--invented", "4", "--batch", "4"),
    *("--tokens", "400", "--answer", "8", "--device", "cpu", "--dtype", "fp32"),
)
Output = pytest.CaptureFixture[str]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"Question {n}?", "answer": f"Answer {n}."} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*args: object) -> int:
    try:
        main(["train", *map(str, args)])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_a_draft_from_files(
    tiny_folder: Path, prompts: Path, tmp_path: Path, capsys: Output
) -> None:
    folder = tmp_path / "run"
    assert run("draft", tiny_folder, folder, "--prompts", prompts, *SMALL) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(folder / "draft")
    assert "acceptance, greedy, trimmed head: 0." in said.err
    assert load(folder / "draft", tiny_folder)[0].layers == 1
    about = json.loads((folder / "inputs" / "about.json").read_text())
    assert about["target"] == tiny_folder.name
    # Called again it has nothing to do, and needs neither prompts nor options.
    before = log(folder)
    assert run("draft", tiny_folder, folder, "--device", "cpu", "--dtype", "fp32") == 0
    assert log(folder) == before
    assert run("curves", folder, "--out", tmp_path / "curves.png") == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_another_model_of_the_family_to_start_with(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    """Its embedding is its own; here it is a model of another context."""
    start = write_model(tmp_path / "start", context=128)
    folder = tmp_path / "run"
    assert run("draft", tiny_folder, folder, "--prompts", prompts, "--start", start, *SMALL) == 0
    assert load(folder / "draft", start)[0].context == 128
    # It is to stand beside the model whose embedding it has.
    assert json.loads((folder / "draft" / "config.json").read_text())["base"]["name"] == "start"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tokens", "500"), "this run has tokens 400, not 500; begin another"),
        (("--source", "fixed"), "this run has source 'target', not 'fixed'"),
        (("--kept", "0"), "this run has kept (), not (0,)"),
    ],
)
def test_other_options_begin_another_run(
    tiny_folder: Path, prompts: Path, tmp_path: Path, capsys: Output, options: Any, said: str
) -> None:
    folder = tmp_path / "run"
    assert run("draft", tiny_folder, folder, "--prompts", prompts, *SMALL) == 0
    assert run("draft", tiny_folder, folder, *options) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--layers", "1"), "is new: name prompts to learn on with --prompts"),
        (("--layers", "1", "--prompts", "none.jsonl"), "none.jsonl: no such file"),
        (("--layers", "7"), "layers: the model has 2, fewer than 7"),
        (("--kept", "0,x"), "kept: must look like 0,1,28,29, not '0,x'"),
        (("--kept", "3"), "the model's layers are 0 to 1"),
        (("--beta", "2"), "beta must be 0.001 to 0.999, not 2"),
        (("--invented", "-1"), "invented must be at least 0, not -1"),
        (("--layers", "1", "--tokens", "0"), "tokens must be at least 1, not 0"),
        (("--start", "no-such-model"), "'no-such-model' does not exist"),
    ],
)
def test_what_cannot_begin_says_why(
    tiny_folder: Path, tmp_path: Path, capsys: Output, options: tuple[str, ...], said: str
) -> None:
    assert run("draft", tiny_folder, tmp_path / "run", *options) == 1
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_an_empty_file_of_prompts(tiny_folder: Path, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    empty = tmp_path / "empty.jsonl"
    assert run("draft", tiny_folder, tmp_path / "run", "--prompts", empty, *SMALL) == 1
    assert "empty.jsonl: is empty" in capsys.readouterr().err


def test_prompts_that_cannot_be_learned_from_leave_the_folder_as_it_was(
    tiny_folder: Path, prompts: Path, tmp_path: Path, capsys: Output
) -> None:
    few, folder = tmp_path / "few.jsonl", tmp_path / "run"
    few.write_text("".join(prompts.read_text().splitlines(keepends=True)[:15]))
    assert run("draft", tiny_folder, folder, "--prompts", few, *SMALL) == 1
    assert "of every 16 prompts of a file one is held out" in capsys.readouterr().err
    few.write_text('{"prompt": "Why?"}\n' * 16)
    given = ("--prompts", few, "--source", "fixed", *SMALL)
    assert run("draft", tiny_folder, folder, *given) == 1
    assert "--source fixed: the prompts' files hold no reference" in capsys.readouterr().err
    assert not (folder / "inputs").exists() and not (folder / "recipe.json").exists()
    assert run("draft", tiny_folder, folder, "--prompts", prompts, *SMALL) == 0


@pytest.mark.parametrize(
    ("device", "said"),
    [("gpu", "device: must be cpu or cuda, not 'gpu'"), ("mps", "device: torch finds no mps")],
)
def test_a_device_that_is_not_there(
    tiny_folder: Path, prompts: Path, tmp_path: Path, capsys: Output, device: str, said: str
) -> None:
    given = ("--prompts", prompts, *SMALL, "--device", device)
    assert run("draft", tiny_folder, tmp_path / "run", *given) == 1
    assert said in capsys.readouterr().err


def test_heads_of_two_widths(
    tiny_folder: Path, prompts: Path, tmp_path: Path, capsys: Output
) -> None:
    """As large models of a family have them, whose tokenizer is the small one's."""
    start = write_model(tmp_path / "start", vocabulary=VOCABULARY + 6)
    shutil.copy(tiny_folder / "tokenizer.json", start)
    given = ("--prompts", prompts, "--start", start, *SMALL)
    assert run("draft", tiny_folder, tmp_path / "run", *given) == 1
    assert f"have {VOCABULARY + 6} and {VOCABULARY} tokens" in capsys.readouterr().err


def test_ctrl_c_and_the_same_command_again(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    long = ("--prompts", str(prompts), *SMALL, "--tokens", "4000")
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    assert run("draft", tiny_folder, whole, *long) == 0
    program = "import sys, torch; torch.set_num_threads(1); from app.cli import main; main()"
    command = [sys.executable, "-c", program, "train", "draft", str(tiny_folder), str(halted)]
    process = subprocess.Popen([*command, *long], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    texts = halted / "texts"
    while not list(texts.glob("target-states-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "goes on" in err and "Traceback" not in err
    assert not (halted / "draft").exists()
    assert run("draft", tiny_folder, halted, *long) == 0
    assert log(halted) == log(whole)
    for name in ("model.safetensors", "config.json"):
        assert (halted / "draft" / name).read_bytes() == (whole / "draft" / name).read_bytes()


def test_a_pair_with_different_tokenizers(
    tiny_folder: Path, prompts: Path, tmp_path: Path, capsys: Output
) -> None:
    start = write_model(tmp_path / "start")
    tokenizer = json.loads((start / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (start / "tokenizer.json").write_text(json.dumps(tokenizer))
    given = ("--prompts", prompts, "--start", start, *SMALL)
    assert run("draft", tiny_folder, tmp_path / "run", *given) == 1
    assert "have different tokenizers" in capsys.readouterr().err


BARE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pydantic", "rich", "typer", "gguf", "transformers", "jinja2",
                                  "tokenizers", "matplotlib", "httpx", "fastapi"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import torch
torch.set_num_threads(1)
import runpy
sys.argv = ["app.training", sys.argv[1], "--device", "cpu", "--dtype", "fp32"]
runpy.run_module("app.training", run_name="__main__")
"""


def test_a_bare_machine_needs_the_packed_folder_alone(
    tiny_folder: Path, prompts: Path, tmp_path: Path, capsys: Output
) -> None:
    packed, here = tmp_path / "packed", tmp_path / "here"
    assert run("draft", tiny_folder, packed, "--prompts", prompts, "--pack", *SMALL) == 0
    assert f"python -m app.training {packed}" in " ".join(capsys.readouterr().err.split())
    moved = tmp_path / "elsewhere" / "packed"
    shutil.move(packed, moved)
    program = [sys.executable, "-c", BARE, str(moved)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(moved / "draft")
    assert "training: " in done.stderr
    assert load(moved / "draft", tiny_folder)[0].layers == 1
    # What it learned from is the packed bf16, so it is nearly what it learns here.
    assert run("draft", tiny_folder, here, "--prompts", prompts, *SMALL) == 0
    ours, theirs = log(here), log(moved)
    assert len(ours) == len(theirs)
    assert ours[1]["loss"] == pytest.approx(theirs[1]["loss"], rel=0.05)


def test_a_bare_machine_says_what_is_missing(tmp_path: Path) -> None:
    program = [sys.executable, "-c", BARE, str(tmp_path)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "recipe.json" in done.stderr and "Traceback" not in done.stderr
