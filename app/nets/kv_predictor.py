"""Predicts a model's keys and values of a prompt from a cheaper pass over it (KV Prediction)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

FORMAT = "farthing-kv-predictor/1"
_LEVELS = 127  # of int8, on each side of zero

Kind: TypeAlias = Literal["layers", "auxiliary"]
"""What tells of the prompt: the base's own first layers (as in SwiftKV), or another model's KV."""


@dataclass(frozen=True)
class About:
    """A predictor's shape, the model that it is for, and what its pass costs."""

    base: str  # name of the model whose KV it predicts
    shared: str  # fingerprint of that model's embedding
    hidden: int  # width of the base's residual stream
    layers: int  # of the base
    width: int  # of one layer's keys, and of its values: kv_heads * head_dim
    layer_weights: int  # multiplications that one of the base's layers does for a token
    kept: int = 0  # of the base's layers the first so many are run; 0: an auxiliary model is
    auxiliary: str = ""
    auxiliary_width: int = 0  # of a layer's keys, and of its values
    auxiliary_weights: int = 0  # multiplications that all of its layers do for a token
    sources: tuple[int, ...] = ()  # for each of the base's layers the auxiliary's that tells of it
    units: int = 0  # of the small MLP beside the linear map; 0: there is none
    auxiliary_print: str = ""  # what tells the auxiliary from others of its shape

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field."""
        for name, (fits, wanted) in _RULES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not fits(value):
                raise ValueError(f"{name} must be {wanted}, not {value!r}")
        if self.kept >= self.layers:
            raise ValueError(f"kept must be less than layers ({self.layers}), not {self.kept}")
        if (self.kept > 0) == bool(self.auxiliary):
            raise ValueError("kept layers, or an auxiliary model, must be named: one of them")
        if self.auxiliary and len(self.sources) != self.layers:
            raise ValueError(f"sources must be {self.layers} numbers, not {len(self.sources)}")
        if any(a > b for a, b in zip((0, *self.sources), self.sources, strict=False)):
            raise ValueError("sources must not fall from one layer to the next, nor below 0")

    @property
    def kind(self) -> Kind:
        return "layers" if self.kept else "auxiliary"

    @property
    def predicted(self) -> int:
        """Layers whose keys and values are predicted: the last so many."""
        return self.layers - self.kept

    @property
    def share(self) -> float:
        """Multiplications with weights for a predicted token, by those of the base's layers.

        Attention and the head, which a prompt needs for its last token only, are not counted.
        """
        own = self.predicted * 2 * self.width * (self._told_width + self.units)
        own += self.units * self._told_width
        run = self.kept * self.layer_weights + self.auxiliary_weights
        return (run + own) / (self.layers * self.layer_weights)

    @property
    def _told_width(self) -> int:
        return self.hidden if self.kept else self.auxiliary_width


class KVPredictor(nn.Module):
    """KV Prediction's maps (Horton et al. 2024, 2410.08391, section 3): linear, with bias, one for
    each layer's keys and one for its values; beside them, where `about.units`, a small MLP.

    What tells of a token is, by kind, fp32:
    - layers: the residual stream behind the base's `kept` layers, divided by its root mean square,
      `[n, hidden]`; all maps read it.
    - auxiliary: the auxiliary's keys before RoPE and its values, `[n, layers, 2, width]`, of which
      the map of keys reads the source layer's keys, that of values its values.
    """

    def __init__(self, about: About) -> None:
        super().__init__()
        self.about = about
        maps, width, told = about.predicted * 2, about.width, about._told_width
        self.weight = nn.Parameter(torch.zeros(maps, width, told))
        self.bias = nn.Parameter(torch.zeros(maps, width))
        if about.units:
            self.inner = nn.Parameter(torch.zeros(about.units, told))
            self.outer = nn.Parameter(torch.zeros(maps, width, about.units))
        if about.units and about.auxiliary:
            raise ValueError("units: only where the base's own layers tell of the prompt")

    def forward(self, told: Tensor) -> Tensor:
        """Keys before RoPE, and values, fp32 `[n, predicted, 2, width]`; each head's dimensions are
        in Hugging Face's order."""
        about = self.about
        if about.auxiliary:
            rows = told[:, list(about.sources)].flatten(1, 2)  # [n, maps, width]
            made = torch.einsum("nmi,moi->nmo", rows, self.weight) + self.bias
        else:
            made = F.linear(told, self.weight.flatten(0, 1), self.bias.flatten())
            if about.units:
                inner = F.silu(F.linear(told, self.inner))
                made = made + F.linear(inner, self.outer.flatten(0, 1))
        return made.view(len(told), about.predicted, 2, about.width)

    def save(self, path: Path) -> None:
        """Write the file that `load` reads: matrices in int8 with a scale for each row, a quarter
        of their size and no worse for it. Raises OSError."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.named_parameters():
            tensor = parameter.detach().float().cpu()
            if name == "bias":
                tensors[name] = tensor.half()
                continue
            scale = tensor.abs().amax(-1, keepdim=True).clamp_min(1e-12) / _LEVELS
            tensors[name] = (tensor / scale).round().to(torch.int8).contiguous()
            tensors[f"{name}_scale"] = scale.squeeze(-1).contiguous()
        said = {"about": json.dumps({"format": FORMAT, **asdict(self.about)})}
        path.write_bytes(save(tensors, said))

    @classmethod
    def load(cls, path: Path) -> KVPredictor:
        """A predictor on the CPU, in fp32, frozen.

        Raises FileNotFoundError, and ValueError, naming the file, for what is no such predictor.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = _read_about(file.metadata() or {})
                # A width that is not the file's allocates nothing before it is found out.
                with torch.device("meta"):
                    predictor = cls(about)
                names = list(file.keys())
                predictor._fill({name: file.get_tensor(name) for name in names})
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path}: is no KV predictor: {error}") from error
        return predictor.requires_grad_(False).eval()

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError where they are not this shape's."""
        found: dict[str, Tensor] = {}
        parameters = dict(self.named_parameters())
        scales = {f"{name}_scale" for name in parameters if name != "bias"}
        if tensors.keys() != parameters.keys() | scales:
            names = ", ".join(sorted(tensors.keys() ^ (parameters.keys() | scales)))
            raise ValueError(f"its tensors do not fit its description: {names}")
        for name, parameter in parameters.items():
            tensor = tensors[name]
            if tensor.shape != parameter.shape:
                shapes = f"{list(tensor.shape)}, not {list(parameter.shape)}"
                raise ValueError(f"{name} has the shape {shapes}")
            found[name] = tensor.float()
            if name != "bias":
                scale = tensors[f"{name}_scale"]
                if tensor.dtype != torch.int8 or scale.shape != tensor.shape[:-1]:
                    raise ValueError(f"{name} must be int8, with a scale for each row")
                found[name] = found[name] * scale.float()[..., None]
            if not found[name].isfinite().all():
                raise ValueError(f"{name} has numbers that are not finite")
        self.load_state_dict(found, assign=True)


