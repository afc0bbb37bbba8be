"""A training in its folder: what it learns, and that nothing which stops it changes it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engines.embedded.model import Decoder
from app.engines.embedded.weights import load, open_checkpoint
from app.training import saving
from app.training.answers import Interrupted
from app.training.divergence import KINDS
from app.training.inputs import Texts, read_texts
from app.training.net import read_net
from app.training.recipe import SOURCES
from app.training.remembered import Remembered, remember
from tests.app.engines.embedded.tiny import EOS, write_model
from tests.app.training.runs import Watched, log, session, write_inputs


@pytest.mark.parametrize("source", SOURCES)
def test_it_learns_from_every_source(tiny_folder: Path, tmp_path: Path, source: str) -> None:
    session(tmp_path, tiny_folder, source=source, tokens=3000).train()
    assert fell(tmp_path)
    looks = [line for line in log(tmp_path) if "same_greedy" in line]
    assert looks[0]["step"] == 0 and looks[-1]["tokens"] >= 3000
    assert all(0 < line["acceptance_sampled"] < 1 for line in looks)


@pytest.mark.parametrize("divergence", KINDS)
def test_it_learns_by_every_divergence(tiny_folder: Path, tmp_path: Path, divergence: str) -> None:
    session(tmp_path, tiny_folder, divergence=divergence, tokens=3000).train()
    assert fell(tmp_path)


def fell(folder: Path) -> bool:
    """Whether the loss did. (What random weights compute is learned by heart, not understood:
    held-out texts tell nothing here.)"""
    losses = [line["loss"] for line in log(folder) if "loss" in line]
    return sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_stopped_and_gone_on_with_it_is_the_same_run(tiny_folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    session(whole, tiny_folder).train()
    watch = Watched()
    for after in (1, 4, 2):
        with pytest.raises(Interrupted, match="goes on from here"):
            session(parts, tiny_folder, Watched(stop_after=after)).train()
    session(parts, tiny_folder, watch).train()
    assert log(parts) == log(whole)
    assert "going on at step 7" in watch.said[0]
    for name in ("model.safetensors", "config.json"):
        assert (parts / "draft" / name).read_bytes() == (whole / "draft" / name).read_bytes()


def test_killed_it_is_the_same_run(tiny_folder: Path, tmp_path: Path) -> None:
    """By a signal that nobody can handle, at any time: here in the midst of a step."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    session(whole, tiny_folder).train()
    write_inputs(killed, open_checkpoint(tiny_folder))
    program = (
        "import torch, sys; from pathlib import Path; torch.set_num_threads(1);"
        "from tests.app.training.runs import session;"
        f"session(Path({str(killed)!r}), Path({str(tiny_folder)!r})).train()"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    state, end = killed / "state.safetensors", time.monotonic() + 60
    while not state.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "draft").exists()
    session(killed, tiny_folder).train()
    assert log(killed) == log(whole)


def test_the_draft_is_what_was_trained(tiny_folder: Path, tmp_path: Path) -> None:
    trained = session(tmp_path, tiny_folder)
    folder = trained.train()
    config, weights = load(folder, tiny_folder)
    assert config.layers == 1
    decoder = Decoder(config, weights, "fp32")
    assert decoder.drafting is not None and len(decoder.drafting) in (40, 41)
    assert EOS in decoder.drafting.tolist()
    said = json.loads((folder / "config.json").read_text())["training"]
    assert said["recipe"]["seed"] == 0
    assert {"greedy_full", "greedy_trimmed", "sampled_full", "sampled_trimmed"} == set(
        said["held_out"]
    )
    # int8 with a scale for each row is near to what it was.
    for layer, loaded in zip(trained._draft.layers, weights.layers, strict=True):
        torch.testing.assert_close(loaded.down, layer.get_parameter("down").detach())


def test_texts_are_written_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session(tmp_path, tiny_folder).train()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "texts").iterdir()}
    assert {path.name.rpartition("-")[0] for path in before} == {
        "held-greedy",
        "held-sampled",
        "invented",
        "target",
        "target-states",
        "held-greedy-states",
        "held-sampled-states",
    }
    session(tmp_path, tiny_folder).train()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "texts").iterdir()}


