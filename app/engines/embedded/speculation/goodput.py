"""Whether a guess pays: measured cost of a step, measured chance of acceptance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

_FORGET = 0.99  # of what was measured, at each further measurement
_PRIOR = 4.0  # measurements that the first guess of a cost counts as much as
_EVERY = 8  # measurements between two fits
_LEAST = 1e-9


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds, for measuring steps: on a CPU those in which this thread was at work, since to be
    held up by other processes is not what a pass costs."""
    return time.thread_time if device.type == "cpu" else time.perf_counter


class StepCost:
    """Seconds of one pass: `a + b * (sequences - 1) + c * further rows + d * tokens attended`.

    A row is a token that is read, a further row one beyond the first of its sequence; it attends
    to all tokens before it. Fitted by least squares to what was measured, old measurements
    counting less and less, so that it follows the load of the machine. TurboSpec (Liu et al. 2024,
    arXiv 2406.14066) has the same form, profiled beforehand.
    """

    def __init__(self, first: float, sequence: float, row: float, attended: float = 0.0) -> None:
        """Seconds, as far as they are known before anything was measured; `attended`: of a
        thousand tokens."""
        self._fitted = np.array([first, sequence, row, attended])
        self._scale = np.array([1.0, 1.0, 1.0, 0.5])
        scale = np.diag(self._scale) * _PRIOR
        self._products, self._targets = scale, scale @ self._fitted
        self._since = 0

    def copy(self) -> StepCost:
        """The fit as it stands, to be learned on by itself."""
        return StepCost(*self._fitted.tolist())

    def observe(self, sequences: int, rows: int, attended: int, seconds: float) -> None:
        """A pass over so many sequences and further rows, whose rows all together attended to so
        many tokens, took so long."""
        # A process that was held up says nothing about the model: far-off values are cut.
        seconds = min(seconds, 2.5 * self.seconds(sequences, rows, attended))
        said = np.array([1.0, sequences - 1.0, float(rows), attended / 1000])
        # What is forgotten is replaced by the fit as it stands: no direction is ever unknown.
        hold = (1 - _FORGET) * self._scale
        self._products = _FORGET * self._products + np.diag(hold) + np.outer(said, said)
        self._targets = _FORGET * self._targets + hold * self._fitted + seconds * said
        self._since += 1
        if self._since % _EVERY == 0:
            self._fitted = self._fit()

    def _fit(self) -> npt.NDArray[np.float64]:
        """The least squares, of costs that are all above nothing."""
        free = np.ones(len(self._targets), bool)
        while True:
            fitted = np.where(free, 0.0, _LEAST)
            known = self._targets - self._products @ fitted
            fitted[free] = np.linalg.solve(self._products[np.ix_(free, free)], known[free])
            low = fitted < _LEAST
            if not low.any():
                return fitted
            # What would save time is held at nothing, and the others are fitted anew: cut short
            # they would make up for what is no longer there.
            free &= ~low

    def seconds(self, sequences: int, rows: int = 0, attended: int = 0) -> float:
        """Expected seconds of a pass."""
        first, sequence, row, thousand = self._fitted.tolist()
        return float(first + sequence * (sequences - 1) + row * rows + thousand * attended / 1000)

    def row(self, attended: int) -> float:
        """Seconds of one further row that attends to so many tokens."""
        _, _, row, thousand = self._fitted.tolist()
        return float(row + thousand * attended / 1000)


class Chances:
    """How often guesses of each kind were accepted, as far as that is known.

    A table of one sequence begins with what its parent has, and teaches it.
    """

    def __init__(
        self, prior: Sequence[float], weight: float, parent: Chances | None = None
    ) -> None:
        """`weight`: how many observations the prior counts as much as."""
        self._prior = prior
        self._weight = weight
        self._parent = parent
        self._seen = [0.0] * len(prior)
        self._kept = [0.0] * len(prior)

    def child(self, weight: float) -> Chances:
        """The table of one sequence."""
        return Chances(self._prior, weight, self)

    def __getitem__(self, kind: int) -> float:
        prior = self._prior[kind] if self._parent is None else self._parent[kind]
        return (self._kept[kind] + self._weight * prior) / (self._seen[kind] + self._weight)

    def learn(self, kind: int, kept: bool) -> None:
        if self._parent is not None:
            self._parent.learn(kind, kept)
        decay = 0.998 if self._parent is None else 0.97
        self._seen[kind] = decay * self._seen[kind] + 1
        self._kept[kind] = decay * self._kept[kind] + kept


