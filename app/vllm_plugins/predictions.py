"""Which tokens of a prompt have their keys and values predicted, and in which pieces.

KV Prediction (Horton et al. 2024, arXiv 2410.08391). The connector claims to vLLM that so many
tokens behind those in its prefix cache are there; a `Job` puts them there, in pieces of at most
what a step has left of its tokens. Nothing here knows vLLM; `kv_connector.py` fits it in there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from app.nets.route import Route
from app.vllm_plugins import asks

LEAST = 32  # tokens: fewer are computed as soon as they are predicted
_QUARTER = 4  # of a step's tokens at least that much is ours
_LONGEST_ID = 128  # characters of a call's id


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks of its prompt."""

    predictor: str
    last: int = 1  # tokens at its end that are computed
    first: int = 0  # and at its beginning
    relevant: float = 0.0  # and of the rest the share that its end asks about
    call: str | None = None  # report under this id

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> Self | None:
        """From a request's `vllm_xargs`; None: it asks nothing. Raises ValueError."""
        found = {name: given[name] for name in asks.PREDICTION if name in given} if given else {}
        if not found:
            return None
        predictor, call = found.get(asks.KV), found.get(asks.KV_CALL)
        if not isinstance(predictor, str):
            raise ValueError(f"{asks.KV} is to name a predictor, not {predictor!r}")
        if call is not None and not (isinstance(call, str) and 0 < len(call) <= _LONGEST_ID):
            raise ValueError(f"{asks.KV_CALL} is to be a string of 1 to {_LONGEST_ID} characters")
        last, first = _whole(found, asks.KV_LAST, 1), _whole(found, asks.KV_FIRST, 0)
        share = found.get(asks.KV_RELEVANT, 0)
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise ValueError(f"{asks.KV_RELEVANT} is to be a number from 0 to 1, not {share!r}")
        return cls(predictor, last, first, float(share), call)

    def problem(self, able: asks.Predicting, salt: object) -> str | None:
        """Why this cannot be done for a request with this `cache_salt`; None: it can."""
        if not (isinstance(salt, str) and salt.startswith(asks.SALT) and salt != asks.SALT):
            return f"{asks.KV} needs a cache_salt that begins with {asks.SALT!r} and goes on"
        if self.predictor != asks.EXACT and self.predictor not in able.shares:
            there = ", ".join([*able.shares, asks.EXACT])
            return f"{asks.KV}: there is no predictor {self.predictor!r}; there are: {there}"
        return None


def _whole(given: Mapping[str, Any], name: str, least: int) -> int:
    value = given.get(name, least)
    if type(value) is not int or not least <= value < 2**31:  # True is an int, but no number here
        raise ValueError(f"{name} is to be a whole number from {least} on, not {value!r}")
    return int(value)


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiplications for a token, by those of computing it."""

    run: float  # of the layers that are run for every token from the prompt's beginning on
    share: float  # of those, and of the maps, for a predicted token


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens `start` to `end` of a prompt are put in place, so many of them `predicted`."""

    start: int
    end: int
    predicted: int

    @property
    def computed(self) -> int:
        return self.end - self.start - self.predicted


