"""Ways to read a prompt, and what each leaves for the answer: time, likelihood, agreement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from app.bench.reading import Measured
from app.engines.embedded.auxiliary import AuxiliaryPass, AuxiliaryPredictor
from app.engines.embedded.kv_cache import SequenceCache
from app.engines.embedded.model import Span
from app.engines.embedded.prediction import Predictor
from app.engines.embedded.predictors import AnyPredictor
from app.nets.relevance import relevant
from app.nets.route import Route

_KV_BYTES = 2**31
_CHUNK = 64  # tokens of a piece, as the engine reads


@dataclass(frozen=True)
class Way:
    """A way to read a prompt: exactly, through a predictor, by another model, or a part of it."""

    name: str
    model: Measured
    share: float  # of the exact way's multiplications, for a token that is not computed exactly
    predictor: AnyPredictor | None = None
    first: int = 0  # tokens that are computed all the same, at the beginning
    last: int = 1  # and at the end
    relevant: float = 0.0  # of the rest the share that the end asks about: computed; without a
    # predictor that is all of the rest that is read
    kept: float = 1.0  # of the prompt: its end, behind the template's opening

    def cost(self, tokens: int) -> float:
        """Share of the exact way's multiplications for a prompt of so many tokens."""
        if self.predictor is None:
            return self.share
        predicted = (1 - self.relevant) * max(0, tokens - self.first - self.last)
        return 1 - (1 - self.share) * predicted / tokens

    def route(self, ids: Sequence[int]) -> Route:
        """How it reads this prompt."""
        if self.predictor is None:
            return Route()
        return Route.of(self._pieces(ids), self.first, self.last, self.relevant)

    def taken(self, ids: Sequence[int], opening: int) -> list[int]:
        """What it reads of a prompt; `opening`: tokens that its template writes first."""
        if self.predictor is not None or not self.relevant:
            return truncated(ids, self.kept, opening)
        first, stop = max(self.first, opening), len(ids) - self.last
        found = relevant(self._pieces(ids), range(first, max(stop, first)), self.relevant)
        between = (id for each in found for id in ids[each.start : each.stop])
        return [*ids[:first], *between, *ids[max(stop, first) :]]

    def _pieces(self, ids: Sequence[int]) -> list[bytes]:
        return list(map(self.model.tokenizer.piece, ids))


@dataclass(frozen=True)
class Read:
    """What came of one prompt."""

    seconds: float  # to the first token
    answer: tuple[int, ...]  # greedy
    nats: float  # of the reference, a token
    agreed: float  # share of the exact answer's tokens that are likeliest here too


def read(
    way: Way,
    ids: Sequence[int],
    reference: Sequence[int],
    exact: Sequence[int] | None,
    tokens: int,
    opening: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Read:
    """`exact`: the answer of the exact way, None: this is it; `opening`: tokens of the template
    before what the user says."""
    decoder = way.model.decoder
    memory = decoder.kv_memory(_KV_BYTES, 0)
    longest = max(tokens, len(reference), len(exact or ()))
    cache = memory.acquire(list(ids), len(ids) + longest + 1)
    if cache is None:
        raise MemoryError(f"{_KV_BYTES} bytes do not hold {len(ids)} tokens")
    began = clock()
    ids = way.taken(ids, opening)
    _fill(way, cache, ids)
    last = decoder.forward(torch.tensor(ids[-1:]), [Span(cache, 1)])
    first = int(decoder.logits(last).argmax())
    took = clock() - began
    start = cache.length

    def behind(written: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of the tokens behind the prompt, and behind each of these."""
        hidden = [last]
        if len(written) > 1:
            some = torch.tensor(written[:-1])
            hidden.append(decoder.forward(some, [Span(cache, len(some))]))
            cache.truncate(start)
        return torch.log_softmax(decoder.logits(torch.cat(hidden)), -1)

    logs = behind(reference)
    nats = -float(logs.gather(1, torch.tensor(reference)[:, None]).mean())
    answer = _answer(way.model, cache, first, tokens)
    cache.truncate(start)
    judged = torch.tensor(answer if exact is None else list(exact))
    agreed = float((behind(judged.tolist()).argmax(-1) == judged).float().mean())
    return Read(took, tuple(answer), nats, agreed)


def truncated(ids: Sequence[int], kept: float, opening: int) -> list[int]:
    """The template's opening and the prompt's end, together `kept` of it; the end is at least one
    token."""
    count = len(ids) if kept >= 1 else max(int(kept * len(ids)), opening + 1)
    return [*ids[:opening], *ids[len(ids) - (count - opening) :]]


def _fill(way: Way, cache: SequenceCache, ids: Sequence[int]) -> None:
    """Read all but the last token, in the pieces in which the engine does."""
    decoder, end = way.model.decoder, len(ids) - 1
    route = way.route(ids)
    aside: AuxiliaryPass | None = None
    if isinstance(way.predictor, AuxiliaryPredictor) and route.stop:
        aside = way.predictor.begin(ids[: route.stop])
    while cache.length < end:
        at = cache.length
        piece = torch.tensor(ids[at : min(route.end(at, _CHUNK), end)])
        span = Span(cache, len(piece))
        if not route.predicts(at):
            decoder.forward(piece, [span])
        elif isinstance(way.predictor, Predictor):
            decoder.predict(piece, span, way.predictor)
        elif aside is not None and (made := aside.advance(at, len(piece), _CHUNK)) is not None:
            decoder.place(made, cache)
    if aside is not None:
        aside.close()


def _answer(model: Measured, cache: SequenceCache, first: int, tokens: int) -> list[int]:
    decoder, written = model.decoder, [first]
    while len(written) < tokens and written[-1] not in model.tokenizer.eos_ids:
        hidden = decoder.forward(torch.tensor(written[-1:]), [Span(cache, 1)])
        written.append(int(decoder.logits(hidden).argmax()))
    return written
