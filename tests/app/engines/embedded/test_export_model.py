"""An export is one folder that appears when it is complete, and every refusal is one line."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from app.cli import main
from app.engines.embedded.export import export
from app.engines.embedded.safetensors_file import SafetensorsFile
from app.errors import ConfigError
from tests.app.engines.embedded.test_export import config, exported
from tests.app.engines.embedded.tiny import write_model

FLEET = """
[models.tiny]
engine = "embedded"
weights = "{weights}"
family = "tiny"
price = {{ input = 1, output = 1 }}
"""
Output = pytest.CaptureFixture[str]


def test_force_replaces_a_model_and_nothing_else(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    target = tmp_path / "target"
    target.mkdir()
    exported(source, target)  # empty: nothing is lost
    assert target.stat().st_mode & 0o055 == 0o055  # whoever reads it need not be us
    (target / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="target: is not empty; --force"):
        exported(source, target)
    assert "notes" in os.listdir(target)
    exported(source, target, "bf16", force=True)
    assert "notes" not in os.listdir(target)
    assert config(target)["dtype"] == "bfloat16"
    (target / "config.json").unlink()
    with pytest.raises(ConfigError, match="holds something else than a model"):
        exported(source, target, force=True)
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_the_weights_themselves_are_not_replaced(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    (tmp_path / "link").symlink_to(source)
    before = sorted(os.listdir(source))
    for target in (source, tmp_path / "link"):
        with pytest.raises(ConfigError, match="source: holds the very weights"):
            exported(source, target, force=True)
    inner = source / "model.gguf"
    inner.touch()
    with pytest.raises(ConfigError, match="source: holds the very weights"):
        exported(inner, source, force=True)
    assert set(before) < set(os.listdir(source))


@pytest.mark.parametrize("there", [False, True])
def test_an_interrupted_export_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    source, target = write_model(tmp_path / "source"), tmp_path / "target"
    if there:
        exported(source, target)
    before = sorted(os.listdir(tmp_path))
    put, left = SafetensorsFile.put, [3]

    def interrupted(self: SafetensorsFile, name: str, tensor: torch.Tensor) -> int:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return put(self, name, tensor)

    monkeypatch.setattr(SafetensorsFile, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exported(source, target, "bf16", force=True)
    assert sorted(os.listdir(tmp_path)) == before
    assert not there or config(target)["dtype"] == "float32"


def test_a_folder_that_cannot_be_put_in_place_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_model(tmp_path / "source"), tmp_path / "target"
    exported(source, target)
    replace = os.replace

    def failing(old: Path, new: Path) -> None:
        if Path(old).name == "new":
            raise OSError(5, "Input/output error", str(new))
        replace(old, new)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(ConfigError, match="target: Input/output error"):
        exported(source, target, "bf16", force=True)
    assert config(target)["dtype"] == "float32"
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_a_disk_too_small_is_told_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_model(tmp_path / "source")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    monkeypatch.setattr(SafetensorsFile, "put", None)
    with pytest.raises(
        ConfigError, match="cannot export: .*target: it takes 0.4 MB, and 0.0 are free"
    ):
        exported(source, tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]


def test_a_disk_that_fills_up_meanwhile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: SafetensorsFile, name: str, tensor: torch.Tensor) -> int:
        raise OSError(28, "No space left on device")

    source = write_model(tmp_path / "source")
    monkeypatch.setattr(SafetensorsFile, "put", full)
    with pytest.raises(ConfigError, match="model tiny: cannot export: .*target: No space left"):
        exported(source, tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_is_for_terminals(tmp_path: Path, terminal: bool) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal)
    source = write_model(tmp_path / "source")
    export("tiny", source, tmp_path / "target", "fp32", force=False, console=console)
    assert ("writing" in shown.getvalue()) == terminal


# The command


@pytest.fixture
def fleet(tmp_path: Path) -> str:
    write_model(tmp_path / "weights")
    (tmp_path / "fleet.toml").write_text(FLEET.format(weights=tmp_path / "weights"))
    return str(tmp_path / "fleet.toml")


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["export-model", *args])
    return int(ended.value.code or 0)


def test_the_command_says_what_to_run_next(fleet: str, tmp_path: Path, capfd: Output) -> None:
    target = tmp_path / "my models" / "tiny"
    asked = ("tiny", str(target), "--config", fleet)
    assert run(*asked) == 0
    out, err = capfd.readouterr()
    assert out == f"next: farthing serve-vllm '{target}' --served-model-name tiny\n"
    assert err == ""
    assert run(*asked, "--force", "--precision", "int8") == 0
    assert "quantization_config" in config(target)
    assert set(os.listdir(target)) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("gpt-5", "new"), "The model 'gpt-5' does not exist; there are: tiny"),
        (("tiny", "weights"), "{at}/weights: is not empty; --force replaces the model in it"),
        (("tiny", "weights", "--force"), "{at}/weights: holds the very weights to be exported"),
        (("tiny", "fleet.toml"), "{at}/fleet.toml: is there already, and no folder"),
        (("tiny", "fleet.toml/new"), "model tiny: cannot export: {at}/fleet.toml"),
        (("tiny", "n" * 300), "model tiny: cannot export: {at}/nnn"),
    ],
)
def test_a_refusal_is_one_line(
    fleet: str,
    tmp_path: Path,
    capfd: Output,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*args, "--config", fleet) == 1
    out, err = capfd.readouterr()
    assert err.startswith(f"farthing: {message.format(at=tmp_path)}")
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("damage", ["weights", "weights/model.safetensors", "weights/config.json"])
def test_weights_that_are_not_there_are_named(
    fleet: str, tmp_path: Path, capfd: Output, damage: str
) -> None:
    gone = tmp_path / damage
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert run("tiny", str(tmp_path / "new"), "--config", fleet) == 1
    err = capfd.readouterr().err
    assert str(tmp_path / "weights") in err
    assert err.startswith("farthing: model tiny: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_we_cannot_write_is_named(fleet: str, tmp_path: Path, capfd: Output) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "weights" / file).unlink()
    assert run("tiny", str(tmp_path / "new"), "--config", fleet) == 1
    err = capfd.readouterr().err
    assert err.startswith("farthing: model tiny: cannot export: ")
    assert (str(tmp_path / "weights") in err, err.count("\n")) == (True, 1)
    assert not (tmp_path / "new").exists()


def test_a_model_that_runs_elsewhere_is_refused(fleet: str, tmp_path: Path, capfd: Output) -> None:
    served = FLEET.replace('"embedded"', '"vllm"').replace("weights", "urls")
    Path(fleet).write_text(served.format(urls="").replace('""', '["http://127.0.0.1:1"]'))
    assert run("tiny", str(tmp_path / "new"), "--config", fleet) == 1
    message = "farthing: model tiny: its engine is vllm; it must be embedded\n"
    assert capfd.readouterr().err == message
