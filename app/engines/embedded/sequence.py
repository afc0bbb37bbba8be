"""One answer in the making: its tokens, its KV cache, what its reader has yet to take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from app.engines.embedded.auxiliary import AuxiliaryPass, AuxiliaryPredictor
from app.engines.embedded.detokenize import Detokenizer
from app.engines.embedded.gists import Gist, States
from app.engines.embedded.grammar import Constraint
from app.engines.embedded.kv_cache import EXACT, SequenceCache
from app.engines.embedded.prediction import Predictor
from app.engines.embedded.sampling import Drawn, Sampler
from app.errors import BadRequest, FarthingError
from app.nets.route import Route
from app.types import Call, Candidate, Chunk, EntropyStop, Finish, Token, Usage

_ONE = Usage(completion=1)


class Vocabulary(Protocol):
    """What a sequence needs to know of a tokenizer."""

    eos_ids: frozenset[int]

    def piece(self, id: int) -> bytes: ...


class RunningSequence:
    """The state of one call.

    The scheduler's thread writes it; the reader, on another, only takes chunks from the left of
    `outbox`, reads `error` and sets `cancelled`.
    """

    def __init__(
        self,
        call: Call,
        prompt: Sequence[int],
        limit: int,
        vocabulary: Vocabulary,
        outbox_size: int | None = None,
        on_news: Callable[[], None] | None = None,
        predictor: Predictor | AuxiliaryPredictor | None = None,
        gist: Gist | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """`prompt` without `call.written`; `limit`: most tokens to write (at least 1, but 0 with a
        `gist`, which is told what is read);
        `outbox_size`: chunks that may wait for the reader, None: any number; `predictor`: what
        `call.decoding.kv` names; `constraint`: what the answer is held to, behind `written`."""
        sampling = call.sampling
        self.call = call
        self.tokens = [*prompt, *call.written]  # prompt and answer, all of them
        self.prompt_length = len(self.tokens)  # of what is to be read before we write
        self.capacity = self.prompt_length + limit
        self.sampler = Sampler(
            sampling,
            prompt,
            call.written,
            entropy=call.decoding.entropy or call.decoding.stop is not None,
            held=constraint,
        )
        self.constraint = constraint
        self.cache: SequenceCache | None = None
        self.admitted: float | None = None  # time.monotonic()
        self.outbox: deque[Chunk] = deque()
        self.waited = False  # for a sibling to read the prompt
        self.finished = False
        self.cancelled = False
        self.error: FarthingError | None = None
        self.on_news = on_news
        self.predictor = predictor
        self.gist = gist
        self._auxiliary: AuxiliaryPass | None = None
        self._untold = Usage()
        self._moved, self._moving = 0, 0
        self._route: Route | None = None
        self._outbox_size = outbox_size
        self._vocabulary = vocabulary
        self._text = Detokenizer(vocabulary.piece, sampling.stop, call.said)
        self._text.prime(call.written)
        self._ends = frozenset() if sampling.ignore_eos else vocabulary.eos_ids
        self._stop_ids = frozenset(sampling.stop_token_ids)
        stop = call.decoding.stop
        self._entropy_stop = None if stop is None else EntropyWatch(stop)

    @property
    def written(self) -> int:
        """Tokens that this call has written."""
        return len(self.tokens) - self.prompt_length

    @property
    def reading(self) -> bool:
        """Whether part of the prompt is not in the cache yet."""
        return self.cache is None or self.cache.length < self.prompt_length

    @property
    def speculates(self) -> bool:
        """Whether its tokens may be guessed ahead."""
        return self.call.decoding.speculation is not None

    @property
    def predicts(self) -> bool:
        """Whether the next piece of the prompt is predicted."""
        if self.cache is None:
            return False
        return self.route.predicts(self.cache.length)

    @property
    def route(self) -> Route:
        """How the prompt is read. Found out by who reads it: of a long one it takes a while."""
        kv = self.call.decoding.kv
        if self._route is None and kv is not None:
            pieces = list(map(self._vocabulary.piece, self.tokens[: self.prompt_length]))
            self._route = Route.of(pieces, kv.first, kv.last, kv.relevant)
        return self._route or Route()

    def predicted_by(self, predictor: AuxiliaryPredictor, chunk: int) -> torch.Tensor | None:
        """Keys and values of the next tokens, as another model tells; None: it reads on first.

        It holds memory from the first of these calls on, until it has told all or `end_pass`.
        """
        if self.cache is None:
            raise ValueError("a sequence computes only once it has a cache")
        if self._auxiliary is None:
            self._auxiliary = predictor.begin(self.tokens[: self.route.stop])
        start, count = self.cache.length, len(self.upcoming(chunk))
        made = self._auxiliary.advance(start, count, chunk)
        if made is not None and start + len(made) == self.route.stop:
            self.end_pass()
        return made

    def end_pass(self) -> None:
        """Give back the memory of another model's pass over the prompt, where there is some."""
        if self._auxiliary is not None:
            self._auxiliary.close()
            self._auxiliary = None

    @property
    def space(self) -> str | None:
        """Where its keys and values may be kept; None: nowhere."""
        kv = self.call.decoding.kv
        edited = self.call.decoding.edited
        if edited is not None:
            return repr((self.call.account, "edited", edited)) if edited else None
        if kv is None:
            return EXACT
        # No other account goes on from it, by whatever name.
        whose = self.call.account, kv.predictor, kv.conversation
        return repr(whose) if kv.conversation else None

    @property
    def paused(self) -> bool:
        """Whether the reader has to take something before we write more."""
        return self._outbox_size is not None and len(self.outbox) >= self._outbox_size

    @property
    def over(self) -> bool:
        """Whether nothing may follow: it ran into a stop string, or has all of its form."""
        formed = self.constraint is not None and self.constraint.over
        return formed or self.stopped_by is not None

    @property
    def stopped_by(self) -> str | None:
        """The stop string that the answer has run into."""
        return self._text.stopped_by

    def admit(self, cache: SequenceCache) -> None:
        """Start on this cache, which may hold a prefix of the tokens already."""
        self.cache, self.admitted = cache, time.monotonic()
        usage = Usage(prompt=self.prompt_length, cached=cache.length)
        self.outbox.append(Chunk(model=self.call.model, usage=usage))

    def moves(self, at: int, count: int) -> None:
        """So many tokens from there on are in the cache, once those before them have been read."""
        self._moved, self._moving = at, count

    def take_moved(self) -> None:
        """Go on behind what was moved, where that has been reached."""
        if self._moving and self.cache is not None and self.cache.length == self._moved:
            self.cache.length += self._moving
            self._untold += Usage(cached=self._moving)
            self._moving = 0

    def borrowed(self, count: int) -> None:
        """So many tokens of the prompt were copied from another who had read them."""
        self._untold += Usage(cached=count)

    def reads_as(self, other: RunningSequence) -> bool:
        """Whether both are choices of one request, with the same prompt to read exactly."""
        return (
            bool(self.call.id)
            and self.call.id == other.call.id
            and self.space == other.space == EXACT
            and self.prompt_length == other.prompt_length
            and self.tokens[: self.prompt_length] == other.tokens[: self.prompt_length]
        )

    def predicted(self, count: int) -> None:
        """So many tokens of the prompt were predicted: the first token written will tell."""
        self._untold += Usage(predicted=count)

    def upcoming(self, chunk: int) -> list[int]:
        """The tokens to compute next: the last one written, or a piece of the prompt.

        What is computed together depends on the prompt alone, never on the load.
        """
        start = 0 if self.cache is None else self.cache.length
        if start >= self.prompt_length:
            return self.tokens[start:]
        # What is predicted, moved and computed are pieces of their own.
        ends = (self.route.end(start, chunk), self._moved, self.prompt_length)
        return self.tokens[start : min(end for end in ends if end > start)]

    def ends_with(self, id: int) -> bool:
        """Whether the answer is over with this token, whatever comes before it."""
        return id in self._ends or id in self._stop_ids

    def accept(self, drawn: Drawn, usage: Usage = _ONE) -> None:
        """Write this token: its chunk, with this usage, and after the last one the finish chunk,
        go out. Where the answer's form takes too much work it ends with `error` instead."""
        held = self.constraint
        if held is not None and held.fault is not None:
            error = BadRequest(f"{held.field}: {held.fault}", param=held.field)
            self.error, self.finished = error, True
            return
        model = self.call.model
        usage, self._untold = usage + self._untold, Usage()
        self.tokens.append(drawn.id)
        stops = self.ends_with(drawn.id)
        text = "" if stops else self._text.push(drawn.id)
        token = self._token(drawn)
        self.outbox.append(Chunk(text, (token,), model, usage=usage))
        finish = self._finish(drawn, stops)
        if finish is not None:
            self.finished = True
            reason: str | int | None = None
            if finish == "stop":
                reason = drawn.id if drawn.id in self._stop_ids else self._text.stopped_by
            rest = self._text.flush()
            self.outbox.append(Chunk(rest, model=model, finish=finish, stopped_by=reason))

    def gathered(self, model: States, hidden: torch.Tensor) -> None:
        """Its gist is told of these states; after the last of them it is over."""
        if self.gist is None:
            raise ValueError("a sequence without a gist gathers nothing")
        self.gist.take(model, hidden)
        if not self.reading:
            self.outbox.extend(self.gist.finish(self.call))
            self.finished = True

    def _finish(self, drawn: Drawn, stops: bool) -> Finish | None:
        watch = self._entropy_stop
        # Entropy comes first: who asked for it will write this very token anew.
        if watch is not None and drawn.entropy is not None and watch.crossed(drawn.entropy):
            return "entropy"
        if stops or self.over:
            return "stop"
        return "length" if len(self.tokens) >= self.capacity else None

    def _token(self, drawn: Drawn) -> Token:
        piece = self._vocabulary.piece
        entropy = None
        if drawn.entropy is not None and self.call.decoding.entropy:
            entropy = (drawn.entropy, drawn.entropy)
        top = tuple(Candidate(id, piece(id), logprob) for id, logprob in drawn.top)
        return Token(drawn.id, piece(drawn.id), drawn.logprob, top, entropy)


class EntropyWatch:
    """Tells the token at which the rolling mean of the entropy crosses an EntropyStop's level."""

    def __init__(self, rule: EntropyStop) -> None:
        self._rule = rule
        self._seen = 0
        self._window: deque[float] = deque(maxlen=rule.window)

    def crossed(self, entropy: float) -> bool:
        """Whether this token's entropy (bits) takes the mean across, and we may stop here."""
        rule = self._rule
        self._seen += 1
        self._window.append(entropy)
        if self._seen < max(rule.after, rule.window):
            return False
        mean = sum(self._window) / rule.window
        return mean >= rule.level if rule.rising else mean <= rule.level
