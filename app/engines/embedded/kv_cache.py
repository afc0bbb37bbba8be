"""Keys and values of running sequences, prefixes kept for reuse, and the memory both take."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.engines.embedded.edits import Moved, moved
from app.engines.embedded.folding import ModelConfig

Ids = npt.NDArray[np.int64]
EXACT = ""
"""The space of keys and values that were computed, all of them."""


class SequenceCache:
    """One sequence's keys and values: `[layers, 2 * kv_heads, slots, head_dim]`, keys first.

    Slots below `length` are written. The sequence may use `capacity` of the slots, no more.
    """

    def __init__(self, buffer: Tensor, capacity: int, length: int = 0) -> None:
        self.buffer = buffer
        self.capacity = capacity
        self.length = length

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on. Raises ValueError where there are not so many."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} cached tokens to {length}")
        self.length = length


@dataclass(eq=False)
class _Prefix:
    """Keys and values of a sequence that has ended; `ids` are the tokens they were made from."""

    ids: Ids
    buffer: Tensor
    space: str


class KVMemory:
    """Hands out sequence caches within a bound of bytes, and keeps ended ones as prefixes.

    A running sequence counts with its whole capacity, so that it can never fail for want of
    memory in mid-answer. A kept prefix counts with its tokens only: on a CPU the operating system
    commits a page when it is first written. (On an accelerator it counts with all its slots.)
    Whatever is kept gives way, least recently used first, to what wants to run. It has a bound of
    its own, as it is memory really taken, unlike most of what running sequences are promised.

    Not thread-safe: it belongs to the thread that drives the model.
    """

    def __init__(
        self,
        config: ModelConfig,
        bound: int,
        kept_bound: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        """`bound`, and of it `kept_bound` for prefixes (0: none; default: all), in bytes.

        Nothing is allocated yet.
        """
        self.bound = bound
        self.kept_bound = bound if kept_bound is None else kept_bound
        self._shape = (config.layers, 2 * config.kv_heads, config.head_dim)
        self.bytes_per_token = math.prod(self._shape) * dtype.itemsize
        self.running_bytes = 0  # promised to running sequences
        self.queried_tokens = 0  # asked for in all successful calls of `acquire`
        self.reused_tokens = 0  # of those, found in a kept prefix
        self._dtype = dtype
        self._device = device or torch.device("cpu")
        self._lazy = self._device.type == "cpu"  # a page costs memory from its first write on
        self._running: set[SequenceCache] = set()
        self._kept: list[_Prefix] = []  # least recently used first

    @property
    def kept_bytes(self) -> int:
        return sum(self._kept_cost(prefix) for prefix in self._kept)

    def can_ever_fit(self, capacity: int) -> bool:
        """Whether a sequence of so many tokens fits into the bound when nothing else runs."""
        return self._cost(capacity) <= self.bound

    def acquire(
        self, tokens: Sequence[int], capacity: int, space: str = EXACT
    ) -> SequenceCache | None:
        """A cache for a sequence of at most `capacity` tokens which begins with `tokens`.

        Its `length` tells how many of the tokens are in it already: never all of them, since one
        must be computed to get logits. None: there is no room until a running sequence ends.
        Raises ValueError for no tokens or more than the capacity.

        `space`: what was kept in it may be gone on from, and what was kept as exact; a sequence
        that wants exact keys and values never sees another space.

        Finding the prefix costs about 1 us and 1 us per 1000 ids for each kept prefix. A prefix
        that `tokens` goes on from is handed over without a copy (a hand-over between models comes
        this way); of one that parts from `tokens` earlier the shared part is copied.
        """
        if not 0 < len(tokens) <= capacity:
            raise ValueError(f"{len(tokens)} tokens do not fit a capacity of {capacity}")
        if self.running_bytes + self._cost(capacity) > self.bound:
            return None
        cache = self._continue(np.asarray(tokens, dtype=np.int64), capacity, space)
        if cache is None:
            cache = self._allocate(capacity)
        self._running.add(cache)
        self.running_bytes += self._cost(capacity)
        self.queried_tokens += len(tokens)
        self.reused_tokens += cache.length
        return cache

    def move_tail(
        self, cache: SequenceCache, tokens: Sequence[int], space: str = EXACT
    ) -> Moved | None:
        """Where an edit parts `tokens` from what was kept, put what follows the edit into the slots
        where it will stand, keys as they are; None where there is nothing of that kind.

        The cache does not grow: the tokens before `Moved.at` are to be read first. The keys are to
        be turned by how far they were moved.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        found = [
            (each, prefix)
            for prefix in self._kept
            if prefix.space in (space, EXACT) and _common(prefix.ids, ids) >= cache.length
            for each in [moved(prefix.ids, tokens, cache.length)]
            if each is not None
        ]
        if not found:
            return None
        best, prefix = max(found, key=lambda pair: pair[0].count)
        slots = slice(best.at, best.at + best.count)
        cache.buffer[:, :, slots] = prefix.buffer[:, :, best.start : best.start + best.count]
        self.reused_tokens += best.count
        return best

    def borrow(
        self, cache: SequenceCache, tokens: Sequence[int], others: Iterable[SequenceCache]
    ) -> int:
        """Copy what another has of these `tokens` behind what the cache holds; how many it was.

        All of it exact. `others` run, and what they hold begins with `tokens`; what is kept is
        looked through too, for those that have ended meanwhile.
        """
        prefix, shared = self._longest(np.asarray(tokens, dtype=np.int64), EXACT)
        found = [(prefix.buffer, shared)] if prefix is not None else []
        found += [(other.buffer, min(other.length, len(tokens))) for other in others]
        buffer, stop = max(found, key=lambda each: each[1], default=(cache.buffer, 0))
        start = cache.length
        if stop <= start:
            return 0
        cache.buffer[:, :, start:stop] = buffer[:, :, start:stop]
        cache.length = stop
        self.reused_tokens += stop - start
        return stop - start

    def release(
        self,
        cache: SequenceCache,
        tokens: Sequence[int],
        *,
        keep: bool = True,
        space: str = EXACT,
    ) -> None:
        """End a sequence; with `keep`, its keys and values stay as a prefix for later ones of this
        space. Who was given room in another space must give back to none but that.

        `tokens` are the sequence's ids; those beyond the cache's length do not matter. The cache
        must not be used again. Raises ValueError where it is not running, or has more tokens.
        """
        if cache not in self._running:
            raise ValueError("this cache is not running here, or was released before")
        if len(tokens) < cache.length:
            raise ValueError(f"{cache.length} cached tokens, but only {len(tokens)} ids for them")
        self._running.remove(cache)
        self.running_bytes -= self._cost(cache.capacity)
        buffer, length = cache.buffer, cache.length
        cache.buffer, cache.capacity, cache.length = buffer.new_empty(0), 0, 0
        if keep and length > 0:
            self._keep(_Prefix(np.asarray(tokens[:length], dtype=np.int64), buffer, space))

    def clear(self) -> None:
        """Drop all that is kept; running sequences stay."""
        self._kept.clear()

    def _continue(self, ids: Ids, capacity: int, space: str) -> SequenceCache | None:
        prefix, shared = self._longest(ids, space)
        reused = min(shared, len(ids) - 1)
        if prefix is None or reused == 0:
            return None
        wanted = self.running_bytes + self._cost(capacity)
        both_fit = wanted + self._kept_cost(prefix) <= self.bound
        # What is whole goes on in the sequence; what is not is taken only if it had to go anyway;
        # and so what is of another space, to which it would not come back.
        whole = shared == len(prefix.ids) and prefix.space == space
        if (whole or not both_fit) and self._can_hold(prefix.buffer, capacity):
            self._kept.remove(prefix)
            self._make_room(capacity)
            return SequenceCache(prefix.buffer, capacity, reused)
        if not both_fit:
            return None
        self._touch(prefix)  # evicted last, hence not at all
        cache = self._allocate(capacity)
        cache.buffer[:, :, :reused] = prefix.buffer[:, :, :reused]
        cache.length = reused
        return cache

    def _longest(self, ids: Ids, space: str) -> tuple[_Prefix | None, int]:
        """The kept prefix that shares most tokens with `ids`, and how many."""
        best, shared = None, 0
        for prefix in self._kept:
            if prefix.space not in (space, EXACT):
                continue
            common = _common(prefix.ids, ids)
            if common >= shared:
                best, shared = prefix, common
        return best, shared

    def _keep(self, prefix: _Prefix) -> None:
        alike = [kept for kept in self._kept if kept.space == prefix.space]
        for kept in alike:
            if _common(kept.ids, prefix.ids) == len(prefix.ids):
                self._touch(kept)  # it holds all that the new one does
                return
        for kept in alike:
            if _common(kept.ids, prefix.ids) == len(kept.ids):
                self._kept.remove(kept)
        self._kept.append(prefix)
        while self.kept_bytes > self.kept_bound:
            self._kept.pop(0)

    def _touch(self, prefix: _Prefix) -> None:
        self._kept.remove(prefix)
        self._kept.append(prefix)

    def _allocate(self, capacity: int) -> SequenceCache:
        self._make_room(capacity)
        layers, heads, head_dim = self._shape
        shape = (layers, heads, capacity, head_dim)
        return SequenceCache(torch.empty(shape, dtype=self._dtype, device=self._device), capacity)

    def _make_room(self, capacity: int) -> None:
        wanted = self.running_bytes + self._cost(capacity)
        while self._kept and wanted + self.kept_bytes > self.bound:
            self._kept.pop(0)

    def _can_hold(self, buffer: Tensor, capacity: int) -> bool:
        slots = buffer.shape[2]
        return slots >= capacity if self._lazy else slots == capacity

    def _kept_cost(self, prefix: _Prefix) -> int:
        return self._cost(len(prefix.ids) if self._lazy else prefix.buffer.shape[2])

    def _cost(self, tokens: int) -> int:
        return tokens * self.bytes_per_token


def _common(one: Ids, other: Ids) -> int:
    """How many ids the two have in common at their beginning."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    first = int(differ.argmax()) if length else 0
    return first if length and differ[first] else length