def _read_about(metadata: Mapping[str, str]) -> About:
    said = json.loads(metadata.get("about", "null"))
    if not isinstance(said, dict) or said.pop("format", None) != FORMAT:
        raise ValueError(f"its metadata must have 'about', of the format {FORMAT!r}")
    names = {field.name for field in fields(About)}
    said.setdefault("auxiliary_print", "")  # files that are older than it need none
    if said.keys() != names:
        raise ValueError(f"its description must have {', '.join(sorted(names))}")
    said["sources"] = tuple(said["sources"])
    return About(**said)


def even_sources(layers: int, auxiliary: int) -> tuple[int, ...]:
    """Which of so many auxiliary layers tells of each of the base's: in their order, each equally
    often; where that does not come out even, the first ones once more (as in the paper's code)."""
    if not 1 <= auxiliary <= layers:
        raise ValueError(f"{auxiliary} auxiliary layers cannot tell of {layers}")
    each, more = divmod(layers, auxiliary)
    return tuple(at for at in range(auxiliary) for _ in range(each + (at < more)))


_COUNT: tuple[Callable[[int], bool], str] = (lambda value: 1 <= value <= 2**40, "at least 1")
_SOME: tuple[Callable[[int], bool], str] = (lambda value: 0 <= value <= 2**40, "0 or more")
_RULES: dict[str, tuple[Callable[[int], bool], str]] = {
    "hidden": _COUNT,
    "layers": _COUNT,
    "width": _COUNT,
    "layer_weights": _COUNT,
    "kept": _SOME,
    "auxiliary_width": _SOME,
    "auxiliary_weights": _SOME,
    "units": _SOME,
}


def normed(rows: Tensor, epsilon: float) -> Tensor:
    """A residual stream `[n, hidden]`, divided by its root mean square: what `layers` are told."""
    return rows / torch.sqrt(rows.square().mean(-1, keepdim=True) + epsilon)
