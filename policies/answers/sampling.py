"""How many answers are worth their price, and what each of them is asked with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

from app.types import Call

MOST = 64  # samples of one answer
_ALIKE = 1e-6  # a spread below which questions are alike: beyond, a Beta's logs have too few digits
_SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class Odds:
    """What is known of samples before there is one. Worth and costs are in right answers.

    The chance p that a sample is right varies between questions as a Beta(a, b) of mean `right` and
    of `spread` = 1 / (a + b + 1). Of a question's wrong samples the share `false_pass` passes the
    verifier; in a vote, it agrees on one wrong answer.
    """

    right: float
    spread: float
    false_pass: float
    wrong_costs: float  # that a wrong answer is given
    sample_costs: float  # of each sample

    @property
    def varies(self) -> bool:
        """Whether there is such a Beta at all."""
        return self.spread >= _ALIKE and 0 < self.right < 1

    @property
    def a(self) -> float:
        return self.right * (1 / self.spread - 1)

    @property
    def b(self) -> float:
        return (1 - self.right) * (1 / self.spread - 1)


def tries(odds: Odds, most: int) -> int:
    """With a verifier, in turn: how many samples to try until one passes, 1 to `most`.

    With f = false_pass * (1 - p) wrong ones that pass, the worth of at most K tries
    (Stroebl et al. 2024, arXiv 2411.17501, and a price for each) is
    U(K) = E[(1 - (1 - p - f)^K) * (p - wrong_costs * f - sample_costs) / (p + f)]. As
    1 - p - f = (1 - p)(1 - false_pass), the j-th further try adds something of the sign of
    E[(1 - p)^j * (p - wrong_costs * f - sample_costs)], that is of
    a - c (b + j) - s (a + b + j), with c = wrong_costs * false_pass, s = sample_costs: what the
    mean of p is worth after j samples that were wrong. So U rises until j passes
    (a - c b - s (a + b)) / (c + s): easy questions are answered by then, and what is left to try
    adds more wrong answers than right ones.
    """
    wrong, price = odds.wrong_costs * odds.false_pass, odds.sample_costs
    if not odds.varies:  # nothing is learned from a sample: one more is worth what the first was
        return most if odds.right - wrong * (1 - odds.right) - price > 0 else 1
    worth = odds.a - wrong * odds.b - price * (odds.a + odds.b)
    if wrong + price == 0:
        return most if worth > 0 else 1
    return min(max(math.ceil(min(worth / (wrong + price), most)), 1), most)


def worth_of_tries(odds: Odds, k: int) -> float:
    """U(k) as `tries` says, in right answers."""
    wrong, total, failed, passed_by = odds.wrong_costs * odds.false_pass, 0.0, 1.0, 1.0
    for j in range(k):
        p = _after(odds, j)
        total += passed_by * failed * (p - wrong * (1 - p) - odds.sample_costs)
        failed, passed_by = failed * (1 - p), passed_by * (1 - odds.false_pass)
    return total


def _after(odds: Odds, wrong: int) -> float:
    """The mean of p once so many samples were wrong."""
    return odds.a / (odds.a + odds.b + wrong) if odds.varies else odds.right


@lru_cache(maxsize=256)
def voters(odds: Odds, most: int) -> int:
    """How many samples to let vote, 1 to `most`: the number whose worth is the greatest."""
    return max(range(1, most + 1), key=lambda n: (worth_of_vote(odds, n), -n))


def worth_of_vote(odds: Odds, n: int) -> float:
    """P(right) - wrong_costs * P(wrong) - sample_costs * n of a vote of n, in right answers.

    x of n samples are right, beta-binomially; of the others y, binomially by `false_pass`, agree on
    one wrong answer, and the rest on none. The right one wins where x > y, and in half of the ties;
    of answers with a vote each, any may win. A vote that is decided sooner costs less than this.
    """
    won = sum(_beta_binomial(odds, n, x) * _wins(n, x, odds.false_pass) for x in range(1, n + 1))
    return won - odds.wrong_costs * (1 - won) - odds.sample_costs * n


def _wins(n: int, x: int, agree: float) -> float:
    """The chance that x of n votes win, where each of the others joins the rival by `agree`."""
    wrong = n - x
    below = _fewer(wrong, agree)
    if x == 1:
        return below[min(wrong, 1) + 1] / n
    tie = _binomial(wrong, x, agree) / 2 if x <= wrong else 0.0
    return below[min(x, wrong + 1)] + tie


@lru_cache(maxsize=256)
def _fewer(n: int, p: float) -> tuple[float, ...]:
    """P(Y < k) of a binomial Y of n, for k of 0 to n + 1."""
    return tuple(accumulate((_binomial(n, y, p) for y in range(n + 1)), initial=0.0))


def _binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def _beta_binomial(odds: Odds, n: int, k: int) -> float:
    """The chance that k of n samples are right."""
    if not odds.varies:
        return _binomial(n, k, odds.right)
    a, b = odds.a, odds.b
    logs = _log_beta(k + a, n - k + b) - _log_beta(a, b)
    return math.comb(n, k) * math.exp(logs)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def affordable(paid: int, prompt: int, completion: int) -> int:
    """How many answers of `completion` tokens `paid` pays for, each after a prompt; in one unit.

    `prompt` and `completion` are what these cost.
    """
    each = prompt + completion
    return paid // each if each else MOST


def unset(call: Call) -> bool:
    """Whether the client left the temperature open."""
    return call.sampling.temperature == 1.0 and call.body.get("temperature") is None


def sample(call: Call, number: int, temperature: float) -> Call:
    """One of several answers to the same call, by seeds that follow each other, if there is one.

    Log-probabilities are told, to compare answers.
    """
    seed = call.sampling.seed
    if seed is not None:
        seed = (seed + number + _SEEDS // 2) % _SEEDS - _SEEDS // 2
    logprobs = call.sampling.logprobs or 0
    sampling = replace(call.sampling, seed=seed, temperature=temperature, logprobs=logprobs)
    return replace(call, sampling=sampling)
