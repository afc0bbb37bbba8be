"""Ways to read a prompt, and what each leaves for the answer: time, likelihood, agreement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from app.bench.reading import Measured
from app.engines.embedded.auxiliary import AuxiliaryPass, AuxiliaryPredictor
from app.engines.embedded.kv_cache import SequenceCache
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.prediction import Predictor
from app.engines.embedded.predictors import AnyPredictor
from app.engines.embedded.revision import Revision

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
    recompute: float = 0.0  # of what is predicted the share that is computed after all
    kept: float = 1.0  # of the prompt: its end, behind the template's opening

    def cost(self, tokens: int) -> float:
        """Share of the exact way's multiplications for a prompt of so many tokens."""
        if self.predictor is None:
            return self.share
        predicted = max(0, tokens - self.first - self.last)
        again = self.recompute * (1 - self._computed)  # by the layers that had not
        return 1 - (1 - self.share - again) * predicted / tokens

    @property
    def _computed(self) -> float:
        """The share of the layers that run for a predicted token."""
        if not isinstance(self.predictor, Predictor):
            return 0.0
        return self.predictor.kept / self.model.decoder.config.layers


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
    ids = truncated(ids, way.kept, opening)
    decoder = way.model.decoder
    memory = decoder.kv_memory(_KV_BYTES, 0)
    longest = max(tokens, len(reference), len(exact or ()))
    cache = memory.acquire(list(ids), len(ids) + longest + 1)
    if cache is None:
        raise MemoryError(f"{_KV_BYTES} bytes do not hold {len(ids)} tokens")
    began = clock()
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
    stop = max(len(ids) - way.last, way.first) if way.predictor is not None else 0
    aside: AuxiliaryPass | None = None
    revision = Revision(way.recompute)
    if isinstance(way.predictor, AuxiliaryPredictor) and way.first < stop:
        aside = way.predictor.begin(ids[:stop])
    while cache.length < end:
        at = cache.length
        bounds = (end, stop if at < stop else end, way.first if at < way.first else end)
        piece = torch.tensor(ids[at : min((at // _CHUNK + 1) * _CHUNK, *bounds)])
        span = Span(cache, len(piece))
        if way.predictor is None or not way.first <= at < stop:
            decoder.forward(piece, [span])
        elif isinstance(way.predictor, Predictor):
            revision.keep(at, decoder.predict(piece, span, way.predictor))
            if cache.length == stop and way.recompute:
                _revise(decoder, way.predictor, revision, cache, ids[stop:])
        elif aside is not None and (made := aside.advance(at, len(piece), _CHUNK)) is not None:
            decoder.place(made, cache)
    if aside is not None:
        aside.close()


def _revise(
    decoder: Decoder,
    predictor: Predictor,
    revision: Revision,
    cache: SequenceCache,
    ids: Sequence[int],
) -> None:
    """Compute what the prompt's end attends to most, as the scheduler does."""
    end = Span(cache, len(ids))
    revision.choose(decoder.attended(torch.tensor(ids), end, predictor.telling), _CHUNK)
    while not revision.over:
        start, stream = revision.take()
        decoder.revise(stream, cache, start, predictor.kept)


def _answer(model: Measured, cache: SequenceCache, first: int, tokens: int) -> list[int]:
    decoder, written = model.decoder, [first]
    while len(written) < tokens and written[-1] not in model.tokenizer.eos_ids:
        hidden = decoder.forward(torch.tensor(written[-1:]), [Span(cache, 1)])
        written.append(int(decoder.logits(hidden).argmax()))
    return written
