"""Linear maps from a cheap pass's states to keys and values: ridge regression, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from app.training.saving import replace_file


class Sums:
    """Sums over tokens of what a regression needs: so many tokens, no more memory.

    Of rows x `[n, inputs]`, with a 1 behind them, and y `[n, outputs]`, in float64: `x x^T`,
    `x y^T` and the sums of y and its squares.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.xx = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.xy = torch.zeros(inputs + 1, outputs, dtype=torch.float64)
        self.yy = torch.zeros(outputs, dtype=torch.float64)

    @property
    def tokens(self) -> int:
        return int(self.xx[-1, -1])

    def add(self, x: Tensor, y: Tensor) -> None:
        """One text's rows, fp32: their own products are made in fp32, four times as fast, and are
        added up in float64."""
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.square().sum(0)

    def solved(self, ridge: float) -> Tensor:
        """Maps `[outputs, inputs + 1]`, the bias last, of the least squared error and `ridge` times
        the squared weights, those in units of the mean square of an input; the bias is free."""
        each = torch.diagonal(self.xx)[:-1].mean()
        penalty = torch.full((len(self.xx),), float(ridge * each), dtype=torch.float64)
        penalty[-1] = 0.0
        factor = torch.linalg.cholesky(self.xx + torch.diag(penalty))
        return torch.cholesky_solve(self.xy, factor).T

    def explained(self, maps: Tensor) -> Fit:
        """How well maps `[outputs, inputs + 1]` do on these sums' tokens, for each output."""
        maps = maps.double()
        error = self.yy - 2 * (maps.T * self.xy).sum(0) + ((self.xx @ maps.T) * maps.T).sum(0)
        mean = self.xy[-1] / self.tokens
        return Fit(error.clamp_min(0.0), self.yy - self.tokens * mean.square())

    def tensors(self) -> dict[str, Tensor]:
        return {"xx": self.xx, "xy": self.xy, "yy": self.yy}

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave. Raises ValueError where the widths are others."""
        for name, tensor in self.tensors().items():
            if tensors[name].shape != tensor.shape:
                found = f"{list(tensors[name].shape)}, not {list(tensor.shape)}"
                raise ValueError(f"{name} has the shape {found}")
            tensor.copy_(tensors[name])


@dataclass(frozen=True)
class Fit:
    """Squared errors of maps, and of the mean in their place, for each output."""

    error: Tensor
    spread: Tensor

    def explained(self, width: int) -> list[float]:
        """The share of the spread that is explained (R^2), of each `width` outputs."""
        error, spread = (each.view(-1, width).sum(1) for each in (self.error, self.spread))
        found: list[float] = (1 - error / spread.clamp_min(1e-30)).tolist()
        return found


class SavedSums:
    """Sums by name in one file, with how many texts are in them, so that a stopped run goes on."""

    def __init__(self, path: Path, said: str, sums: dict[str, Sums]) -> None:
        """`said`: what they are of. Raises ValueError where the file's are of something else."""
        self._path, self._said, self.sums = path, said, sums
        self.texts = 0
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with safe_open(self._path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("said") != self._said:
                    raise ValueError("was made from other texts, models or choices")
                for name, sums in self.sums.items():
                    parts = ("xx", "xy", "yy")
                    sums.fill({part: file.get_tensor(f"{name}.{part}") for part in parts})
                self.texts = int(about["texts"])
        except (SafetensorError, ValueError, KeyError) as error:
            raise ValueError(f"{self._path}: {error}; remove it to begin anew") from error

    def save(self) -> None:
        """Raises OSError."""
        tensors = {
            f"{name}.{part}": tensor
            for name, sums in self.sums.items()
            for part, tensor in sums.tensors().items()
        }
        about = {"said": self._said, "texts": str(self.texts)}
        replace_file(self._path, save(tensors, about))
