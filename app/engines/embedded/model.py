"""The decoder: hidden states and logits for the new tokens of all running sequences in one pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from app.engines.embedded.attention import MOST, Attention, Floats, serves
from app.engines.embedded.folding import LayerWeights, ModelConfig, Weights
from app.engines.embedded.kv_cache import KVMemory, SequenceCache
from app.engines.embedded.linear import PEAKED_LEVELS, Linear, Precision, make_linear
from app.engines.embedded.prediction import Predictor
from app.engines.embedded.rotation import Rotation
from app.nets.kv_predictor import KVPredictor


@dataclass(frozen=True)
class Span:
    """The next `count` tokens of one sequence."""

    cache: SequenceCache
    count: int


class Decoder:
    """A Llama- or Qwen2-type model in one precision.

    Each operation costs one or two microseconds before it computes anything, which is most of the
    time of a small model's token; so what could be folded into the weights has been (`folding`),
    and the rest is written in as few operations as were found.

    In int8 a token's result is bitwise the same whatever else is in the pass. Sums over a row, by
    torch, depend on that row alone; the products are so by construction (`Int8Linear`); attention
    is computed for each sequence by itself; and SwiGLU sees to it below. Nor does it matter whether
    up to `attention.MOST` tokens come together or one by one. The tests hold all to it.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        precision: Precision,
        device: torch.device | str = "cpu",
        beside: "Decoder | None" = None,
    ) -> None:
        """Build from weights, which it does not keep (save, in fp32, the embedding).

        `beside` has the same precision, embedding, final norm and head: theirs are used.
        int8 runs on the CPU, whatever the device; raises ValueError where that is no x86.
        """
        self.config = config
        self.precision = precision
        self._embedding: Tensor
        self._head: Linear
        self.device = torch.device("cpu" if precision == "int8" else device)
        self._kv_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._attention: Attention | None = None
        if serves(self.device, self._kv_dtype):
            self._attention = Attention(config.heads // config.kv_heads, config.context)
        if precision == "int8":
            self._build_rotated(weights, beside)
        else:
            self._build(weights, beside)
        # Of the stream as the weights were trained; one turn at the end is cheap.
        self._unturned: Tensor | None = None
        if precision == "int8":
            turned = Rotation(config.hidden).back(weights, torch.eye(config.hidden))
            self._unturned = turned.contiguous()
        floor = math.sqrt(config.hidden * config.norm_epsilon)
        self._floor = torch.tensor(floor, device=self.device)
        angles = torch.arange(config.context).float()[:, None] * weights.inverse_frequencies
        self._turns = torch.complex(angles.cos(), angles.sin()).to(self.device)

    def _build(self, weights: Weights, beside: "Decoder | None") -> None:
        self._embedding = (
            weights.embedding.to(self.device, self._kv_dtype)
            if beside is None
            else beside._embedding
        )
        self._layers = [_Layer(layer, self.precision, self.device) for layer in weights.layers]
        self._norm = weights.norm.to(self.device) * math.sqrt(self.config.hidden)
        # A product that takes the table as it is may share it with the embedding.
        head = self._embedding if weights.head is weights.embedding else weights.head
        self._head = (
            make_linear(head, self.precision, self.device) if beside is None else beside._head
        )
        self._build_draft_head(weights, weights.head)

    def _build_rotated(self, weights: Weights, beside: "Decoder | None") -> None:
        rotation = Rotation(self.config.hidden)
        # A rotated table cannot be shared with an fp32 decoder; bf16 at least halves it.
        self._embedding = (
            rotation.embedding(weights).bfloat16() if beside is None else beside._embedding
        )
        self._layers = [_Layer(rotation.layer(w), "int8", self.device) for w in weights.layers]
        self._norm = torch.tensor(math.sqrt(self.config.hidden))
        head = rotation.head(weights)
        self._head = make_linear(head, "int8", self.device) if beside is None else beside._head
        self._build_draft_head(weights, head)

    def _build_draft_head(self, weights: Weights, head: Tensor) -> None:
        self.drafting = weights.drafting  # int64, ids; None: all
        self._draft_head = self._head
        if self.drafting is not None:
            self._draft_head = make_linear(head[self.drafting], self.precision, self.device)

    def kv_memory(self, bound: int, kept_bound: int | None = None) -> KVMemory:
        """Memory of `bound` bytes for this decoder's sequences, see KVMemory."""
        return KVMemory(
            self.config,
            bound,
            kept_bound,
            dtype=self._kv_dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def forward(self, tokens: Tensor, spans: Sequence[Span]) -> Tensor:
        """Final hidden states, fp32 `[n, hidden]`, of `tokens`, int64 `[n]`.

        They are normed, as `logits` takes them; in int8 they are rotated and without the final
        norm's weight (`rotation`), so that only the same decoder's `logits` can read them.

        The tokens are those of all spans in their order. Their keys and values are written behind
        what each cache holds, and the caches grow by them; after an exception they have not grown.
        Raises ValueError where counts and tokens disagree, or a cache or the context is too short;
        IndexError for an id outside of the vocabulary.
        """
        residual = self._run(self._embedded(tokens, spans), spans, range(len(self._layers)))
        for span in spans:
            span.cache.length += span.count
        return residual.div_(self._root(residual)).mul_(self._norm)

    @torch.inference_mode()
    def predict(self, tokens: Tensor, span: Span, predictor: Predictor) -> None:
        """Put keys and values of `tokens`, int64 `[n]`, behind what the span's cache holds: of the
        first layers those that `forward` would, of the others what the predictor says.

        Raises as `forward`. In int8 no result depends on how the tokens are cut into calls.
        """
        residual = self._run(self._embedded(tokens, [span]), [span], range(predictor.kept))
        self.place(predictor(residual, self._root(residual)), span.cache)

    @torch.inference_mode()
    def place(self, made: Tensor, cache: SequenceCache) -> None:
        """Put keys before RoPE and values, fp32 `[n, last layers, 2 * width]`, each head's pairs
        side by side, behind what the cache holds. They may be changed."""
        start, stop = cache.length, cache.length + len(made)
        made = made.view(len(made), -1, 2 * self.config.kv_heads, self.config.head_dim)
        pairs = made.view(*made.shape[:3], -1, 2)
        keys = pairs[:, :, : self.config.kv_heads]
        torch.view_as_complex(keys).mul_(self._turns[start:stop, None, None])
        cache.buffer[-made.shape[1] :, :, start:stop].copy_(made.permute(1, 2, 0, 3))
        cache.length = stop

    @torch.inference_mode()
    def read(self, tokens: Tensor, span: Span) -> None:
        """As `forward`, for keys and values alone, which are all that the last layer does."""
        layers = range(len(self._layers) - 1)
        residual = self._run(self._embedded(tokens, [span]), [span], layers)
        layer, queries = self._layers[-1], self.config.heads * self.config.head_dim
        qkv = layer.qkv.divided(residual, self._root(residual))
        if layer.qkv_bias is not None:
            qkv += layer.qkv_bias
        self.place(qkv[:, None, queries:], span.cache)

    @torch.inference_mode()
    def keys_and_values(self, cache: SequenceCache, start: int, stop: int) -> Tensor:
        """Of these slots the keys before RoPE and the values, fp32 `[stop - start, layers, 2,
        kv_heads * head_dim]`, each head's pairs side by side."""
        found = cache.buffer[:, :, start:stop].permute(2, 0, 1, 3)
        made = torch.empty(found.shape, device=self.device).copy_(found)
        pairs = made.view(*made.shape[:3], -1, 2)
        keys = torch.view_as_complex(pairs[:, :, : self.config.kv_heads])
        keys.mul_(self._turns[start:stop, None, None].conj())
        return made.view(*made.shape[:2], 2, -1)

    @torch.inference_mode()
    def turn(self, cache: SequenceCache, start: int, count: int, by: int) -> None:
        """Turn the keys of so many slots as if their tokens stood `by` places later, or earlier."""
        heads = self.config.kv_heads
        keys = cache.buffer[:, :heads, start : start + count]
        angles = self._turns[abs(by)]
        pairs = torch.view_as_complex(keys.float().reshape(*keys.shape[:3], -1, 2))
        turned = pairs * (angles if by >= 0 else angles.conj())
        keys.copy_(torch.view_as_real(turned).flatten(-2))

    def predictor(self, weights: KVPredictor) -> Predictor:
        """A predictor as this decoder runs it. Raises ValueError where it is not of this shape."""
        return Predictor(weights, self.config, self.precision, self.device)

    def _embedded(self, tokens: Tensor, spans: Sequence[Span]) -> Tensor:
        """The residual stream before the first layer."""
        self._check(tokens, spans)
        return F.embedding(tokens.to(self.device), self._embedding).float()

    def _run(self, residual: Tensor, spans: Sequence[Span], layers: range) -> Tensor:
        """The residual stream, `[n, hidden]`, behind these layers; the caches do not grow."""
        reaches = [_Reach(span, self.config, self._kv_dtype, self._attention) for span in spans]
        turns = [self._turns[reach.start : reach.stop] for reach in reaches]
        turn = (turns[0] if len(turns) == 1 else torch.cat(turns)).unsqueeze(1)
        rotated = self.config.heads + self.config.kv_heads
        by_head = (len(residual), rotated + self.config.kv_heads, self.config.head_dim)
        pairs = (*by_head[:2], self.config.head_dim // 2, 2)
        for index in layers:
            layer = self._layers[index]
            qkv = layer.qkv.divided(residual, self._root(residual))
            if layer.qkv_bias is not None:
                qkv += layer.qkv_bias
            torch.view_as_complex(qkv.view(pairs)[:, :rotated]).mul_(turn)
            attended = self._attend(qkv.view(by_head), reaches, index)
            residual = layer.output.add_to(residual, attended)
            gate_up = layer.gate_up.divided(residual, self._root(residual))
            residual = layer.down.add_to(residual, _swiglu(gate_up))
        return residual

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits, fp32 `[n, vocabulary]`, of final hidden states `[n, hidden]`."""
        return self._head(hidden)

    @torch.inference_mode()
    def draft_logits(self, hidden: Tensor) -> Tensor:
        """As `logits`, fp32 `[n, len(drafting)]`, of the tokens in `drafting` alone."""
        return self._draft_head(hidden)

    @torch.inference_mode()
    def trained_states(self, hidden: Tensor) -> Tensor:
        """Final hidden states as the weights were trained to make them: what the head of a
        checkpoint takes, the final norm applied. fp32 `[n, hidden]`, of `forward`'s."""
        return hidden if self._unturned is None else hidden @ self._unturned

    def _root(self, rows: Tensor) -> Tensor:
        """`sqrt(sum(x^2) + hidden * epsilon)` for each row, `[n, 1]`."""
        return torch.hypot(torch.linalg.vector_norm(rows, 2, -1, True), self._floor)

    def _attend(self, qkv: Tensor, reaches: Sequence["_Reach"], index: int) -> Tensor:
        """Attention of one layer, `[n, heads * head_dim]`; writes the new keys and values."""
        out = qkv.new_empty(len(qkv), self.config.heads * self.config.head_dim)
        at = 0
        views: tuple[Floats, Floats] | None = None
        for reach in reaches:
            if reach.attention is not None:
                rows, ours = views = views or (qkv.numpy(), out.numpy())
                reach.attention(rows, at, reach.count, reach.buffer, index, reach.start, ours)
            else:
                part = slice(at, at + reach.count)
                out[part] = self._attend_by_torch(qkv[part], reach, index)
            at += reach.count
        return out

    def _attend_by_torch(self, qkv: Tensor, reach: "_Reach", index: int) -> Tensor:
        heads = self.config.heads
        by_head = qkv.transpose(0, 1)
        reach.slots[index].copy_(by_head[heads:])
        attended = F.scaled_dot_product_attention(
            by_head[:heads].to(self._kv_dtype).unsqueeze(0),
            reach.keys[index],
            reach.values[index],
            attn_mask=reach.mask,
            is_causal=reach.causal,
            scale=1.0,  # folded into q
            enable_gqa=True,
        )
        return attended[0].transpose(0, 1).reshape(len(qkv), -1)

    def _check(self, tokens: Tensor, spans: Sequence[Span]) -> None:
        if sum(span.count for span in spans) != len(tokens) or not spans:
            raise ValueError(f"{len(tokens)} tokens, but spans of {[s.count for s in spans]}")
        if len({id(span.cache) for span in spans}) < len(spans):
            raise ValueError("one cache in two spans")
        for span in spans:
            stop = span.cache.length + span.count
            if span.count < 1 or stop > min(span.cache.capacity, self.config.context):
                raise ValueError(
                    f"{span.count} tokens after {span.cache.length} do not fit a cache of "
                    f"{span.cache.capacity} and a context of {self.config.context}"
                )


class _Layer:
    def __init__(self, weights: LayerWeights, precision: Precision, device: torch.device) -> None:
        bias = weights.qkv_bias
        self.qkv = make_linear(weights.qkv, precision, device)
        self.qkv_bias = None if bias is None else bias.to(device)
        self.output = make_linear(weights.output, precision, device)
        self.gate_up = make_linear(weights.gate_up, precision, device)
        self.down = make_linear(weights.down, precision, device, PEAKED_LEVELS)


class _Reach:
    """What one span touches: for each layer where it writes, and what its queries see."""

    def __init__(
        self,
        span: Span,
        config: ModelConfig,
        dtype: torch.dtype,
        attention: Attention | None,
    ) -> None:
        self.buffer, kv_heads = span.cache.buffer, config.kv_heads
        self.count = span.count
        self.start = span.cache.length
        self.stop = self.start + span.count
        self.attention = attention if span.count <= MOST else None
        if self.attention is not None:
            return
        buffer = self.buffer
        # One unbind for all layers, since it costs a third of as many slices.
        self.slots = buffer[:, :, self.start : self.stop].unbind(0)
        self.keys = buffer[:, None, :kv_heads, : self.stop].unbind(0)
        self.values = buffer[:, None, kv_heads:, : self.stop].unbind(0)
        self.causal = self.start == 0 and span.count > 1
        self.mask: Tensor | None = None
        if self.start > 0 and span.count > 1:
            shut = torch.full((span.count, self.stop), -math.inf, dtype=dtype, device=buffer.device)
            self.mask = shut.triu_(self.start + 1)


# Of fewer numbers torch computes an elementwise operation on one thread (its GRAIN_SIZE).
_SERIAL = 32768


def _swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of rows `[gate, up]`, `[n, 2 * intermediate]` to `[n, intermediate]`."""
    gate, up = cast(tuple[Tensor, Tensor], gate_up.chunk(2, -1))
    rows = max(1, (_SERIAL - 1) // gate.shape[1])
    if len(gate) <= rows or gate.is_cuda:
        return F.silu(gate).mul_(up)
    # torch's vectorised exp and the scalar one it ends a run with differ in the last bit. In rows
    # of a strided matrix the runs are the rows; but threads would cut them at places which depend
    # on how many rows there are, and a token's result must not depend on its neighbours.
    return torch.cat([F.silu(gate[at : at + rows]) for at in range(0, len(gate), rows)]).mul_(up)
