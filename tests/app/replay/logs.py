"""Synthetic logs of the planner, whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.replay.decisions import Log, of_documents

WAYS = ("small", "careful", "large")
COST = {"small": 1.0, "careful": 2.0, "large": 4.0}  # USD, of an easy request; three times, of hard
GOOD = {"small": (0.6, 0.2), "careful": (0.7, 0.4), "large": (0.8, 0.7)}  # of easy, of hard


def way(name: str, propensity: float, *, chosen: bool = False, **more: Any) -> dict[str, Any]:
    told = {"kind": "preset", "name": name, "chosen": chosen, "reason": "so", "fits": True}
    expected = {"usd": 1.0, "first_token_s": 0.1, "latency_s": 1.0, "quality": 1.0}
    return told | expected | {"propensity": propensity} | more


def document(id: str, ways: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """As GET /v1/decisions/ID gives it; `more` over its members, part by part."""
    told: dict[str, Any] = {
        "id": id,
        "object": "decisions",
        "request_id": "r",
        "key": "k",
        "at": "2026-11-27T00:00:00.000Z",
        "outcome": "kept",
        "request": {"model": "auto", "deadline_s": None, "first_token_s": None, "quality": None},
        "plan": {"policy": "planner", "preset": "auto", "options": {"explore": 0.1}},
        "estimate": {"budget_usd": None},
        "alternatives": [
            {"kind": "plan", "name": "auto", "chosen": True, "reason": "it was asked for"},
            *ways,
            {"kind": "answer", "name": "answer 1", "chosen": True, "reason": "of the policy"},
        ],
        "cost": {"usd": 1.0},
        "times": {"first_token_s": 0.1, "duration_s": 1.0},
    }
    for name, value in more.items():
        told[name] = told[name] | value if isinstance(value, dict) else value
    return told


def drawn(
    number: int, seed: int, *, explore: float = 0.6, wrong: float = 1.0
) -> tuple[Log, dict[str, float]]:
    """A log of a policy that takes `small` for easy requests and `large` for hard ones, but for
    `explore`, which all ways share; and the grades of its answers.

    What is expected of a way's cost is `wrong` times its mean.
    """
    random = np.random.default_rng(seed)
    documents, grades = [], {}
    for index in range(number):
        hard = bool(random.random() < 0.5)
        likely = {name: explore / len(WAYS) for name in WAYS}
        likely["large" if hard else "small"] += 1 - explore
        taken = WAYS[int(random.choice(len(WAYS), p=list(likely.values())))]
        mean = {name: COST[name] * (3 if hard else 1) for name in WAYS}
        ways = [
            way(
                name,
                likely[name],
                chosen=name == taken,
                usd=mean[name] * wrong,
                latency_s=mean[name] / 2,
                quality=GOOD[name][hard],
            )
            for name in WAYS
        ]
        cost = float(mean[taken] * random.uniform(0.8, 1.2))
        times = {"duration_s": cost / 2, "first_token_s": 0.1}
        request = {"deadline_s": 2.5}
        outcome = "kept" if times["duration_s"] <= 2.5 else "deadline"
        id = f"answer-{index}"
        documents.append(
            document(id, ways, cost={"usd": cost}, times=times, request=request, outcome=outcome)
        )
        grades[id] = float(random.random() < GOOD[taken][hard])
    return of_documents(documents), grades
