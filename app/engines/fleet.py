"""Many engines as one: each model is served by a ready-made engine, or by a pool of servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Self, TypeAlias

from app.catalog import ModelCard
from app.engines.backend import Backend, fingerprint
from app.engines.draining import Drains
from app.engines.pool import Pool
from app.engines.replica import Replica, ReplicaStatus, Upkeep
from app.errors import ConfigError, UnknownModel
from app.types import Call, Capabilities, Chunk, Engine, Load, Tokens

MakeBackend: TypeAlias = Callable[[ModelCard, str], Backend]
"""A backend for this model on the server at this URL. Must open nothing yet."""

# Of a card: what no server is concerned with.
_OURS = {"urls", "aliases", "price", "max_running", "confidence", "throughput"}


@dataclass(frozen=True, slots=True)
class Sharing:
    """How calls are spread and held back."""

    max_waiting: int = 256  # calls of one model; more are refused
    margin: int = 8  # calls by which the server that knows a prompt may be busier than another


@dataclass(frozen=True, slots=True)
class _Post:
    """A pool of the fleet and who is to serve in it."""

    pool: Pool
    card: ModelCard
    replicas: Sequence[Replica]


@dataclass(eq=False)
class Fleet:
    """An Engine over all models of a catalog. Made by `build`.

    A start, and a change of the catalog while it runs:

        fleet = Fleet.build(cards, make_backend, engines)
        await fleet.start()
        ...
        after = Fleet.build(new_cards, make_backend, engines, previous=fleet)  # may raise
        await after.start()  # takes over: until it returns, `fleet` serves as before
        ...
        await after.aclose()

    A server whose URL and card are as before is taken over as it is, with its health, its running
    calls, its queue and what is known of its prefixes; prices, aliases, `max_running` and other
    URLs may have changed. All others of `fleet` end what they run and what waits for them, then
    are closed. Streams of `fleet` go on untouched, and it hands on to `after` what it is still
    asked for: an answer that began under the old catalog may go on to its next call. There can be
    one successor only, so whoever reloads does one at a time. Once replaced, `fleet` needs no
    `aclose`. An `after` that was not started, or whose start was cancelled, leaves `fleet` alone.
    """

    engines: Mapping[str, Engine]  # ready-made, by model; whoever made them starts and closes them
    _posts: Mapping[str, _Post]
    _fresh: Sequence[Replica]  # not taken over from `_previous`
    _previous: Fleet | None = None
    _successor: Fleet | None = None
    _drains: Drains = field(default_factory=Drains)
    _closed: bool = False

    @classmethod
    def build(
        cls,
        cards: Iterable[ModelCard],
        make_backend: MakeBackend,
        engines: Mapping[str, Engine] | None = None,
        *,
        previous: Fleet | None = None,
        upkeep: Upkeep | None = None,
        sharing: Sharing | None = None,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """A fleet that is not started. Changes nothing of `previous`.

        `engines`: by model name, those that are no servers. Raises ConfigError for a card that
        nothing serves, and what `make_backend` raises. `upkeep` and `sharing` are for what is not
        taken over. `clock` is in seconds, and that of `Goals.deadline`.
        """
        engines, random = engines or {}, random or Random()
        upkeep, sharing = upkeep or Upkeep(), sharing or Sharing()
        posts: dict[str, _Post] = {}
        fresh: list[Replica] = []
        for card in cards:
            if card.name in engines:
                continue
            if not card.urls:
                raise ConfigError(f"[models.{card.name}]: no {card.engine} engine is there for it")
            pool = None if previous is None else previous._alike(card)
            replicas: list[Replica] = []
            kept = {replica.url: replica for replica in pool.replicas} if pool else {}
            for url in card.urls:
                if url not in kept:
                    kept[url] = Replica(card, make_backend(card, url), upkeep, random, clock)
                    fresh.append(kept[url])
                replicas.append(kept[url])
            if pool is None:
                pool = Pool(
                    card,
                    max_waiting=sharing.max_waiting,
                    margin=sharing.margin,
                    random=random,
                    clock=clock,
                )
            posts[card.name] = _Post(pool, card, replicas)
        return cls(dict(engines), posts, fresh, previous)

    async def start(self) -> None:
        """Ask every new server once, all at the same time, and take over from `previous`.

        Takes `Upkeep.probe_limit` seconds at most, and does not fail because a server is down:
        those that did not answer are asked again in the background. A fleet without a `previous`
        serves meanwhile by those that did. Raises RuntimeError where this fleet or `previous` is
        closed, or `previous` has a successor already; then nothing has changed.
        """
        first = self._previous is None
        try:
            if first:
                self._take_over()
            self._check()
            for replica in self._fresh:
                replica.objection = self._objection
                replica.watch()
            await asyncio.gather(*(replica.asked() for replica in self._fresh))
            self._check()
        except BaseException:
            await self.aclose()
            raise
        if not first:
            self._take_over()

    async def aclose(self) -> None:
        """Take no more calls, watch no more, and close every server's backend.

        Who waits gets EngineUnavailable. Streams that are still open break off.
        """
        if self._successor is not None or self._closed:
            return
        self._closed = True
        if self._previous is not None:  # it was not started: all else is still its predecessor's
            await self._close(self._fresh)
            return
        for post in self._posts.values():
            post.pool.close()
        await self._close([replica for post in self._posts.values() for replica in post.replicas])
        await self._drains.aclose()

    def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        """Answer a call, as `Engine` and `Pool` say. Raises UnknownModel at once."""
        return self._engine(call.model).generate(call)

    async def count(self, call: Call) -> int:
        """Prompt tokens that this call reads. Raises UnknownModel, and as `Pool.count` does."""
        return await self._engine(call.model).count(call)

    async def tokenize(self, call: Call, names: bool) -> Tokens:
        return await self._engine(call.model).tokenize(call, names)

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        return await self._engine(model).detokenize(model, ids)

    def capabilities(self, model: str) -> Capabilities:
        """What every ready server of this model can do. Raises UnknownModel."""
        return self._engine(model).capabilities(model)

    def load(self, model: str) -> Load:
        """How busy this model is; it is healthy where a server is ready. Raises UnknownModel."""
        return self._engine(model).load(model)

    def replicas(self) -> list[ReplicaStatus]:
        """All servers of the fleet, in the catalog's order, then those that are draining."""
        if self._successor is not None:
            return self._successor.replicas()
        found = [replica.status() for post in self._posts.values() for replica in post.replicas]
        return found + self._drains.status()

    def _engine(self, model: str) -> Engine:
        if self._successor is not None:
            return self._successor._engine(model)
        if model in self.engines:
            return self.engines[model]
        if model not in self._posts:
            raise UnknownModel(f"The model {model!r} does not exist", param="model")
        return self._posts[model].pool

    def _alike(self, card: ModelCard) -> Pool | None:
        """The pool whose servers see no difference between its card and this one."""
        post = self._posts.get(card.name)
        if post is None:
            return None
        same = post.card.model_dump(exclude=_OURS) == card.model_dump(exclude=_OURS)
        return post.pool if same else None

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("the fleet was closed before it had started")
        previous = self._previous
        if previous is not None and (previous._closed or previous._successor is not None):
            raise RuntimeError("the previous fleet is closed, or replaced by another")

    def _take_over(self) -> None:
        previous, self._previous = self._previous, None
        if previous is not None:
            self._drains = previous._drains
        mine = [post.pool for post in self._posts.values()]
        for post in self._posts.values():
            gone = post.pool.renew(post.card, post.replicas)
            if gone:
                self._drains.drop(post.pool, gone)
            for replica in post.replicas:
                replica.objection = self._objection
        if previous is not None:
            for post in previous._posts.values():
                if post.pool not in mine:
                    self._drains.drop(post.pool, post.pool.replicas)
            previous._successor = self

    def _objection(self, candidate: Replica) -> str | None:
        """Why this server may not serve: models of a family must have the same tokenizer."""
        mine, family = fingerprint(candidate.backend), candidate.card.family
        for other in (replica for post in self._posts.values() for replica in post.replicas):
            theirs = fingerprint(other.backend)
            if not other.ready or other.card.family != family or None in (mine, theirs):
                continue
            if mine != theirs:
                return (
                    f"its tokenizer is not that of {other.model} at {other.url},"
                    f" of the same family {family}"
                )
        return None

    async def _close(self, replicas: Sequence[Replica]) -> None:
        await asyncio.gather(*(replica.close() for replica in replicas))