class Prospect:
    """How much of a prompt a draft model reads for a new sequence, by what its drafts have won.

    To guess it has to read the end of the prompt, which takes it as long as some tokens. So little
    of it is read where much would take more than can be hoped to be won, and the model is left out
    where little would too; but for one of some sequences, which finds out whether that is still so.
    """

    LONG, SHORT = 256, 64
    """Tokens of the prompt's end. After 64 smollm2-tiny's guesses stay 0.6 % less often than after
    256, and after a whole prompt 0.8 % more often; but of a good draft a fifth less after 64
    (Qwen2.5-Coder-0.5B before 1.5B, HumanEval and GSM8K)."""
    HOPE = 0.05  # tokens that a draft is expected to win before anything was measured
    _HOPE_WEIGHT = 10  # drafts that it counts as much as
    _KNOWN = 96  # drafts after which its mean is gone by, or sooner where it is clear
    _CHANCE = 0.6  # tokens that one draft wins more or less by chance
    _DRAFTS = 32  # of one sequence, so many are counted on
    _TRIED = 16  # of so many sequences that do without it one does not
    _LEAST = 0.01  # weight of the newest draft in the rolling mean

    def __init__(self) -> None:
        self._mean = self.HOPE
        self._seen = self._without = 0

    @property
    def mean(self) -> float:
        """Tokens that a draft wins."""
        return self._mean

    def window(self, length: int, each: float) -> int:
        """How many tokens of a prompt's end to read, of `length`; 0: the model is left out.

        `each`: tokens that could be written while it reads one.
        """
        for window in (self.LONG, self.SHORT):
            if self._mean * self._DRAFTS > min(window, length) * each:
                return window
        if self._seen < self._KNOWN and self._may_win:
            return self.SHORT
        self._without += 1
        return self.SHORT if self._without % self._TRIED == 0 else 0

    @property
    def _may_win(self) -> bool:
        """Whether its mean may be below nothing by chance alone."""
        return self._mean + 2 * self._CHANCE / math.sqrt(max(self._seen, 1)) > 0

    def learn(self, won: float) -> None:
        """A draft won so many tokens."""
        self._seen += 1
        weight = max(1 / (self._seen + self._HOPE_WEIGHT), self._LEAST)
        self._mean += weight * (_cut(won) - self._mean)


class Switch:
    """Whether a sequence lets the draft model guess: while that is measured to pay.

    What one draft won, in tokens, is what was accepted less what the time it took is worth, at the
    rate at which tokens are written. The rolling mean decides, between two levels, so that it does
    not flutter; off, it tries again after a while, and ever more seldom.
    """

    OFF, ON = -0.05, 0.02  # tokens a draft
    _FIRST, _LAST = 64, 1024  # tokens between two tries
    _WEIGHT = 0.05  # of the newest draft: one wins a token more or less, so the mean must be slow

    def __init__(self, expected: float) -> None:
        """`expected`: tokens that a draft wins, by other sequences."""
        self.on = True
        self._mean = expected
        self._next = 0
        self._wait = self._FIRST

    @property
    def mean(self) -> float:
        """Tokens that a draft wins."""
        return self._mean

    def wants(self, written: int) -> bool:
        """Whether to guess now, `written` being the tokens of the answer so far."""
        return self.on or written >= self._next

    def learn(self, won: float, written: int) -> None:
        self._mean += self._WEIGHT * (_cut(won) - self._mean)
        if self.on and self._mean < self.OFF:
            self.on, self._wait = False, self._FIRST
        elif not self.on and self._mean > self.ON:
            self.on = True
        if not self.on:
            self._next = written + self._wait
            self._wait = min(2 * self._wait, self._LAST)


def _cut(won: float) -> float:
    """What one draft or step says, cut: a process that was held up says nothing about it."""
    return min(max(won, -3.0), 3.0)


class Brake:
    """Whether a batch of some size is guessed for: until that has lost too much.

    A draft is made only where it is expected to pay, so what this guards against is that the
    expectation is wrong for batches of this size. One step wins or loses about a pass by chance; so
    what counts is the loss that has added up since guessing last was even (Page's test of a
    cumulative sum, 1954), in passes. After a while it is tried again, and ever more seldom.
    """

    _MOST = 32.0
    _FIRST, _LAST = 512, 16384  # tokens between two tries

    def __init__(self) -> None:
        self._lost = 0.0
        self._next = 0
        self._wait = self._FIRST

    def wants(self, written: int) -> bool:
        """Whether to guess now, `written` being the tokens of all sequences so far."""
        return written >= self._next

    def learn(self, won: float, written: int) -> None:
        """A step with guesses wrote so many tokens for each sequence more than plain steps would
        have in its time."""
        if not self.wants(written):
            return  # those who are not weighed guess on
        self._lost = max(self._lost - _cut(won), 0.0)
        if self._lost == 0.0:
            self._wait = self._FIRST
        elif self._lost > self._MOST:
            self._lost = self._MOST / 2  # a try may lose half of it
            self._next = written + self._wait
            self._wait = min(2 * self._wait, self._LAST)


class Pace:
    """Tokens a second that a batch of so many sequences writes, by the latest steps."""

    def __init__(self) -> None:
        self._tokens = 1.0  # of one sequence in a step, rolling
        self._stretch = 1.0  # how much longer a step takes than a plain one, rolling
        self.last = 0.0
        """What `tokens_a_second` said last."""

    def tokens_a_second(self, sequences: int, plain: float) -> float:
        """`plain`: seconds of a step of so many sequences without guesses.

        Not less than without guesses, which can be had at any time.
        """
        self.last = sequences / plain * max(self._tokens / self._stretch, 1.0)
        return self.last

    def observe(self, sequences: int, tokens: int, seconds: float, plain: float) -> None:
        """A step of so many sequences wrote so many tokens in so many seconds."""
        self._tokens += 0.05 * (tokens / sequences - self._tokens)
        self._stretch += 0.05 * (min(seconds / plain, 4.0) - self._stretch)
