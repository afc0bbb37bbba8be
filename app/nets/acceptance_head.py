"""The acceptance head: how likely it is that a model keeps a token which its draft guessed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

FORMAT = "farthing-acceptance-head/1"
HEAD = "acceptance_head.safetensors"
"""What the file is called in the folder of the draft that it is for."""
EXTRAS = 3  # log q of the guess in nats, entropy of q in nats, 1 where the guess is greedy

Sees: TypeAlias = Literal["before", "after"]
"""Which of the draft's states tells of a guess: the one that it was drawn from, or the one after
it was fed (SpecDec++), which is known only once the next guess is being drawn."""


@dataclass(frozen=True)
class About:
    """A head's shape, the pair of models that it is for, and how it was trained."""

    hidden: int  # width of the draft's states
    depth: int = 3  # residual blocks
    tied: bool = False  # all of them one block, as in the released SpecDec++
    extras: bool = True  # whether it is told of q beside the state; SpecDec++ is not
    sees: Sees = "before"
    draft: str = ""
    target: str = ""
    rejection_weight: float = 1.0  # of a rejection in the loss: makes the raw output too low
    mixing: float = 0.15  # share of the target's own tokens in what the draft read
    temperature: float = 1.0  # by which corrected logits are divided, fitted after the training
    offset: float = 0.0  # what is then added to them, fitted with it
    level: float = 0.7  # stop where 1 - the product of P(accept) is greater; a default

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field."""
        for name, (kind, fits, wanted) in _RULES.items():
            value = getattr(self, name)
            # True is an int to Python; no field that counts may be it.
            wrong = isinstance(value, bool) and kind is not bool
            if wrong or not isinstance(value, kind) or not fits(value):
                raise ValueError(f"{name} must be {wanted}, not {value!r}")


class AcceptanceHead(nn.Module):
    """SpecDec++'s head (2405.19715): blocks `x + SiLU(Wx + b)`, then one logit.

    Its blocks are separate unless `about.tied`. It computes in fp32, whatever the draft does.
    """

    def __init__(self, about: About) -> None:
        super().__init__()
        self.about = about
        count = min(about.depth, 1) if about.tied else about.depth
        self.blocks = nn.ModuleList(nn.Linear(about.hidden, about.hidden) for _ in range(count))
        self.told = nn.Linear(EXTRAS, about.hidden, bias=False) if about.extras else None
        self.output = nn.Linear(about.hidden, 1)
        # A block of zeros hands on what it is given, as in Medusa, from where SpecDec++ has it.
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self._correction = math.log(about.rejection_weight)
        self._applied = [self._block(index) for index in range(about.depth)]

    @property
    def sees(self) -> Sees:
        return self.about.sees

    @property
    def extras(self) -> bool:
        """Whether `forward` needs them."""
        return self.about.extras

    def forward(self, states: Tensor, extras: Tensor | None = None) -> Tensor:
        """Logits, fp32 `[n]`, of the raw output; `probability` makes P(accept) of them.

        `states`, fp32 `[n, hidden]`, are the draft's final hidden states as its head takes them:
        normed, the norm's weight applied, not rotated. `extras`, fp32 `[n, 3]`, are the guess's
        log-probability by the draft and the entropy of the draft's distribution, both in nats, and
        1.0 where the guess is the likeliest token, at temperature 0. Only a head without extras
        may do without.
        """
        rows = states
        if self.told is not None:
            assert extras is not None, "this head is told of q beside the state"
            rows = torch.addmm(rows, extras, self.told.weight.T)
        for block in self._applied:
            rows = rows + F.silu(F.linear(rows, block.weight, block.bias))
        return F.linear(rows, self.output.weight, self.output.bias).squeeze(-1)

    def biased(self, logits: Tensor) -> Tensor:
        """The raw output, as SpecDec++ multiplies it: with rejections weighted, too low."""
        return torch.sigmoid(logits)

    def probability(self, logits: Tensor) -> Tensor:
        """P(accept): the raw output with the weight of rejections undone.

        Where rejections count w times, the loss is least at a = p / (p + w (1 - p)); so the logit
        of p is that of a, and log w. Texts unlike those it learned from may still make it too
        sure, or not enough; `about.temperature` and `about.offset` see to that.
        """
        about = self.about
        return torch.sigmoid((logits + self._correction) / about.temperature + about.offset)

    def save(self, path: Path) -> None:
        """Write the file that `load` reads, its weights in fp16. Raises OSError."""
        tensors = {name: p.detach().half().cpu() for name, p in self.named_parameters()}
        # One entry: of several, the order in the file would be another each time.
        said = {"about": json.dumps({"format": FORMAT, **asdict(self.about)})}
        path.write_bytes(save({name: t.contiguous() for name, t in tensors.items()}, said))

    @classmethod
    def load(cls, path: Path) -> AcceptanceHead:
        """A head on the CPU, in fp32, frozen.

        Raises FileNotFoundError, and ValueError, naming the file, for what is no such head.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = _read_about(file.metadata() or {})
                # A width that is not the file's allocates nothing before it is found out.
                with torch.device("meta"):
                    head = cls(about)
                head._fill({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  no dict
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path}: is no acceptance head: {error}") from error
        return head.requires_grad_(False).eval()

    def _block(self, index: int) -> nn.Linear:
        block = self.blocks[0 if self.about.tied else index]
        assert isinstance(block, nn.Linear)
        return block

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError where they are not this shape's."""
        parameters = dict(self.named_parameters())
        if tensors.keys() != parameters.keys():
            names = ", ".join(sorted(tensors.keys() ^ parameters.keys()))
            raise ValueError(f"its tensors do not fit its description: {names}")
        for name, parameter in parameters.items():
            tensor = tensors[name]
            if tensor.shape != parameter.shape or not tensor.is_floating_point():
                found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
                raise ValueError(f"{name} is {found}, not of the shape {list(parameter.shape)}")
            if not tensor.isfinite().all():
                raise ValueError(f"{name} has numbers that are not finite")
        self.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)


def _read_about(metadata: Mapping[str, str]) -> About:
    said = json.loads(metadata.get("about", "null"))
    if not isinstance(said, dict) or said.pop("format", None) != FORMAT:
        raise ValueError(f"its metadata must have 'about', of the format {FORMAT!r}")
    names = {field.name for field in fields(About)}
    if said.keys() != names:
        raise ValueError(f"its description must have {', '.join(sorted(names))}")
    return About(**said)


_Rule: TypeAlias = tuple[type | tuple[type, ...], Callable[[Any], bool], str]
_NUMBER = (int, float)
_RULES: dict[str, _Rule] = {
    "hidden": (int, lambda value: 1 <= value <= 65536, "1 to 65536"),
    "depth": (int, lambda value: 0 <= value <= 16, "0 to 16"),
    "tied": (bool, lambda value: True, "true or false"),
    "extras": (bool, lambda value: True, "true or false"),
    "sees": (str, lambda value: value in get_args(Sees), "before or after"),
    "draft": (str, lambda value: True, "a name"),
    "target": (str, lambda value: True, "a name"),
    "rejection_weight": (_NUMBER, lambda value: 0 < value < math.inf, "above 0"),
    "mixing": (_NUMBER, lambda value: 0 <= value <= 1, "0 to 1"),
    "temperature": (_NUMBER, lambda value: 0 < value < math.inf, "above 0"),
    "offset": (_NUMBER, lambda value: abs(value) < math.inf, "finite"),
    "level": (_NUMBER, lambda value: 0 <= value <= 1, "0 to 1"),
}
