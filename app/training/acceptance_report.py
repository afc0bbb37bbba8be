"""An acceptance head on held-out drafts, beside what can be said without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from app.nets.acceptance_head import AcceptanceHead
from app.training.acceptance import logits_of
from app.training.acceptance_samples import Samples
from app.training.calibration import (
    Array,
    Measure,
    Outcomes,
    area,
    best_level,
    brier,
    calibration_error,
    measured,
    speed,
)

MEASURES: Mapping[str, Measure] = {"ece": calibration_error, "brier": brier, "auc": area}
_GAMMA = 0.2  # AdaEDL's
RAW, HEAD, LIKELY, BOUND = "raw head", "head", "q of the guess", "1 - sqrt(0.2 H)"


def report(
    head: AcceptanceHead, tuning: Samples, held: Mapping[str, Samples], longest: int, cost: float
) -> dict[str, Any]:
    """For each set of held-out drafts, of `longest` guesses each, and each way to say how likely
    it is that a guess is kept: how good that is, with 95 % intervals, and what a stop by it gives.

    Levels of stops are chosen on the drafts of `tuning`.
    """
    return {
        name: {
            "samples": len(samples),
            "accepted": _mean(samples),
            "speed": _speeds(head, tuning, samples, longest, cost),
        }
        | {
            way: {
                what: asdict(measured(measure, said, outcomes(samples)))
                for what, measure in MEASURES.items()
            }
            for way, said in ways(head, samples).items()
        }
        for name, samples in held.items()
    }


def ways(head: AcceptanceHead, samples: Samples) -> dict[str, Array]:
    """P(accept) of each guess `[n]` by the head, raw and corrected, and by two baselines."""
    logits = logits_of(head, samples)
    bound = 1 - (_GAMMA * samples.extras[:, 1]).sqrt()
    said = {
        RAW: head.biased(logits),
        HEAD: head.probability(logits),
        LIKELY: samples.extras[:, 0].exp(),
        BOUND: bound.clamp(0, 1),
    }
    return {name: tensor.double().numpy() for name, tensor in said.items()}


def outcomes(samples: Samples) -> Outcomes:
    kept, weight = samples.accepted.double().numpy(), samples.reached.double().numpy()
    return Outcomes(kept, weight, samples.text.numpy())


def chosen_level(head: AcceptanceHead, tuning: Samples, longest: int, cost: float) -> float:
    """The level of `1 - the product of P(accept)` that is best for these drafts."""
    doubt = _doubts(head, tuning, longest)[HEAD]
    return best_level(doubt, _by_draft(_accepted(tuning), longest), cost)


def _speeds(
    head: AcceptanceHead, tuning: Samples, held: Samples, longest: int, cost: float
) -> dict[str, Any]:
    """Of stops by the head and others, each at its best level for `tuning`, on held-out drafts."""
    kept = [_by_draft(_accepted(samples), longest) for samples in (tuning, held)]
    learned, here = _doubts(head, tuning, longest), _doubts(head, held, longest)
    found: dict[str, Any] = {}
    for name, doubt in learned.items():
        level = best_level(doubt, kept[0], cost)
        found[name] = {"level": level, "speed": speed(here[name], kept[1], level, cost)}
    fixed = {k: np.tile(np.arange(1, longest + 1) >= k, (len(kept[0]), 1)) for k in (1, 2, 3, 4, 6)}
    fixed = {k: ends for k, ends in fixed.items() if k <= longest}
    best = max(fixed, key=lambda k: speed(fixed[k].astype(float), kept[0], 0.5, cost))
    ends = np.tile(np.arange(1, longest + 1) >= best, (len(kept[1]), 1)).astype(float)
    found["fixed"] = {"level": best, "speed": speed(ends, kept[1], 0.5, cost)}
    return found


def _doubts(head: AcceptanceHead, samples: Samples, longest: int) -> dict[str, Array]:
    """Of each rule `[drafts, longest]`: what ends a draft where it is above the rule's level."""
    said = {name: _by_draft(each, longest) for name, each in ways(head, samples).items()}
    whole = said[HEAD]
    if head.sees == "after":  # it tells of a guess when the next one is there
        whole = np.concatenate([np.ones((len(whole), 1)), whole[:, :-1]], 1)
    product: Array = np.cumprod(whole, 1, np.float64)
    return {
        HEAD: 1 - product,
        LIKELY: 1 - said[LIKELY],
        BOUND: 1 - said[BOUND],
    }


def _accepted(samples: Samples) -> Array:
    found: Array = samples.accepted.double().numpy()
    return found


def _by_draft(values: Array, longest: int) -> Array:
    return values.reshape(-1, longest)


def _mean(samples: Samples) -> float:
    weight = samples.reached
    return float(torch.dot(samples.accepted, weight) / weight.sum())
