"""The small model that we ship: what is in the package, how it guesses, where else it loads."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.bench.prompts import OWN
from app.catalog import read
from app.cli import main
from app.engines.embedded.draft_folder import DraftFolder
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.tokenizer import load_tokenizer
from app.engines.embedded.weights import load, open_checkpoint
from app.nets.acceptance_head import HEAD, AcceptanceHead
from app.settings import DEFAULT_CONFIG
from app.training.acceptance_report import outcomes, ways
from app.training.acceptance_samples import Pair, Samples
from app.training.calibration import area, calibration_error
from app.training.net import read_net
from app.training.text import write

TINY, TARGET = "smollm2-tiny", "smollm2-135m"
ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "app" / "weights" / TINY
FLEET = ("--config", str(DEFAULT_CONFIG))


@pytest.fixture(autouse=True)
def default_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARTHING_CONFIG", str(DEFAULT_CONFIG))


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 0


def test_what_is_shipped_is_small_checked_and_described() -> None:
    files = {path.name: path for path in FOLDER.iterdir()}
    described = {"config.json", "README.md", "curves.png"}
    assert set(files) == {"model.safetensors", HEAD, "confidence.json", *described}
    assert files[HEAD].stat().st_size <= 2_500_000
    assert sum(path.stat().st_size for path in files.values()) <= 25_000_000
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files.values())
    digest = hashlib.sha256(files["model.safetensors"].read_bytes()).hexdigest()
    assert digest == json.loads(files["config.json"].read_text())["sha256"]
    assert digest == read(DEFAULT_CONFIG).models[TINY].sha256
    card = files["README.md"].read_text()
    assert "license: apache-2.0" in card and digest in card
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card


def test_a_wheel_has_it_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["app"]
    shipped = {path for pattern in patterns for path in (ROOT / "app").glob(pattern)}
    assert shipped >= set(FOLDER.iterdir())


def test_its_acceptance_head_is_its_own() -> None:
    head = AcceptanceHead.load(FOLDER / HEAD)
    assert (head.about.draft, head.about.target) == (TINY, TARGET)
    assert HEAD in (FOLDER / "README.md").read_text()


@pytest.mark.slow  # the weights are known by their digest
@pytest.mark.model
def test_its_acceptance_head_knows_which_guesses_are_kept(smollm2_gguf: Path) -> None:
    """On drafts behind what the target writes to prompts that nobody learned."""
    found, base = open_checkpoint(FOLDER, smollm2_gguf), open_checkpoint(smollm2_gguf)
    assert isinstance(found.source, DraftFolder)
    tokenizer, target = load_tokenizer(smollm2_gguf), read_net(base)
    ends = frozenset(tokenizer.eos_ids)
    pair = Pair(read_net(found), target, found.source.drafting, ends)
    head, seeded = AcceptanceHead.load(FOLDER / HEAD), torch.Generator().manual_seed(0)
    assert head.about.hidden == found.config.hidden
    prompts = [torch.tensor(tokenizer.chat([{"role": "user", "content": text}])) for text in OWN]
    answers = write(target, prompts, 48, torch.tensor([0.0, 1.0] * 10), ends, seeded)
    parts = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        starts = torch.arange(len(prompt), len(prompt) + len(answer), 4)
        greedy = torch.full_like(starts, number % 2 == 0, dtype=torch.bool)
        text = torch.cat([prompt, answer])
        parts.append(pair.rounds(text, starts, 4, greedy, seeded))
    samples = Samples.joined(parts)
    said, of = ways(head, samples), outcomes(samples)
    scores = {
        measure.__name__: {way: measure(p, of.accepted, of.weight) for way, p in said.items()}
        for measure in (calibration_error, area)
    }
    assert len(samples) > 500
    assert scores["area"]["head"] > 0.65, scores
    assert scores["calibration_error"]["head"] < 0.15, scores


@pytest.mark.slow  # the weights are known by their digest
@pytest.mark.model
def test_it_guesses_what_its_target_writes(tmp_path: Path) -> None:
    """Far more often than its layers did before they were distilled, which was in 1 of 50."""
    figures = tmp_path / "figures.json"
    run("bench", "model", TINY, TARGET, "--tokens", 48, "--json", figures)
    found = json.loads(figures.read_text())
    assert found["acceptance"]["low"] > 0.25
    assert found["acceptance_sampled"]["low"] > 0.33
    trimmed, whole = found["acceptance_trimmed_head"], found["acceptance"]
    assert whole["mean"] - trimmed["mean"] < 0.03
    assert found["acceptance_positions"] > 500


@pytest.mark.model
@pytest.mark.slow
def test_exported_it_is_the_same_model(tmp_path: Path, smollm2_gguf: Path) -> None:
    folder = tmp_path / "exported"
    run("export-model", TINY, folder, *FLEET)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.config.num_hidden_layers == 6
    tokenizer = load_tokenizer(smollm2_gguf)
    decoder = Decoder(*load(FOLDER, smollm2_gguf), "fp32")
    for text in OWN[:3]:
        ids = tokenizer.chat([{"role": "user", "content": text}])
        cache = decoder.kv_memory(2**26).acquire(ids, len(ids))
        assert cache is not None
        with torch.inference_mode():
            ours = decoder.logits(decoder.forward(torch.tensor(ids), [Span(cache, len(ids))]))
            theirs = model(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.model
def test_the_real_model_is_the_target_of_a_run(
    tmp_path: Path, smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, folder = tmp_path / "prompts.jsonl", tmp_path / "run"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in OWN))
    some = ("--texts", 6, "--invented", 0, "--tokens", 160, "--batch", 4, "--answer", 12)
    run("train", "draft", TARGET, folder, "--prompts", prompts, "--kept", "0,29", *some)
    assert "acceptance, sampled, full head: 0." in capsys.readouterr().err
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) >= 3 and losses[-1] < losses[0]
    assert load(folder / "draft", smollm2_gguf)[0].layers == 2
