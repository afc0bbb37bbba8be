"""From a row of logits to a token: filters, penalties, seeded draws, log-probabilities, entropy.

Every row is worked on alone, in numpy and float64, so that no result depends on who else is in
the batch. Where an answer is held to a form, ids that may not come next are taken out of the row
first of all: what is greedy, likely, kept by a filter, logprobs and entropy are of the rest.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from app.types import Sampling

Row: TypeAlias = npt.NDArray[np.float64]  # [vocab]
Ids: TypeAlias = npt.NDArray[np.int64]

_LOWEST = -1e300  # of an id that may not come next: times its weight, 0, it is 0
_GREEDY_BELOW = 1e-5  # temperatures under this would only add rounding


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, and what was asked about the distribution it came from (raw: before temperature,
    penalties and bias)."""

    id: int
    logprob: float | None = None  # natural
    top: tuple[tuple[int, float], ...] = ()  # (id, logprob), likeliest first
    entropy: float | None = None  # bits


class Held(Protocol):
    """What an answer is held to; see Constraint."""

    def advance(self, ids: Sequence[int]) -> bool: ...

    def allowed(self, size: int, ahead: Sequence[int] = ()) -> npt.NDArray[np.bool_]: ...

    def permits(self, ids: Sequence[int]) -> int: ...


