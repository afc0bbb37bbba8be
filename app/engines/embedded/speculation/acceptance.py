"""Which guesses stay: the exact rule for drawn and greedy tokens, and two lenient ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from app.engines.embedded.sampling import Drawn, Row, Sampler, pick
from app.types import Speculation

# Medusa's typical acceptance (Cai et al. 2024, arXiv 2401.10774): its epsilon and delta.
_TYPICAL_LEAST, _TYPICAL_SHARE = 0.09, 0.3


@dataclass(slots=True)
class Draft:
    """Guesses for one sequence, in order."""

    ids: list[int] = field(default_factory=list)
    # What each was drawn from: probabilities over `columns`. None: it was not drawn but chosen,
    # which is a distribution with all its weight on one token.
    drawn_from: list[Row | None] = field(default_factory=list)
    # Its own probability there; 1 for one that was chosen.
    likely: list[float] = field(default_factory=list)
    columns: npt.NDArray[np.int64] | None = None  # the ids of the probabilities; None: all

    def choose(self, ids: Sequence[int]) -> None:
        """Add guesses that were not drawn."""
        self.ids += ids
        self.drawn_from += [None] * len(ids)
        self.likely += [1.0] * len(ids)

    def draw(self, id: int, drawn_from: Row, likely: float) -> None:
        """Add a guess that was drawn from these probabilities over `columns`."""
        self.ids.append(id)
        self.drawn_from.append(drawn_from)
        self.likely.append(likely)


class Acceptance:
    """Judges one sequence's guesses. See `Speculation.acceptance`.

    exact: a guess x drawn from q stays with probability min(1, p(x)/q(x)), else the token is drawn
    from max(0, p - q), normalised (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023,
    arXiv 2302.01318), p and q after the same temperature and filters. A guess that was chosen, not
    drawn, stays where the model would have written it: greedily its likeliest token, else what it
    draws, so that a seed gives the same answer as without speculation.
    lenient: min(1, p(x) / (epsilon q(x))) (DistillSpec, Zhou et al. 2023, arXiv 2310.08461); the
    residual is that of the exact rule. Greedily: p(x) >= epsilon max p.
    typical: p(x) > min(0.09, 0.3 exp(-H(p))), H in nats; else a token is drawn from p.
    """

    def __init__(self, asked: Speculation) -> None:
        self._epsilon = asked.lenience if asked.acceptance == "lenient" else 1.0
        self._typical = asked.acceptance == "typical"

    @property
    def exact(self) -> bool:
        return self._epsilon == 1.0 and not self._typical

    def verify(
        self, sampler: Sampler, rows: npt.NDArray[np.float32], draft: Draft
    ) -> Iterator[tuple[Drawn, bool]]:
        """The tokens that are written, and whether each was guessed; at least one.

        rows: the model's logits `[len(draft.ids) + 1, vocabulary]` behind the last token and
        behind each guess. What is not taken from the iterator has not been drawn.
        """
        for place, id in enumerate(draft.ids):
            drawn, kept = self._judge(sampler, rows[place], id, draft, place)
            yield drawn, kept
            if not kept:
                return
        yield sampler.draw(rows[len(draft.ids)]), False

    def _judge(
        self, sampler: Sampler, row: npt.NDArray[np.float32], id: int, draft: Draft, place: int
    ) -> tuple[Drawn, bool]:
        drawn_from = draft.drawn_from[place]
        if self.exact and drawn_from is None:
            drawn = sampler.draw(row)
            return drawn, drawn.id == id
        if sampler.greedy:
            return self._greedily(sampler, row, id)
        weights = sampler.weigh(row)
        weights /= weights.sum()
        likely = float(weights[id])
        if self._typical:
            if likely > _typical_level(weights):
                return sampler.take(row, id), True
            drawn = sampler.draw(row)
            return drawn, drawn.id == id
        if sampler.chance("accept") * self._epsilon * draft.likely[place] < likely:
            return sampler.take(row, id), True
        rest = _residual(weights, drawn_from, draft.columns, id)
        return sampler.take(row, pick(rest, sampler.chance("residual"))), False

    def _greedily(
        self, sampler: Sampler, row: npt.NDArray[np.float32], id: int
    ) -> tuple[Drawn, bool]:
        logits = sampler.adjusted(row)
        if self._typical:
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            kept = float(weights[id]) > _typical_level(weights)
        else:
            kept = float(logits[id]) >= float(logits.max()) + math.log(self._epsilon)
        if kept:
            return sampler.take(row, id), True
        drawn = sampler.draw(row)
        return drawn, drawn.id == id


def _typical_level(weights: Row) -> float:
    some = weights[weights > 0]
    entropy = -float((some * np.log(some)).sum())
    return min(_TYPICAL_LEAST, _TYPICAL_SHARE * math.exp(-entropy))


def _residual(
    weights: Row, drawn_from: Row | None, columns: npt.NDArray[np.int64] | None, id: int
) -> Row:
    rest: Row = weights.copy()
    if drawn_from is None:
        rest[id] = 0.0
    elif columns is None:
        rest -= drawn_from
    else:
        rest[columns] -= drawn_from
    np.maximum(rest, 0.0, out=rest)
    # Nothing is left where p and q are equal, and rounding alone brought us here.
    return rest if rest.any() else weights
