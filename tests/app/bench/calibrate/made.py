"""Answers of a calibration whose truth is known."""

from dataclasses import dataclass, field

import numpy as np

from app.bench.calibrate.observed import Observed, Point
from app.profile import Law

KINDS = ("code", "facts", "math")
_WORDS = {
    "code": "def add(a, b):\n    return a + b\nWrite the class, import nothing;\n",
    "facts": "Which is it?\nA. one\nB. two\nC. three\nAnswer with a letter.",
    "math": "How many apples are 3 + 4 in total, and how many of each? Show your steps.",
}


@dataclass
class Made:
    """A way, and what is true of it."""

    name: str
    worth: float = 0.5  # the chance of a right answer
    policy: str = "direct"
    cost: Law | None = field(default=Law(base=0, prompt=1e-8, completion=5e-8))
    seconds: Law = field(default=Law(base=0.1, prompt=0.001, completion=0.02, load=0.3))
    fails: float = 0.0  # the chance
    noise: float = 0.05  # relative, of seconds
    entropy: float | None = None  # of its first tokens, on average


def points(*ways):
    return [
        Point(way.name, way.name, way.policy, {}, (way.name,), "exact", "0" * 16) for way in ways
    ]


def texts(questions=20, kinds=KINDS):
    return {
        f"{kind}/{number}": _WORDS[kind] + " and" * (number % 7)
        for kind in kinds
        for number in range(questions)
    }


def answers(*ways, questions=20, seeds=(1, 2), levels=(1, 4), kinds=KINDS, random=7, hard=None):
    """What these ways answered. `hard`: of a question's number, whether it is; then a way answers
    it right with its chance, and any other with certainty."""
    rng = np.random.default_rng(random)
    return [
        _answer(way, kind, number, seed, level, rng, hard is None or hard(number))
        for way in ways
        for kind in kinds
        for number in range(questions)
        for seed in seeds
        for level in levels
    ]


def _answer(way, kind, number, seed, level, rng, hard):
    key = (way.name, kind, f"{kind}/{number}", seed, level)
    if rng.random() < way.fails:
        return Observed(*key, worth=0.0, failed="503: no engine")
    prompt, completion = int(rng.integers(20, 400)), int(rng.integers(5, 120))
    chance = rng.lognormal(0, way.noise)
    return Observed(
        *key,
        worth=float(rng.random() < way.worth) if hard else 1.0,
        failed="",
        prompt=prompt,
        completion=completion,
        cost=None if way.cost is None else way.cost.at(prompt, completion),
        first_s=way.seconds.at(prompt, 0, level - 1) * chance,
        seconds=way.seconds.at(prompt, completion, level - 1) * chance,
        beside=level - 1,
        met=level - 1,
        entropy=None if way.entropy is None else float(rng.normal(way.entropy, 0.1)),
    )