class Sampler:
    """Draws the tokens of one answer, in order.

    `prompt` are the tokens before the answer, `written` those of the answer that are there
    already; the number drawn for the answer's i-th token is a function of (seed, i) only.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int] = (),
        written: Sequence[int] = (),
        entropy: bool = False,
        held: Held | None = None,
    ) -> None:
        """`held`: where the answer stands behind `written`; it goes on as tokens are drawn."""
        self.sampling = sampling
        self.held = held
        self.position = len(written)  # in the answer, of the next token
        self._entropy = entropy
        self._seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._bias = _Sparse.of(sampling.logit_bias.items())
        self._penalised = (
            bool(sampling.presence_penalty or sampling.frequency_penalty)
            or sampling.repetition_penalty != 1.0
        )
        self._answer: Counter[int] = Counter(written if self._penalised else ())
        self._seen = set(prompt) if sampling.repetition_penalty != 1.0 else set()
        self._seen.update(self._answer)
        self.greedy = sampling.temperature < _GREEDY_BELOW
        # True where the row's likeliest token is all that there is to find.
        self.plain = (
            self.greedy
            and not entropy
            and not self._penalised
            and not sampling.logit_bias
            and sampling.logprobs is None
            and held is None
        )

    def draw(self, logits: npt.NDArray[np.float32]) -> Drawn:
        """The next token, from logits [vocab]."""
        if self.plain:
            return self._take(Drawn(int(logits.argmax())))
        raw = self._raw(logits)
        row = self._adjusted(raw)
        if self.greedy:
            id = int(row.argmax())
        else:
            id = pick(distribution(row, self.sampling), self.chance())
        return self._take(self._report(raw, id))

    def take(self, logits: npt.NDArray[np.float32], id: int) -> Drawn:
        """This token as the next one, from logits [vocab]: somebody else has chosen it."""
        return self._take(self._report(self._raw(logits), id))

    def adjusted(self, logits: npt.NDArray[np.float32]) -> Row:
        """Logits [vocab] with bias and penalties, as the next token is drawn from them."""
        return self._adjusted(self._raw(logits))

    def weigh(self, logits: npt.NDArray[np.float32]) -> Row:
        """What the next token is drawn from, unnormalised [vocab]; not for greedy sampling."""
        return distribution(self.adjusted(logits), self.sampling)

    def chance(self, use: str = "") -> float:
        """The number drawn for the next token; each use has its own."""
        return uniform(self._seed, self.position, use)

    def _raw(self, logits: npt.NDArray[np.float32]) -> Row:
        raw = logits.astype(np.float64)
        if self.held is not None:
            allowed = self.held.allowed(len(raw))
            if allowed.any():  # a grammar at fault allows nothing, and ends the answer
                raw[~allowed] = -np.inf
        return raw

    def _take(self, drawn: Drawn) -> Drawn:
        self.position += 1
        if self.held is not None:
            self.held.advance((drawn.id,))
        if self._penalised:
            self._answer[drawn.id] += 1
            self._seen.add(drawn.id)
        return drawn

    def _adjusted(self, raw: Row) -> Row:
        """The row with bias and penalties; the row itself where there are none."""
        if not self._penalised and not len(self._bias.ids):
            return raw
        row = raw.copy()
        row[self._bias.ids] += self._bias.values
        if not self._penalised:
            return row
        if self._seen and self.sampling.repetition_penalty != 1.0:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            values, penalty = row[seen], self.sampling.repetition_penalty
            row[seen] = np.where(values > 0, values / penalty, values * penalty)
        counts = _Sparse.of(self._answer.items())
        row[counts.ids] -= self.sampling.frequency_penalty * counts.values
        row[counts.ids] -= self.sampling.presence_penalty
        return row

    def _report(self, raw: Row, id: int) -> Drawn:
        wanted = self.sampling.logprobs
        if wanted is None and not self._entropy:
            return Drawn(id)
        shifted = raw - raw.max()
        if self.held is not None:
            shifted = np.maximum(shifted, _LOWEST)
        weights = np.exp(shifted)
        total = float(weights.sum())
        log_total = math.log(total)
        entropy = None
        if self._entropy:
            # H = log Z - E[x] in nats; rounding may leave it a hair under 0.
            entropy = max(0.0, (log_total - float((weights * shifted).sum()) / total) / math.log(2))
        if wanted is None:
            return Drawn(id, entropy=entropy)
        some = [i for i in likeliest(raw, wanted) if shifted[i] > _LOWEST]
        top = [(int(i), float(shifted[i]) - log_total) for i in some]
        return Drawn(id, float(shifted[id]) - log_total, tuple(top), entropy)


@dataclass(frozen=True, slots=True)
class _Sparse:
    """Values at a few ids of a row."""

    ids: Ids
    values: Row

    @classmethod
    def of(cls, items: Iterable[tuple[int, float]]) -> _Sparse:
        pairs = list(items)
        ids = np.array([id for id, _ in pairs], np.int64)
        return cls(ids, np.array([value for _, value in pairs], np.float64))


def draw(samplers: Sequence[Sampler], logits: torch.Tensor) -> list[Drawn]:
    """One token for each sampler, from its row of logits [n, vocab] fp32."""
    if logits.is_cuda and all(sampler.plain for sampler in samplers):
        likeliest_ids: list[int] = logits.argmax(-1).tolist()  # spares the copy of whole rows
        return [s._take(Drawn(id)) for s, id in zip(samplers, likeliest_ids, strict=True)]
    rows = logits.detach().cpu().numpy()
    return [sampler.draw(row) for sampler, row in zip(samplers, rows, strict=True)]


def distribution(row: Row, sampling: Sampling) -> Row:
    """Unnormalised weights [vocab] after temperature, then min_p, top_k and top_p, in this order.

    As in vLLM, each filter sees what the ones before it left. Among equals the lower id is kept.
    """
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature makes -inf: weight 0
        weights: Row = np.exp((row - row.max()) / sampling.temperature)
    if sampling.min_p > 0:
        weights[weights < sampling.min_p] = 0.0  # the likeliest has weight 1
    if 0 < sampling.top_k < len(weights):
        weights = _only(weights, likeliest(weights, sampling.top_k))
    if sampling.top_p < 1:
        weights = _only(weights, _nucleus(weights, sampling.top_p))
    return weights


def likeliest(row: Row, count: int) -> Ids:
    """The ids of the `count` largest values, largest first; among equals the lower id."""
    if not 0 < count < len(row):
        return np.argsort(-row, kind="stable")[:count]
    level = np.partition(row, len(row) - count)[len(row) - count]
    ids = np.flatnonzero(row >= level)
    kept: Ids = ids[np.argsort(-row[ids], kind="stable")][:count]
    return kept


def _nucleus(weights: Row, top_p: float) -> Ids:
    """The fewest likeliest ids whose probabilities reach top_p; at least one."""
    total = float(weights.sum())
    # All ids under this level together weigh less than 1 - top_p: the nucleus has none of them,
    # and only the others need sorting.
    ids = np.flatnonzero(weights >= min((1 - top_p) * total / len(weights), 1.0))
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    reached = np.cumsum(weights[ids])
    return ids[: int(np.searchsorted(reached, top_p * total)) + 1]


def _only(weights: Row, ids: Ids) -> Row:
    kept = np.zeros_like(weights)
    kept[ids] = weights[ids]
    return kept


def pick(weights: Row, at: float) -> int:
    """The id at which the running sum of the weights passes `at` (in [0, 1)) of their total."""
    reached = np.cumsum(weights)
    return int(np.searchsorted(reached, at * reached[-1], side="right"))


def uniform(seed: int, position: int, use: str = "") -> float:
    """A number in [0, 1) with 53 random bits that depends on these only."""
    digest = hashlib.blake2b(f"{seed}:{position}{use}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
