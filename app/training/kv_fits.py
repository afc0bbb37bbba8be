"""What each kind of KV predictor is fitted on: sums over texts, and the maps that come of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from app.nets.kv_predictor import About, even_sources
from app.training.kv_closed_form import Sums
from app.training.kv_states import flat, keys_and_values, states
from app.training.net import Layer, Net


class Fits(Protocol):
    """One kind: its predictors by name, and how their maps come out of sums over texts."""

    @property
    def abouts(self) -> Mapping[str, About]: ...

    @property
    def said(self) -> str:
        """What decides the sums beside the base, its texts and the recipe."""
        ...

    def sums(self) -> dict[str, Sums]:
        """Empty ones, by name."""
        ...

    def add(self, sums: Mapping[str, Sums], ids: Tensor) -> None:
        """One text, int64 `[time]`."""
        ...

    def tokens(self, name: str, sums: Mapping[str, Sums]) -> int:
        """How many this predictor is fitted on."""
        ...

    def maps(self, name: str, sums: Mapping[str, Sums], ridge: float) -> Tensor:
        """The best ones, float64 `[2 * predicted, width, told + 1]`, the bias last."""
        ...

    def explained(self, name: str, sums: Mapping[str, Sums], maps: Tensor) -> list[float]:
        """R^2 of each of the maps on these sums' tokens."""
        ...


class LayerFits:
    """The base's own first layers tell of the later ones: one regression for all of these."""

    said = ""

    def __init__(
        self, base: tuple[str, str], net: Net, kept: Sequence[int], units: int = 0
    ) -> None:
        """`base`: its name and fingerprint; `kept`: how many layers tell, a predictor for each."""
        config, self._net = net.config, net
        self.abouts = {
            f"kept-{each}": About(
                base=base[0],
                shared=base[1],
                hidden=config.hidden,
                layers=config.layers,
                width=config.kv_heads * config.head_dim,
                layer_weights=_weights(net) // config.layers,
                kept=each,
                units=units,
            )
            for each in kept
        }

    def sums(self) -> dict[str, Sums]:
        return {
            name: Sums(about.hidden, about.predicted * 2 * about.width)
            for name, about in self.abouts.items()
        }

    def add(self, sums: Mapping[str, Sums], ids: Tensor) -> None:
        told, made = states(self._net, ids, [about.kept for about in self.abouts.values()])
        for name, about in self.abouts.items():
            sums[name].add(told[about.kept].cpu(), flat(made, about.kept).cpu())

    def tokens(self, name: str, sums: Mapping[str, Sums]) -> int:
        return sums[name].tokens

    def maps(self, name: str, sums: Mapping[str, Sums], ridge: float) -> Tensor:
        solved, about = sums[name].solved(ridge), self.abouts[name]
        return solved.view(2 * about.predicted, about.width, -1)

    def explained(self, name: str, sums: Mapping[str, Sums], maps: Tensor) -> list[float]:
        return sums[name].explained(maps.flatten(0, 1)).explained(self.abouts[name].width)


class AuxiliaryFits:
    """Another model tells of the base: a small regression for the keys of each of its layers, to
    the keys of those of the base's that it tells of, and one for its values."""

    def __init__(
        self, base: tuple[str, str], net: Net, auxiliary: tuple[str, str], other: Net
    ) -> None:
        """`base`, `auxiliary`: name, and fingerprint or print. Raises ValueError where the
        auxiliary has more layers than the base."""
        config, self._nets = net.config, (net, other)
        self._name, self.said = auxiliary
        self._width = other.config.kv_heads * other.config.head_dim
        about = About(
            base=base[0],
            shared=base[1],
            hidden=config.hidden,
            layers=config.layers,
            width=config.kv_heads * config.head_dim,
            layer_weights=_weights(net) // config.layers,
            auxiliary=auxiliary[0],
            auxiliary_print=auxiliary[1],
            auxiliary_width=self._width,
            auxiliary_weights=_weights(other),
            sources=even_sources(config.layers, other.config.layers),
        )
        self.abouts = {auxiliary[0]: about}
        self._about = about

    def _groups(self) -> dict[str, tuple[int, int, list[int]]]:
        """By the name of their sums: a layer of the auxiliary, 0 for its keys or 1 for its values,
        and the base's layers that it tells of."""
        sources = self._about.sources
        return {
            f"{('keys', 'values')[part]}-{source}": (
                source,
                part,
                [layer for layer, each in enumerate(sources) if each == source],
            )
            for source in dict.fromkeys(sources)
            for part in (0, 1)
        }

    def sums(self) -> dict[str, Sums]:
        return {
            group: Sums(self._width, len(layers) * self._about.width)
            for group, (_, _, layers) in self._groups().items()
        }

    def add(self, sums: Mapping[str, Sums], ids: Tensor) -> None:
        made, told = (keys_and_values(net, ids).float().cpu() for net in self._nets)
        for group, (source, part, layers) in self._groups().items():
            sums[group].add(told[:, source, part], made[:, layers, part].flatten(1))

    def tokens(self, name: str, sums: Mapping[str, Sums]) -> int:
        return next(iter(sums.values())).tokens  # as many are in all of them

    def maps(self, name: str, sums: Mapping[str, Sums], ridge: float) -> Tensor:
        about = self._about
        shape = about.layers, 2, about.width, self._width + 1
        found = torch.zeros(shape, dtype=torch.float64)
        for group, (_, part, layers) in self._groups().items():
            found[layers, part] = sums[group].solved(ridge).view(len(layers), *shape[2:])
        return found.flatten(0, 1)

    def explained(self, name: str, sums: Mapping[str, Sums], maps: Tensor) -> list[float]:
        about = self._about
        by_layer = maps.view(about.layers, 2, about.width, -1)
        found = torch.zeros(about.layers, 2, dtype=torch.float64)
        for group, (_, part, layers) in self._groups().items():
            fit = sums[group].explained(by_layer[layers, part].flatten(0, 1))
            found[layers, part] = torch.tensor(fit.explained(about.width), dtype=torch.float64)
        each: list[float] = found.flatten().tolist()
        return each


def _weights(net: Net) -> int:
    """Multiplications that its layers do for a token."""
    found = 0
    for layer in net.layers:
        assert isinstance(layer, Layer)
        found += sum(p.numel() for p in layer.parameters() if p.ndim == 2)
    return found
