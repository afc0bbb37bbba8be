"""KV predicted from another model's, which reads the prompt: maps make the base's of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from app.engines.embedded.checkpoint import Checkpoint
from app.engines.embedded.draft_folder import fingerprint
from app.engines.embedded.folding import ModelConfig
from app.engines.embedded.linear import Linear, Precision, make_linear
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.prediction import check_shape, key_order
from app.nets.kv_predictor import KVPredictor


class AuxiliaryPredictor:
    """Maps a smaller model's keys and values to those of all layers of the base (Horton et al.
    2024, 2410.08391, section 3)."""

    def __init__(
        self,
        predictor: KVPredictor,
        config: ModelConfig,
        precision: Precision,
        device: torch.device,
        auxiliary: Decoder,
    ) -> None:
        """`config`, `precision`, `device`: the base's. Raises ValueError where it is for another
        base or auxiliary, by their shapes."""
        check_shape(predictor, config)
        about, theirs = predictor.about, auxiliary.config
        width = theirs.kv_heads * theirs.head_dim
        if not about.auxiliary:
            raise ValueError("this KV predictor is told by first layers, not by another model")
        if about.auxiliary_width != width or max(about.sources) >= theirs.layers:
            raise ValueError(
                f"this KV predictor is told by layer {max(about.sources)} at most, whose keys have"
                f" {about.auxiliary_width} numbers; {about.auxiliary} has {theirs.layers} layers"
                f" of {width}"
            )
        self.name, self.share = about.auxiliary, about.share
        self._auxiliary, self._device, self._width = auxiliary, device, about.width
        # Without a bound: who reads a prompt has been given room for it in the base's memory, and
        # this one's tokens take a known part of theirs.
        self.memory = auxiliary.kv_memory(2**62, 0)
        weight, bias = predictor.weight.detach().clone(), predictor.bias.detach().clone()
        order = key_order(config)
        weight[::2], bias[::2] = weight[::2, order], bias[::2, order]
        weight[::2] = weight[::2, :, key_order(theirs)]
        self._bias = bias.view(about.layers, 2, about.width).to(device)
        by_layer = weight.view(about.layers, 2, about.width, width)
        self._maps = [
            (source, part, layers, self._map(by_layer[layers, part], precision))
            for source in dict.fromkeys(about.sources)
            for layers in [_told_by(about.sources, source)]
            for part in (0, 1)
        ]

    def _map(self, weights: Tensor, precision: Precision) -> Linear:
        """One product for all layers that read the same."""
        return make_linear(weights.flatten(0, 1).contiguous(), precision, self._device)

    def __call__(self, told: Tensor) -> Tensor:
        """Keys before RoPE and values of the base, fp32 `[n, layers, 2 * width]`, each head's pairs
        side by side; of the auxiliary's, `[n, its layers, 2, its width]`, as its decoder tells."""
        told = told.to(self._device)
        made = self._bias.repeat(len(told), 1, 1, 1)
        for source, part, layers, weight in self._maps:
            found = weight(told[:, source, part].contiguous())
            made[:, layers, part] += found.view(len(told), -1, self._width)
        return made.flatten(2)

    def begin(self, tokens: Sequence[int]) -> AuxiliaryPass:
        """Read these, which are all of the prompt that may be predicted, and what is before it."""
        return AuxiliaryPass(self, self._auxiliary, tokens)


class AuxiliaryPass:
    """The auxiliary's pass over one prompt, in memory that it holds until it is closed."""

    def __init__(
        self, predictor: AuxiliaryPredictor, decoder: Decoder, tokens: Sequence[int]
    ) -> None:
        cache = predictor.memory.acquire(tokens, len(tokens))
        if cache is None:
            raise ValueError("memory without a bound has room")
        self._predictor, self._decoder, self._tokens = predictor, decoder, tokens
        self._cache, self._open = cache, True

    @torch.inference_mode()
    def advance(self, start: int, count: int, chunk: int) -> Tensor | None:
        """The base's keys and values of the tokens from `start` on, as the predictor gives them: of
        so many, or fewer that have been read. None: it has to read further first.

        One piece is read at most, and its end is a multiple of `chunk`: what is computed together
        depends on the prompt alone, however much of it the base has already.
        """
        cache = self._cache
        if cache.length < min(start + count, len(self._tokens)):
            piece = self._tokens[cache.length : (cache.length // chunk + 1) * chunk]
            self._decoder.read(torch.tensor(piece), Span(cache, len(piece)))
        stop = min(start + count, cache.length)
        if stop <= start:
            return None
        return self._predictor(self._decoder.keys_and_values(cache, start, stop))

    def close(self) -> None:
        """Give the memory back; again, it does nothing."""
        if self._open:
            self._predictor.memory.release(self._cache, self._tokens, keep=False)
            self._open = False


def _told_by(sources: Sequence[int], source: int) -> slice:
    """The layers that this one tells of; as sources never fall, they are neighbours."""
    first = sources.index(source)
    return slice(first, first + sources.count(source))


def auxiliary_print(found: Checkpoint) -> str:
    """Tells a model from all others, also of the same embedding: SHA-256 of what is shared by
    drafts and of every layer's matrix of values, as bf16."""
    digest = hashlib.sha256(fingerprint(found).encode())
    for layer in range(found.config.layers):
        name = found.layout.names["v"].format(layer)
        rows = found.source.tensor(f"{name}.weight").bfloat16().contiguous()
        digest.update(rows.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_print(predictor: KVPredictor, found: Checkpoint) -> None:
    """Raises ValueError where the maps were fitted on another model than this auxiliary."""
    about = predictor.about
    if about.auxiliary_print != auxiliary_print(found):
        raise ValueError(
            f"it knows {about.auxiliary} by other weights than those of {found.source.path}: train"
            " it anew, or use the weights that it was trained with"
        )
