"""KV predictors: their shapes, their costs, their files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from app.nets.kv_predictor import About, KVPredictor, even_sources, normed

LAYERS = About("base", "f", hidden=16, layers=6, width=8, layer_weights=1000, kept=4)
OTHER = replace(
    LAYERS,
    kept=0,
    auxiliary="tiny",
    auxiliary_width=4,
    auxiliary_weights=500,
    sources=(0, 0, 0, 1, 1, 1),
)


def filled(about: About) -> KVPredictor:
    torch.manual_seed(0)
    predictor = KVPredictor(about)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter)
    return predictor


def test_each_layer_has_a_map_of_keys_and_one_of_values() -> None:
    predictor, told = filled(LAYERS), torch.randn(5, 16)
    made = predictor(told)
    assert made.shape == (5, 2, 2, 8)
    values = told @ predictor.weight[3].T + predictor.bias[3]
    torch.testing.assert_close(made[:, 1, 1], values)


def test_keys_are_told_by_keys_of_the_source_and_values_by_its_values() -> None:
    predictor, told = filled(OTHER), torch.randn(5, 2, 2, 4)
    made = predictor(told)
    assert made.shape == (5, 6, 2, 8)
    keys = told[:, 1, 0] @ predictor.weight[8].T + predictor.bias[8]
    torch.testing.assert_close(made[:, 4, 0], keys)
    values = told[:, 0, 1] @ predictor.weight[5].T + predictor.bias[5]
    torch.testing.assert_close(made[:, 2, 1], values)


def test_an_mlp_beside_the_maps() -> None:
    predictor, told = filled(replace(LAYERS, units=3)), torch.randn(5, 16)
    inner = torch.nn.functional.silu(told @ predictor.inner.T)
    linear = told @ predictor.weight[0].T + predictor.bias[0]
    torch.testing.assert_close(
        predictor(told)[:, 0, 0], linear + inner @ predictor.outer[0].T, rtol=1e-4, atol=1e-4
    )


def test_what_it_costs() -> None:
    # 4 of 6 layers, and 2 layers' keys and values, 8 wide, of 16 numbers.
    assert LAYERS.share == pytest.approx((4000 + 2 * 2 * 8 * 16) / 6000)
    assert OTHER.share == pytest.approx((500 + 6 * 2 * 8 * 4) / 6000)
    mlp = 2 * 2 * 8 * 3 + 3 * 16
    assert replace(LAYERS, units=3).share == pytest.approx(LAYERS.share + mlp / 6000)


@pytest.mark.parametrize("about", [LAYERS, OTHER, replace(LAYERS, units=3)])
def test_a_file_holds_all_of_it(about: About, tmp_path: Path) -> None:
    predictor = filled(about)
    predictor.save(tmp_path / "p")
    found = KVPredictor.load(tmp_path / "p")
    assert found.about == about
    for name, tensor in predictor.named_parameters():
        least = 0.002 if name == "bias" else float(tensor.detach().abs().amax()) / 250
        torch.testing.assert_close(dict(found.named_parameters())[name], tensor, atol=least, rtol=0)
    predictor.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "p").read_bytes()


def test_a_file_of_before_there_were_prints(tmp_path: Path) -> None:
    filled(LAYERS).save(tmp_path / "p")
    with safe_open(tmp_path / "p", framework="pt") as file:
        said = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    del said["auxiliary_print"]
    save_file(tensors, tmp_path / "p", {"about": json.dumps(said)})
    assert KVPredictor.load(tmp_path / "p").about == LAYERS
    del said["units"]
    save_file(tensors, tmp_path / "p", {"about": json.dumps(said)})
    with pytest.raises(ValueError, match="its description must have auxiliary, auxiliary_print"):
        KVPredictor.load(tmp_path / "p")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kept": 6}, "kept must be less than layers"),
        ({"kept": 0}, "kept layers, or an auxiliary model"),
        ({"auxiliary": "tiny"}, "kept layers, or an auxiliary model"),
        ({"hidden": 0}, "hidden must be at least 1, not 0"),
        ({"width": True}, "width must be at least 1, not True"),
        ({"units": -1}, "units must be 0 or more"),
    ],
)
def test_shapes_that_cannot_be(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(LAYERS, **change)


def test_sources_are_monotone_and_one_for_each_layer() -> None:
    with pytest.raises(ValueError, match="sources must be 6 numbers, not 1"):
        replace(OTHER, sources=(0,))
    with pytest.raises(ValueError, match="must not fall"):
        replace(OTHER, sources=(0, 0, 1, 0, 1, 1))
    with pytest.raises(ValueError, match="nor below 0"):
        replace(OTHER, sources=(-1, 0, 0, 0, 1, 1))


def test_the_paper_s_map_of_layers() -> None:
    assert even_sources(28, 16) == (*(at for at in range(12) for _ in range(2)), 12, 13, 14, 15)
    assert even_sources(30, 6) == tuple(at for at in range(6) for _ in range(5))
    with pytest.raises(ValueError, match="7 auxiliary layers cannot tell of 6"):
        even_sources(6, 7)


def broken(path: Path, **changes: torch.Tensor) -> Path:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
        metadata = file.metadata()
    save_file({**tensors, **changes}, path, metadata)
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight": torch.zeros(4, 8, 15, dtype=torch.int8)}, r"weight has the shape \[4, 8, 15\]"),
        ({"weight": torch.zeros(4, 8, 16)}, "weight must be int8"),
        ({"weight_scale": torch.zeros(4, 7)}, "weight must be int8, with a scale for each row"),
        ({"bias": torch.full((4, 8), torch.inf)}, "bias has numbers that are not finite"),
        ({"more": torch.zeros(1)}, "do not fit its description: more"),
    ],
)
def test_files_that_are_none(changes: dict[str, torch.Tensor], said: str, tmp_path: Path) -> None:
    filled(LAYERS).save(tmp_path / "p")
    with pytest.raises(ValueError, match=f"p: is no KV predictor: .*{said}"):
        KVPredictor.load(broken(tmp_path / "p", **changes))


def test_a_file_of_something_else(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "p")
    with pytest.raises(ValueError, match="is no KV predictor: its metadata"):
        KVPredictor.load(tmp_path / "p")
    (tmp_path / "q").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no KV predictor"):
        KVPredictor.load(tmp_path / "q")
    with pytest.raises(FileNotFoundError):
        KVPredictor.load(tmp_path / "r")


def test_normed_rows_have_a_mean_square_of_one() -> None:
    assert normed(torch.randn(3, 50) * 7, 0.0).square().mean(1).tolist() == pytest.approx([1] * 3)
