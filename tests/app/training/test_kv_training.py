"""Trainings of KV predictors: states, tuning, and whole runs of the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.cli import main
from app.engines.embedded.auxiliary import auxiliary_print
from app.engines.embedded.weights import open_checkpoint
from app.nets.kv_predictor import About, KVPredictor
from app.training.kv_cases import Case, behind_predicted, cases
from app.training.kv_examples import Template, examples
from app.training.kv_fits import AuxiliaryFits
from app.training.kv_recipe import KVRecipe
from app.training.kv_states import keys_and_values, packed, states
from app.training.kv_tuning import Tuning, losses
from app.training.net import Layer, Net, read_net
from tests.app.engines.embedded import reference
from tests.app.engines.embedded.tiny import write_model

IDS = torch.randint(97, (40,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Net:
    folder = tmp_path_factory.mktemp("model")
    reference.qwen2(num_hidden_layers=4).save_pretrained(folder)
    return read_net(open_checkpoint(folder)).requires_grad_(False)


class True_(KVPredictor):
    """Says what it is given to say."""

    said: torch.Tensor

    def forward(self, told: torch.Tensor) -> torch.Tensor:
        return self.said[: len(told), self.about.kept :]


def about(net: Net, kept: int) -> About:
    config = net.config
    width = config.kv_heads * config.head_dim
    return About("m", "", config.hidden, config.layers, width, 1000, kept)


@pytest.mark.parametrize("kept", [1, 3])
def test_behind_true_keys_and_values_the_base_is_itself(net: Net, kept: int) -> None:
    predictor = True_(about(net, kept))
    _, predictor.said = states(net, IDS, [])
    found = case(net, kept)
    hidden, made = behind_predicted(net, predictor, found)
    assert found.true is not None
    torch.testing.assert_close(made, found.true.float(), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(hidden, found.exact, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hidden, net(IDS[None])[0, 25:39], atol=1e-4, rtol=1e-4)
    told = losses(net, predictor, found)
    assert float(told.divergence) < 1e-5 and told.agreed == 1.0
    logs = torch.log_softmax(net(IDS[None])[0, 25:39] @ net.head.T, -1)
    entropy = -logs[range(14), IDS[26:]].mean()
    torch.testing.assert_close(told.entropy, entropy, atol=1e-4, rtol=1e-4)
    predictor.said = predictor.said + 1
    other, _ = behind_predicted(net, predictor, found)
    assert not torch.allclose(other, hidden, atol=1e-2)
    changed = losses(net, predictor, found)
    assert changed.divergence > told.divergence + 1e-3
    assert changed.distance is not None and float(changed.distance) == pytest.approx(1, abs=1e-2)


def test_the_first_tokens_are_not_predicted(net: Net) -> None:
    predictor = True_(about(net, 2))
    _, said = states(net, IDS, [])
    predictor.said = said.clone()
    predictor.said[:3] = 9.0
    spared, hit = (behind_predicted(net, predictor, case(net, 2, first))[0] for first in (3, 2))
    torch.testing.assert_close(spared, case(net, 2).exact, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(hit, spared, atol=1e-2)


def case(net: Net, kept: int, first: int = 0, auxiliary: Net | None = None) -> Case:
    """Of a prompt of 26 tokens and 14 behind it."""
    return cases(net, (IDS[:26], IDS[26:]), [kept], auxiliary, first, True)[kept]


def test_states_are_those_that_projections_read(net: Net) -> None:
    told, made = states(net, IDS, [2])
    layer = net.layers[2]
    keys = torch.nn.functional.linear(told[2] * layer.attention_norm, layer.k, layer.k_bias)
    torch.testing.assert_close(made[:, 2, 0], keys, atol=1e-4, rtol=1e-4)


def drawn_cases(net: Net, kept: int, auxiliary: Net | None = None) -> list[Case]:
    pairs = [(IDS[at : at + 20], IDS[at + 20 : at + 28]) for at in range(8)]
    return [cases(net, pair, [kept], auxiliary, 0, True)[kept] for pair in pairs]


def summed(net: Net, predictor: KVPredictor, drawn: list[Case], recipe: KVRecipe) -> float:
    with torch.no_grad():
        return sum(float(losses(net, predictor, each).weighted(recipe)) for each in drawn)


def test_tuning_goes_down_and_goes_on(net: Net, tmp_path: Path) -> None:
    recipe = KVRecipe(steps=20, batch=2, learning_rate=3e-2, answer=8, consistency=1.0)
    drawn = drawn_cases(net, 2)
    whole, halved = (KVPredictor(about(net, 2)) for _ in range(2))
    before = summed(net, whole, drawn, recipe)
    run = Tuning(net, whole, drawn, recipe)
    for _ in range(20):
        run.advance()
    assert summed(net, whole, drawn, recipe) < before - 0.1
    first = Tuning(net, halved, drawn, recipe)
    for _ in range(10):
        first.advance()
    first.save(tmp_path / "state", "it")
    again = KVPredictor(about(net, 2))
    second = Tuning(net, again, drawn, recipe)
    second.restore(tmp_path / "state", "it")
    assert second.step == 10
    for _ in range(10):
        second.advance()
    torch.testing.assert_close(again.weight, whole.weight)
    with pytest.raises(ValueError, match="other options or inputs"):
        second.restore(tmp_path / "state", "other")


def test_short_texts_are_put_together() -> None:
    opening, closing = torch.tensor([1, 2]), torch.tensor([9])
    texts = [torch.tensor([1, 2, *said, 9]) for said in ([3] * 4, [4] * 3, [5] * 30, [6])]
    found = [text.tolist() for text in packed(texts, opening, closing, 12)]
    assert found == [[1, 2, *[3] * 4, *[4] * 3, 9], [1, 2, *[5] * 9, 9], [1, 2, 6, 9]]


def test_examples_are_copies_questions_and_what_comes_next() -> None:
    template = Template(torch.tensor([1, 2]), torch.tensor([9, 8]))
    chats = [template.asked(torch.arange(100 * n, 100 * n + 60)) for n in range(1, 5)]
    answered = [(template.asked(torch.arange(50, 60)), torch.arange(70, 90))]
    found = examples([*chats, chats[0][:10]], answered, template, 14, 60, 3)
    kinds = {"copied": 0, "asked": 0, "next": 0}
    for prompt, behind in found:
        assert len(behind) == 14 and prompt[:2].tolist() == [1, 2]
        said = prompt.tolist()
        if behind[0] == 70:
            kinds["asked"] += 1
            assert said[-2:] == [9, 8] and len(prompt) == 64
            assert set(range(50, 60)) < set(said)
        elif said[-2:] == [9, 8]:
            kinds["copied"] += 1
            assert set(behind.tolist()) < set(said[2:-2])
        else:
            kinds["next"] += 1
            assert behind[0] == said[-1] + 1
    assert min(kinds.values()) >= 6 and kinds["copied"] >= 20
    again = examples([*chats, chats[0][:10]], answered, template, 14, 60, 3)
    assert all(
        torch.equal(a, b)
        for x, y in zip(found, again, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert examples([chats[0][:10]], answered, template, 14, 60, 3) == []


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    lines = [{"prompt": f"What is {n} and {n * n}?", "answer": "So much."} for n in range(64)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def command(*asked: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(list(asked))
    return ended.value.code


def test_a_run_of_the_command(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = write_model(tmp_path / "model"), tmp_path / "run"
    asked = ["train", "kv-predictor", str(model), str(folder), "--prompts", str(prompts)]
    asked += ["--kept", "1", "--longest", "128", "--steps", "2", "--batch", "1", "--answer", "8"]
    assert command(*asked) == 0
    shown = capsys.readouterr()
    assert shown.out.strip().endswith("kv_predictor-1.safetensors")
    predictor = KVPredictor.load(folder / "kv_predictor-1.safetensors")
    assert predictor.about.base == "model" and predictor.about.kept == 1
    report = json.loads((folder / "report.json").read_text())["predictors"]
    found = report["kv_predictor-1.safetensors"]
    assert found["closed_form"]["explained"]["1"]["values"] > 0.99  # nothing comes between
    assert found["tuned"]["nats"] <= found["closed_form"]["nats"] + 0.05
    made = (folder / "kv_predictor-1.safetensors").read_bytes()
    assert command(*asked[:4]) == 0  # all is there already
    assert (folder / "kv_predictor-1.safetensors").read_bytes() == made
    assert command(*asked[:4], "--ridge", "1") != 0
    assert "this run has ridge 0.001, not 1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kept": (3, 3)}, "kept must be numbers of layers, each once"),
        ({"kept": (0,)}, "kept must be numbers of layers"),
        ({"kept": ()}, "kept layers, or an auxiliary model, must be named"),
        ({"auxiliary": "small"}, "kept layers, or an auxiliary model, must be named"),
        ({"kept": (), "auxiliary": "small", "units": 8}, "units: only where the base's own"),
        ({"units": 8}, "units: an MLP learns in steps"),
        ({"steps": 1, "divergence": 0.0}, "tuning needs a loss"),
        ({"ridge": -1.0}, "ridge must be 0 to 1e"),
        ({"tokens": 0}, "tokens must be at least 1"),
    ],
)
def test_recipes_that_cannot_be(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KVRecipe.from_dict({**KVRecipe().to_dict(), **change})


def told_by_itself(net: Net) -> About:
    """The base is its own auxiliary."""
    plain = replace(about(net, 1), kept=0, auxiliary="m", sources=tuple(range(net.config.layers)))
    return replace(plain, auxiliary_width=plain.width, auxiliary_weights=4000)


def test_told_by_itself_the_base_is_itself(net: Net) -> None:
    predictor = KVPredictor(told_by_itself(net))
    with torch.no_grad():
        predictor.weight += torch.eye(predictor.about.width)
    found = case(net, 0, auxiliary=net)
    hidden, _ = behind_predicted(net, predictor, found)
    torch.testing.assert_close(hidden, found.exact, atol=1e-2, rtol=1e-2)


def test_tuning_behind_an_auxiliary_goes_down_and_leaves_it(net: Net) -> None:
    recipe = KVRecipe(
        kept=(), auxiliary="m", steps=20, batch=2, learning_rate=3e-2, answer=8, consistency=1.0
    )
    drawn = drawn_cases(net, 0, net)
    predictor, before = KVPredictor(told_by_itself(net)), [p.clone() for p in net.parameters()]
    start = summed(net, predictor, drawn, recipe)
    run = Tuning(net, predictor, drawn, recipe)
    for _ in range(20):
        run.advance()
    assert summed(net, predictor, drawn, recipe) < start - 0.1
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def small_of(net: Net, layers: int) -> Net:
    """Its first layers."""
    kept = [layer for layer in net.layers[:layers] if isinstance(layer, Layer)]
    return Net(net.config, kept, net.embedding, net.head, net.norm, net.frequencies)


def test_each_layer_is_fitted_to_what_its_source_says(net: Net) -> None:
    """The source layers themselves come out as they are; the others as least squares would say."""
    fits = AuxiliaryFits(("m", "f"), net, ("small", "p"), small_of(net, 2))
    found = fits.abouts["small"]
    assert (found.sources, found.auxiliary_print) == ((0, 0, 1, 1), "p")
    assert found.auxiliary_weights == 2 * found.layer_weights
    sums, texts = fits.sums(), torch.randint(97, (3, 60), generator=torch.Generator())
    for text in texts:
        fits.add(sums, text)
    assert fits.tokens("small", sums) == 180
    maps = fits.maps("small", sums, 1e-9)
    each = fits.explained("small", sums, maps)
    width = found.width
    for at in (0, 1):  # layer 0 by layer 0
        torch.testing.assert_close(maps[at, :, :-1].float(), torch.eye(width), atol=0.01, rtol=0)
        assert each[at] > 0.9999
    told = torch.cat([keys_and_values(net, text) for text in texts])
    for layer, part in ((1, 0), (2, 1), (3, 0)):
        x = torch.cat([told[:, found.sources[layer], part], torch.ones(180, 1)], 1).double()
        y = told[:, layer, part].double()
        wanted = torch.linalg.lstsq(x, y).solution.T
        at = 2 * layer + part
        torch.testing.assert_close(x @ maps[at].T, x @ wanted.T, atol=0.02, rtol=0.02)
        left = (y - x @ maps[at].T).square().sum() / (y - y.mean(0)).square().sum()
        assert each[at] == pytest.approx(1 - float(left), abs=1e-4)


def test_a_run_with_an_auxiliary(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, small, folder = tmp_path / "model", tmp_path / "small", tmp_path / "run"
    for path in (model, small):  # the same, so that all can be told
        write_model(path)
    asked = ["train", "kv-predictor", str(model), str(folder), "--auxiliary", str(small)]
    first = ["--prompts", str(prompts), "--longest", "128", "--steps", "2", "--batch", "1"]
    assert command(*asked, *first, "--answer", "8") == 0
    assert capsys.readouterr().out.strip().endswith("kv_predictor-small.safetensors")
    path = folder / "kv_predictor-small.safetensors"
    predictor = KVPredictor.load(path)
    assert predictor.about.kind == "auxiliary" and predictor.about.sources == (0, 1)
    assert predictor.about.auxiliary_print == auxiliary_print(open_checkpoint(small))
    found = json.loads((folder / "report.json").read_text())["predictors"][path.name]
    for layer in ("0", "1"):
        assert min(found["closed_form"]["explained"][layer].values()) > 0.99
    assert found["tuned"]["nats"] <= found["closed_form"]["nats"] + 0.05
    made = path.read_bytes()
    assert command(*asked) == 0  # all is there already
    assert path.read_bytes() == made
    capsys.readouterr()
    assert command(*asked[:4]) != 0
    assert "--auxiliary small to go on" in " ".join(capsys.readouterr().err.split())
    assert command(*asked[:5], str(model)) != 0
    assert "this run has auxiliary 'small', not 'model'" in capsys.readouterr().err
    # Of the same name, with other weights: what was summed is not gone on with.
    tensors = load_file(small / "model.safetensors")
    tensors["model.layers.0.self_attn.v_proj.weight"] *= 2
    save_file(tensors, small / "model.safetensors")
    assert command(*asked) != 0
    assert "was made from other texts, models" in " ".join(capsys.readouterr().err.split())


def test_an_auxiliary_of_another_tokenizer(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, small = write_model(tmp_path / "model"), write_model(tmp_path / "small")
    read = json.loads((small / "tokenizer.json").read_text())
    vocabulary = read["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (small / "tokenizer.json").write_text(json.dumps(read))
    asked = ["train", "kv-predictor", str(model), str(tmp_path / "run"), "--prompts", str(prompts)]
    assert command(*asked, "--auxiliary", str(small)) != 0
    assert "small and model have different tokenizers" in " ".join(capsys.readouterr().err.split())
