"""What one call under way has cost, and the most that it may still cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from app.catalog import Tariff
from app.types import NO_USAGE, Chunk, Usage


@dataclass
class Run:
    """One call under way. What it may still cost is derived, never stored; in 1e-12 units."""

    model: str
    price: Tariff
    prompt: int  # tokens it reads
    cap: int | None  # tokens that each choice may write; None: nothing limits it
    overrun: int
    choices: int = 1
    longest: int = 0  # tokens guessed for one pass, at most
    blind: bool = False  # whether it says nothing of what it writes before it has ended
    usage: Usage = NO_USAGE
    begun: bool = False  # an engine was set to work
    spoke: bool = False  # and said something of it
    finished: bool = False

    @property
    def cost(self) -> int:
        """What was reported, priced."""
        return self.price.of(self.usage)

    @property
    def unseen(self) -> int:
        """The most it can have cost beyond `cost` if its stream is closed now."""
        if self.finished:
            return 0
        # Where it guesses ahead, one more pass may have been made. Its tokens may be many, but of
        # those all but one are guesses that stayed: it costs what one token may.
        overrun = self.overrun + (self.longest > 0)
        left = overrun if self.cap is None else min(overrun, self._left)
        return self._unread * self.price.input + self._written(left)

    @property
    def worst(self) -> int:
        """The most it can cost when it runs to its cap."""
        if self.finished or self.cap is None:
            return self.cost
        # An engine may say at first that it read less than was counted, and more later.
        unread = self.prompt - self.usage.prompt
        return self.cost + unread * self.price.input + self._written(self._left)

    def booked(self, chunk: Chunk, capped: bool) -> Chunk:
        """The chunk as it may be handed on, once what it says is booked; `capped`: whether it is
        the budget that ends the call at `cap`."""
        self.begun = True
        used = self.bounded(chunk.usage)
        if used is not chunk.usage:
            chunk = replace(chunk, usage=used)
        self.usage += used
        self.spoke = self.spoke or chunk.usage != NO_USAGE or bool(chunk.raw or chunk.text)
        if chunk.finish is not None:
            self.finished = True
            if capped and chunk.finish == "length":
                chunk = replace(chunk, reason="budget")
        return chunk

    def bounded(self, news: Usage) -> Usage:
        """The news as far as they can be true: what an engine says may not break the budget."""
        if news is NO_USAGE:
            return news
        prompt = min(max(news.prompt, 0), self.prompt - self.usage.prompt)
        read = self.usage.prompt + prompt
        unread = read - self.usage.cached - self.usage.predicted
        cached = min(max(news.cached, 0), unread)
        written = max(news.completion, 0)
        plain = Usage(
            prompt=prompt,
            cached=cached,
            completion=written if self.cap is None else min(written, self._left),
            predicted=min(max(news.predicted, 0), unread - cached),
        )
        if self.longest:
            return self._with_guesses(plain, news)
        return news if plain == news else plain

    def _with_guesses(self, plain: Usage, news: Usage) -> Usage:
        """What was guessed too: no more than was reserved for the tokens whose passes it tells."""
        total = self.usage + plain
        passes = min(max(news.passes, 0), total.completion - total.passes)
        guesses = self.usage.wasted + max(news.drafted, 0)
        stays = min(max(news.accepted, 0), guesses, total.completion - total.accepted)
        told = replace(plain, accepted=stays, passes=passes)
        tokens = plain.completion + _untold(self.usage) - _untold(self.usage + told)
        drafted = min(max(news.drafted, 0), self.longest * tokens)
        return replace(told, drafted=drafted, accepted=min(stays, self.usage.wasted + drafted))

    def _written(self, tokens: int) -> int:
        """The most that so many further tokens cost, with guesses that were not told yet."""
        untold = self.longest * _untold(self.usage) * self.price.guess
        return tokens * self.price.written(self.longest) + untold

    @property
    def _left(self) -> int:
        return (self.cap or 0) * self.choices - self.usage.completion

    @property
    def _unread(self) -> int:
        # An engine reports the whole prompt, cached or not, with its first chunk.
        return 0 if self.usage.prompt else self.prompt


def _untold(usage: Usage) -> int:
    """Tokens written by passes of which an engine that guesses ahead has yet to tell."""
    return max(usage.completion - usage.accepted - usage.passes, 0)