def test_what_the_target_makes_of_a_text_is_remembered(tiny_folder: Path, tmp_path: Path) -> None:
    seeded = torch.Generator().manual_seed(1)
    nothing = torch.zeros(0, dtype=torch.int64)
    rows = [(torch.randint(256, (n % 23 + 1,), generator=seeded), nothing, 0) for n in range(150)]
    texts, net = Texts.of(rows, ["one"]), read_net(open_checkpoint(tiny_folder))
    heard: list[tuple[int, int]] = []

    def remembered() -> Remembered:
        return remember(tmp_path, "s", texts, net, lambda *at: heard.append(at))

    known = remembered()
    for index in (0, 63, 64, 149):
        with torch.no_grad():
            wanted = net(texts.text(index)[None])[0]
        torch.testing.assert_close(known(index), wanted, atol=1e-5, rtol=1e-5)
    assert heard == [(0, 150), (64, 150), (128, 150), (150, 150)]
    before = known(64).clone()
    (tmp_path / "s-0001.safetensors").write_bytes(b"half of it")
    heard.clear()
    assert torch.equal(remembered()(64), before)
    assert heard == [(64, 150), (150, 150)]


def test_no_room_for_what_is_remembered(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OSError, match="states take .* MB, and 0 are free"):
        session(tmp_path, tiny_folder).train()


def test_another_recipe_does_not_go_on_with_it(tiny_folder: Path, tmp_path: Path) -> None:
    session(tmp_path, tiny_folder).train()
    with pytest.raises(ValueError, match="other options or inputs"):
        session(tmp_path, tiny_folder, seed=1).train()


def test_another_precision_does_not_go_on_with_it(tiny_folder: Path, tmp_path: Path) -> None:
    session(tmp_path, tiny_folder).train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="other options or inputs"):
        session(tmp_path, tiny_folder, dtype=torch.bfloat16).train()
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_texts_are_those_of_the_prompts(tiny_folder: Path, tmp_path: Path) -> None:
    """As many other prompts in the folder of another run find neither its texts nor its states."""
    one, other = tmp_path / "one", tmp_path / "other"
    session(one, tiny_folder).train()
    write_inputs(other, open_checkpoint(tiny_folder), seed=5)
    session(other, tiny_folder).train()
    for path in (one / "inputs").iterdir():
        shutil.copy(other / "inputs" / path.name, path)
    (one / "state.safetensors").unlink()
    (one / "log.jsonl").unlink()
    session(one, tiny_folder).train()
    assert log(one) == log(other)


def test_another_targets_inputs(tiny_folder: Path, tmp_path: Path) -> None:
    session(tmp_path / "run", tiny_folder)
    other = write_model(tmp_path / "other")
    tensors = dict(_tensors(other))
    tensors["model.embed_tokens.weight"] += 1
    _save(tensors, other)
    with pytest.raises(ValueError, match="was made for tiny"):
        session(tmp_path / "run", other)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def _save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("which", ["prompts", "held"])
def test_an_empty_data_set(tiny_folder: Path, tmp_path: Path, which: str) -> None:
    trained = session(tmp_path, tiny_folder)
    Texts.of([], ["one"]).save(tmp_path / "inputs" / f"{which}.safetensors")
    with pytest.raises(ValueError, match="no prompts to learn on, or none held out"):
        trained.train()


def test_no_reference_answers_to_learn_from(tiny_folder: Path, tmp_path: Path) -> None:
    trained = session(tmp_path, tiny_folder, source="fixed")
    Texts.of([], ["one"]).save(tmp_path / "inputs" / "fixed.safetensors")
    with pytest.raises(ValueError, match="no reference answers"):
        trained.train()


def test_a_full_disk(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and what was saved before is still there to go on from."""
    with pytest.raises(Interrupted):
        session(tmp_path, tiny_folder, Watched(stop_after=4)).train()
    state = (tmp_path / "state.safetensors").read_bytes()

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as refused:
        session(tmp_path, tiny_folder).train()
    assert refused.value.filename
    monkeypatch.undo()
    assert (tmp_path / "state.safetensors").read_bytes() == state
    assert not list(tmp_path.rglob("*.part"))
    session(tmp_path, tiny_folder).train()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", 0),
        ("beta", 1.0),
        ("source", "books"),
        ("divergence", "l2"),
        ("learning_rate", 0.0),
        ("warmup", 1.0),
        ("layers", 0),
    ],
)
def test_a_bad_recipe_names_the_option(
    tiny_folder: Path, tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=name):
        session(tmp_path, tiny_folder, **{name: value})


@pytest.mark.parametrize("kept", [(2,), (-1,), (0, 5)])
def test_layers_that_the_model_has_not_got(
    tiny_folder: Path, tmp_path: Path, kept: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="layers are 0 to 1"):
        session(tmp_path, tiny_folder, kept=kept)


def test_a_damaged_file_of_texts(tmp_path: Path) -> None:
    (tmp_path / "texts.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a file of texts"):
        read_texts(tmp_path / "texts.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_texts(tmp_path / "other.safetensors")
