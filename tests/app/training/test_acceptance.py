"""A head's training: what it learns, that it goes on where it was, and what it reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engines.embedded.draft_folder import fingerprint
from app.engines.embedded.weights import open_checkpoint
from app.nets.acceptance_head import AcceptanceHead
from app.training.acceptance import HeadRecipe, HeadRun, calibrated, logits_of, weighted_loss
from app.training.acceptance_report import outcomes, ways
from app.training.acceptance_samples import Samples
from app.training.acceptance_session import reuse
from app.training.answers import Interrupted
from app.training.calibration import area, calibration_error
from app.training.inputs import Texts
from tests.app.engines.embedded.tiny import write_model
from tests.app.training.heads import head_session
from tests.app.training.runs import Watched, session, texts

WIDE = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def draft(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return session(tmp_path_factory.mktemp("draft"), model, tokens=100, source="target").train()


def known_samples(count: int, seed: int, shift: float = 0.0) -> tuple[Samples, torch.Tensor]:
    """Guesses whose chance is a function of the state and of what is told of q, and that chance."""
    seeded = torch.Generator().manual_seed(seed)
    states = torch.randn(count, WIDE, generator=seeded)
    extras = torch.randn(count, 3, generator=seeded)
    chance = torch.sigmoid(2 * states[:, 0] * states[:, 1] + extras[:, 0] + shift)
    drawn = (torch.rand(count, generator=seeded) < chance).float()
    text = torch.arange(count) // 20
    before, after = states.bfloat16(), torch.zeros(count, WIDE).bfloat16()
    return Samples(before, after, extras, drawn, torch.ones(count), text), chance


def learned(samples: Samples, **fields: Any) -> AcceptanceHead:
    recipe = HeadRecipe(**{"epochs": 30, "batch": 256, "learning_rate": 1e-2, **fields})
    head = AcceptanceHead(recipe.about(WIDE, "small", "large"))
    run = HeadRun(head, samples, recipe)
    while run.step < run.steps:
        run.advance()
    return head


@pytest.mark.parametrize("weight", [1.0, 6.0])
def test_what_it_says_is_how_often_guesses_are_kept(weight: float) -> None:
    samples, _ = known_samples(4000, 0)
    head = learned(samples, depth=1, rejection_weight=weight)
    fresh, chance = known_samples(4000, 1)
    found, of = ways(head, fresh), outcomes(fresh)
    truth = chance.double().numpy()
    assert calibration_error(found["head"], of.accepted, of.weight) < 0.04
    assert abs(found["head"] - truth).mean() < 0.08
    raw = calibration_error(found["raw head"], of.accepted, of.weight)
    assert raw < 0.04 if weight == 1 else raw > 0.2
    best = area(truth, of.accepted, of.weight)
    assert area(found["head"], of.accepted, of.weight) > best - 0.03


def test_it_hears_of_the_state_and_of_q() -> None:
    samples, _ = known_samples(4000, 0)
    fresh, _ = known_samples(4000, 1)
    of = outcomes(fresh)
    areas = []
    for fields in ({"depth": 1}, {"depth": 1, "extras": False}, {"depth": 0}, {"sees": "after"}):
        said = ways(learned(samples, **fields), fresh)["head"]
        areas.append(area(said, of.accepted, of.weight))
    whole, stateless, straight, unseen = areas
    # Here the state's part is a product of two of its numbers: nothing straight.
    assert whole > max(stateless, straight, unseen) + 0.03


def test_calibration_makes_up_for_texts_that_are_unlike() -> None:
    samples, _ = known_samples(4000, 0)
    head = learned(samples, depth=1)
    other, _ = known_samples(4000, 1, shift=-1.0)
    fresh, _ = known_samples(4000, 2, shift=-1.0)
    of = outcomes(fresh)
    before = calibration_error(ways(head, fresh)["head"], of.accepted, of.weight)
    head.about = calibrated(head, other)
    after = calibration_error(ways(head, fresh)["head"], of.accepted, of.weight)
    assert before > 0.1 and after < 0.03
    assert head.about.offset == pytest.approx(-1.0, abs=0.3)


def test_a_head_that_tells_nothing_can_be_calibrated_too() -> None:
    samples, _ = known_samples(400, 0)
    head = AcceptanceHead(HeadRecipe(depth=0).about(WIDE, "", ""))
    head.about = calibrated(head, samples)
    said = head.probability(logits_of(head, samples))
    assert float(said[0]) == pytest.approx(float(samples.accepted.mean()), abs=0.01)


def test_what_is_never_reached_is_not_learned() -> None:
    logits = torch.tensor([0.3, 5.0])
    kept, weight = torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0])
    alone = weighted_loss(logits[:1], kept[:1], weight[:1], 6.0)
    torch.testing.assert_close(weighted_loss(logits, kept, weight, 6.0), alone)


def test_the_loss_is_that_of_specdec() -> None:
    said, kept = torch.tensor([0.2, 0.7, 0.9]), torch.tensor([1.0, 0.3, 0.0])
    each = kept * said.log() + 6 * (1 - kept) * (1 - said).log()
    wanted = -each.sum() / (kept + 6 * (1 - kept)).sum()
    found = weighted_loss(torch.logit(said), kept, torch.ones(3), 6.0)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"made": "rounds", "sees": "after"},
        {"mixing": 1.0, "extras": False},
        {"tied": True, "depth": 3, "rejection_weight": 1.0},
    ],
)
def test_a_training_from_prompts_to_a_file(
    model: Path, draft: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    watch = Watched()
    path = head_session(tmp_path, model, draft, watch, **changed).train()
    head = AcceptanceHead.load(path)
    assert (head.about.draft, head.about.target, head.about.hidden) == ("small", "tiny", 64)
    for name in ("sees", "extras", "tied", "rejection_weight"):
        assert getattr(head.about, name) == changed.get(name, getattr(HeadRecipe(), name))
    assert head.about.mixing == (1.0 if "made" in changed else changed.get("mixing", 0.15))
    losses = [float(line.split()[-1]) for line in watch.said if line.startswith("step")]
    assert losses
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["held_out"]) == {"held-sampled", "held-greedy"}
    found = report["held_out"]["held-sampled"]
    assert {"raw head", "head", "q of the guess", "1 - sqrt(0.2 H)"} < set(found)
    assert 0 <= found["head"]["ece"]["low"] <= found["head"]["ece"]["high"] <= 1
    assert set(found["speed"]) == {"head", "q of the guess", "1 - sqrt(0.2 H)", "fixed"}


def test_stopped_and_gone_on_with_it_is_the_same_run(
    model: Path, draft: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    head_session(whole, model, draft).train()
    for after in (1, 2):
        with pytest.raises(Interrupted, match="goes on from here"):
            head_session(parts, model, draft, Watched(stop_after=after)).train()
    watch = Watched()
    head_session(parts, model, draft, watch).train()
    assert "going on at step 3" in watch.said[0]
    for name in ("acceptance_head.safetensors", "report.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_stopped_while_it_reads(model: Path, draft: Path, tmp_path: Path) -> None:
    class Hasty(Watched):
        @property
        def stopping(self) -> bool:
            return any(what == "reading: learned" for what, _, _ in self.done)

    with pytest.raises(Interrupted, match="while samples were made"):
        head_session(tmp_path, model, draft, Hasty(), texts=40).train()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "samples").iterdir()}
    assert {path.name for path in made} > {"learned-0000.safetensors"}
    head_session(tmp_path, model, draft, texts=40).train()
    assert all(path.stat().st_mtime_ns == then for path, then in made.items())


def test_samples_are_made_once(model: Path, draft: Path, tmp_path: Path) -> None:
    head_session(tmp_path, model, draft).train()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "samples").iterdir()}
    (tmp_path / "head_state.safetensors").unlink()
    # Another head of the same samples.
    head_session(tmp_path, model, draft, depth=2, rejection_weight=1.0).train()
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (tmp_path / "head_state.safetensors").unlink()
    head_session(tmp_path, model, draft, mixing=0.5).train()
    changed = {path.name for path, then in before.items() if path.stat().st_mtime_ns != then}
    assert changed == {"learned-0000.safetensors"}


def test_another_recipe_does_not_go_on_with_it(model: Path, draft: Path, tmp_path: Path) -> None:
    head_session(tmp_path, model, draft).train()
    with pytest.raises(ValueError, match="other options or inputs"):
        head_session(tmp_path, model, draft, depth=2).train()


def test_another_draft_has_other_samples(model: Path, draft: Path, tmp_path: Path) -> None:
    head_session(tmp_path, model, draft).train()
    before = (tmp_path / "samples" / "learned-0000.safetensors").read_bytes()
    (tmp_path / "head_state.safetensors").unlink()
    other = session(tmp_path / "draft", model, tokens=100, source="target", seed=4).train()
    head_session(tmp_path, model, other).train()
    assert (tmp_path / "samples" / "learned-0000.safetensors").read_bytes() != before


def test_texts_of_another_training(model: Path, draft: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    session(first, model, tokens=100, source="target").train()
    reuse(first, second)
    head_session(second, model, draft).train()
    assert not (second / "texts").exists()
    third = tmp_path / "third"
    reuse(second, third)
    names = sorted(path.name for path in (second / "inputs").iterdir())
    assert names == sorted(path.name for path in (third / "inputs").iterdir())
    # What was reused is what was written there, but for the states kept beside it.
    head_session(third, model, draft).train()
    path = "acceptance_head.safetensors"
    assert (third / path).read_bytes() == (second / path).read_bytes()


def test_texts_that_are_not_there(tmp_path: Path, model: Path) -> None:
    with pytest.raises(FileNotFoundError):
        reuse(tmp_path / "none", tmp_path / "run")
    session(tmp_path / "begun", model)
    with pytest.raises(FileNotFoundError, match="has no texts that its target wrote"):
        reuse(tmp_path / "begun", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_texts_without_an_answer_are_left_out(model: Path, draft: Path, tmp_path: Path) -> None:
    answered = texts(5, 0, 1, answers=True).rows()
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = [(prompt, nothing, group) for prompt, _, group in answered]
    some, none = tmp_path / "some", tmp_path / "none"
    trained = {folder: head_session(folder, model, draft) for folder in (some, none)}
    for folder, rows in ((some, [empty[0], *answered]), (none, empty)):
        Texts.of(rows, ["one", "two"]).save(folder / "inputs" / "answers.safetensors")
    AcceptanceHead.load(trained[some].train())
    with pytest.raises(ValueError, match="no text of learned has an answer"):
        trained[none].train()


@pytest.mark.parametrize("count", [1, 2])
def test_one_held_out_text_is_too_few(model: Path, draft: Path, tmp_path: Path, count: int) -> None:
    begun = head_session(tmp_path, model, draft)
    texts(count, 0, 2).save(tmp_path / "inputs" / "held.safetensors")
    if count == 2:
        assert begun.train().exists()
        return
    with pytest.raises(ValueError, match="too few held-out texts with answers"):
        begun.train()
    assert not list((tmp_path / "samples").glob("learned-*"))  # before anything was learned


def test_another_targets_inputs(model: Path, draft: Path, tmp_path: Path) -> None:
    head_session(tmp_path / "run", model, draft)
    other = write_model(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.embed_tokens.weight"] += 1
    save_file(tensors, other / "model.safetensors")
    about = tmp_path / "run" / "inputs" / "about.json"
    said = json.loads(about.read_text())
    about.write_text(json.dumps(said | {"shared": fingerprint(open_checkpoint(other))}))
    with pytest.raises(ValueError, match="was made for tiny"):
        head_session(tmp_path / "run", model, draft)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depth", 17),
        ("mixing", 1.5),
        ("rejection_weight", 0.0),
        ("sees", "both"),
        ("made", "up"),
        ("texts", 0),
        ("learning_rate", 0.0),
        ("cost", -1.0),
    ],
)
def test_a_bad_recipe_names_the_option(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        HeadRecipe(**{name: value})
    with pytest.raises(ValueError, match="no recipe of an acceptance head"):
        HeadRecipe.from_dict({"colour": 1})


def test_a_head_that_sees_what_is_never_read_cannot_learn() -> None:
    with pytest.raises(ValueError, match="mixing must be below 1 where sees is after"):
        HeadRecipe(sees="after", mixing=1.0)
    HeadRecipe(sees="after", mixing=1.0, made="rounds")