def span(ask: Ask, prompt: int, cached: int, cost: Cost | None) -> Span | None:
    """What to put in place of a prompt of so many tokens, behind the `cached` first ones.

    None: nothing, and all of it is computed. So it is where that is the cheaper way: the layers
    that are run have no cache of their own, and begin with the prompt. `cost` None: of EXACT.
    """
    end = prompt - ask.last
    if end - cached < LEAST:
        return None
    if cost is None:
        return Span(cached, end, 0)
    behind = end - min(max(ask.first, cached), end)
    found = Span(cached, end, behind - math.floor(ask.relevant * behind))  # about so many
    beyond = (1 - cost.run) * found.computed + (cost.share - cost.run) * found.predicted
    return found if cost.run * end + beyond < end - cached and found.predicted else None


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of a prompt, to be run now."""

    start: int
    end: int
    true: bool  # through all layers


@dataclass
class Job:
    """One prompt whose keys and values are being put in place."""

    request: str
    tokens: Sequence[int]  # of the prompt, up to the span's end
    blocks: Sequence[int]  # of the cache that hold them, in their order
    span: Span
    predictor: str
    route: Route = Route()
    at: int = 0  # tokens that have been run

    @property
    def done(self) -> bool:
        return self.at >= self.span.end

    def piece(self, budget: int) -> Piece:
        """The next tokens to run, at most `budget`."""
        # What is cached is run again for the sake of what follows, as if it were predicted; but for
        # the tokens at the beginning, where all layers of these are looked at.
        opens = self.at < self.route.begins and self.looked_at
        if self.at < self.span.start and self.route.stop and not opens:
            more = self.route.predicts(self.span.start)
            end = self.route.turn(self.span.start, self.span.end) if more else self.span.start
            return Piece(self.at, min(self.at + budget, end), true=False)
        end = self.route.turn(self.at, min(self.at + budget, self.span.end))
        return Piece(self.at, end, not self.route.predicts(self.at))

    @property
    def looked_at(self) -> bool:
        """Whether tokens that have yet to be computed see all layers of what is before them."""
        at = max(self.at, self.span.start)
        return self.span.end - at > self.route.predicted(at, self.span.end)

    def slots(self, start: int, end: int, block: int) -> list[int]:
        """Where in the cache, of blocks of `block` tokens, these tokens are."""
        return [self.blocks[at // block] * block + at % block for at in range(start, end)]


@dataclass
class Orders:
    """What the scheduler tells the worker before a step."""

    new: list[Job] = field(default_factory=list)
    over: set[str] = field(default_factory=set)  # requests that ended: nobody waits for them
    budget: int = 0  # tokens that this step may run beside its own


class Desk:
    """The scheduler's side: what each request is promised, and what the worker is told of it."""

    def __init__(
        self,
        able: asks.Predicting,
        costs: Mapping[str, Cost],
        largest: int,
        piece: Callable[[int], bytes],
    ) -> None:
        """`costs` by predictor; `largest`: tokens of one step of vLLM's, at most; `piece`: what a
        token adds to a text."""
        self._able = able
        self._costs = costs
        self._largest = largest
        self._piece = piece
        self._new: list[Job] = []
        self._failed: set[str] = set()  # requests that are to be computed from now on

    def ask(self, given: Mapping[str, Any] | None, salt: object) -> Ask | None:
        """What is asked for and can be: the door has refused the rest, or there was no door."""
        try:
            ask = Ask.read(given)
        except ValueError:
            return None
        return ask if ask is not None and ask.problem(self._able, salt) is None else None

    def promise(self, request: str, ask: Ask | None, prompt: int, cached: int) -> Span | None:
        """What will be put in place of this request's prompt. Changes nothing."""
        if ask is None or request in self._failed:
            return None
        return span(ask, prompt, cached, self._costs.get(ask.predictor))

    def order(
        self, request: str, ask: Ask, prompt: Sequence[int], blocks: Sequence[int], claimed: int
    ) -> Span:
        """Have so many tokens put in place, as promised: they are in these blocks now."""
        end, route = len(prompt) - ask.last, Route()
        if ask.predictor != asks.EXACT:
            pieces = list(map(self._piece, prompt)) if ask.relevant else [b""] * len(prompt)
            route = Route.of(pieces, ask.first, ask.last, ask.relevant)
        found = Span(end - claimed, end, route.predicted(end - claimed, end))
        self._new.append(Job(request, prompt[:end], blocks, found, ask.predictor, route))
        return found

    def fail(self, requests: set[str]) -> None:
        """These requests are computed from now on."""
        self._failed |= requests

    def forget(self, request: str) -> None:
        self._failed.discard(request)

    def orders(self, over: set[str], scheduled: int) -> Orders:
        """For a step of so many tokens; each order is given once."""
        # A step with ours is no longer than one of vLLM's own, save that prompts which came later
        # and are computed cannot hold ours up.
        budget = max(self._largest - scheduled, self._largest // _QUARTER, LEAST)
        found = Orders(self._new, set(over), budget)
        self._new = []
        return found
