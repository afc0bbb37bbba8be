"""The acceptance head: its shapes, its file, and what the weight of rejections does to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from app.nets.acceptance_head import EXTRAS, About, AcceptanceHead

WIDE = 12


def head(**fields: Any) -> AcceptanceHead:
    torch.manual_seed(0)
    made = AcceptanceHead(About(WIDE, **fields))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def rows(count: int) -> tuple[Tensor, Tensor]:
    seeded = torch.Generator().manual_seed(1)
    return torch.randn(count, WIDE, generator=seeded), torch.randn(count, EXTRAS, generator=seeded)


def size(made: AcceptanceHead) -> int:
    return sum(parameter.numel() for parameter in made.parameters())


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("extras", [True, False])
def test_one_logit_a_row(depth: int, extras: bool) -> None:
    made = head(depth=depth, extras=extras)
    states, told = rows(5)
    logits = made(states, told if extras else None)
    assert logits.shape == (5,) and logits.dtype == torch.float32
    # A row's result does not depend on what is computed beside it.
    alone = made(states[2:3], told[2:3] if extras else None)
    torch.testing.assert_close(alone, logits[2:3])


def test_blocks_are_separate_unless_they_are_tied() -> None:
    one, tied, separate = head(depth=1), head(depth=3, tied=True), head(depth=3)
    assert size(tied) == size(one)
    assert size(separate) == size(one) + 2 * (WIDE * WIDE + WIDE)
    states, told = rows(4)
    tied.load_state_dict(one.state_dict())
    assert not torch.equal(tied(states, told), one(states, told))
    # Tied, it is the separate one whose blocks are all the same.
    for block in separate.blocks:
        block.load_state_dict(one.blocks[0].state_dict())
    for name in ("told", "output"):
        getattr(separate, name).load_state_dict(getattr(one, name).state_dict())
    torch.testing.assert_close(tied(states, told), separate(states, told))


def test_it_computes_what_specdec_says() -> None:
    made = head(depth=2, extras=False)
    states, _ = rows(3)
    wanted = states
    for block in made.blocks:
        inner = wanted @ block.weight.T + block.bias
        wanted = wanted + inner * torch.sigmoid(inner)
    wanted = wanted @ made.output.weight[0] + made.output.bias
    torch.testing.assert_close(made(states), wanted)


def test_extras_are_heard() -> None:
    states, told = rows(4)
    made = head()
    assert made.extras and not head(extras=False).extras
    for column in range(EXTRAS):
        other = told.clone()
        other[:, column] += 1
        assert not torch.equal(made(states, other), made(states, told))
    with pytest.raises(AssertionError, match="told of q"):
        made(states)


@pytest.mark.parametrize("fields", [{}, {"tied": True}, {"extras": False}, {"depth": 0}])
def test_a_file_is_the_head_that_was_saved(tmp_path: Path, fields: dict[str, Any]) -> None:
    about = {"draft": "small", "target": "large", "sees": "after", "level": 0.6, "mixing": 0.5}
    made = head(rejection_weight=6.0, temperature=1.25, offset=-0.5, **about, **fields)
    made.save(tmp_path / "head.safetensors")
    loaded = AcceptanceHead.load(tmp_path / "head.safetensors")
    assert loaded.about == made.about and loaded.sees == "after"
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    states, told = rows(6)
    given = (states, told) if made.extras else (states,)
    torch.testing.assert_close(loaded(*given), made(*given).detach(), atol=0.02, rtol=0.005)
    with safe_open(tmp_path / "head.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118  no dict
        assert json.loads(file.metadata()["about"])["format"] == "farthing-acceptance-head/1"
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert again.read_bytes() == (tmp_path / "head.safetensors").read_bytes()


def test_the_weight_of_rejections_is_undone() -> None:
    """With P known, the loss that counts rejections w times is least where P comes back."""
    seeded = torch.Generator().manual_seed(2)
    known = torch.rand(64, generator=seeded).clamp(0.02, 0.98)
    weight = 6.0
    made = AcceptanceHead(About(WIDE, rejection_weight=weight))
    logits = torch.zeros(64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        chance = torch.sigmoid(logits)
        each = known * chance.log() + weight * (1 - known) * (1 - chance).log()
        total = -each.sum()
        torch.autograd.backward(total)
        return total

    optimizer.step(loss)
    torch.testing.assert_close(made.probability(logits).detach(), known, atol=1e-3, rtol=1e-3)
    raw = made.biased(logits).detach()
    assert (raw < known).all()
    torch.testing.assert_close(raw, known / (known + weight * (1 - known)), atol=1e-3, rtol=1e-3)
    warm = AcceptanceHead(About(WIDE, rejection_weight=weight, temperature=2.0))
    assert (warm.probability(logits) - 0.5).abs().sum() < (known - 0.5).abs().sum()
    lower = AcceptanceHead(About(WIDE, rejection_weight=weight, offset=-1.0))
    assert (lower.probability(logits) < known).all()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden": 0}, "hidden must be 1 to 65536, not 0"),
        ({"hidden": True}, "hidden must be 1 to 65536, not True"),
        ({"hidden": 65537}, "hidden must be 1 to 65536, not 65537"),
        ({"depth": 17}, "depth must be 0 to 16, not 17"),
        ({"tied": 1}, "tied must be true or false, not 1"),
        ({"sees": "both"}, "sees must be before or after, not 'both'"),
        ({"rejection_weight": 0.0}, "rejection_weight must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"offset": float("inf")}, "offset must be finite"),
        ({"mixing": 1.5}, "mixing must be 0 to 1"),
        ({"level": -0.1}, "level must be 0 to 1"),
        ({"draft": None}, "draft must be a name"),
    ],
)
def test_a_shape_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        About(**{"hidden": WIDE, **fields})


def _about(metadata: dict[str, str], **fields: Any) -> None:
    metadata["about"] = json.dumps({**json.loads(metadata["about"]), **fields})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, said: said.pop("about"), "its metadata must have 'about'"),
        (lambda tensors, said: said.update(about="{"), "is no acceptance head"),
        (lambda tensors, said: said.update(about="[1]"), "its metadata must have 'about'"),
        (lambda tensors, said: _about(said, format="other/1"), "of the format 'farthing-"),
        (lambda tensors, said: _about(said, more=1), "its description must have"),
        (lambda tensors, said: _about(said, sees="both"), "sees must be before or after"),
        (lambda tensors, said: _about(said, hidden=65536), "is float16 .* not of the shape"),
        (lambda tensors, said: _about(said, hidden=10**20), "hidden must be 1 to 65536"),
        (lambda tensors, said: _about(said, depth=2), "do not fit .*blocks.2"),
        (lambda tensors, said: _about(said, extras=False), "do not fit .*told.weight"),
        (lambda tensors, said: tensors.pop("output.bias"), "do not fit .*output.bias"),
        (lambda tensors, said: tensors["output.bias"].fill_(torch.inf), "output.bias has numbers"),
        (
            lambda tensors, said: tensors.update({"output.bias": torch.zeros(1).int()}),
            "output.bias is int32",
        ),
    ],
)
def test_a_file_that_is_no_head_is_named(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "head.safetensors"
    head().save(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
        metadata = dict(file.metadata())
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=f"^{path}: .*{said}"):
        AcceptanceHead.load(path)


def test_what_is_no_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(b"half of it")
    with pytest.raises(ValueError, match=f"^{path}: is no acceptance head"):
        AcceptanceHead.load(path)
    with pytest.raises(FileNotFoundError):
        AcceptanceHead.load(tmp_path / "none.safetensors")
