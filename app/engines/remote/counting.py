"""What a call by ids has used: vLLM's running totals become differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.engines.remote.origin import UNTOLD
from app.types import Decoding, Usage
from app.vllm_plugins import asks


class Count:
    """The usage of one call."""

    def __init__(self, decoding: Decoding) -> None:
        self.placed: asks.Placed | None = None  # of the prompt, as reported
        self._decoding = decoding
        self._told = Usage()
        self._total = Usage()

    def last_news(self, written: int) -> Usage:
        """With the finish chunk."""
        if not self._total.prompt:
            self._total = replace(self._total, prompt=UNTOLD)
        return self.news(written)

    def take(self, usage: Any) -> None:
        """Of a vLLM event: running totals."""
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        counts = (usage.get("prompt_tokens"), cached, usage.get("completion_tokens"))
        prompt, cached, completion = (n if isinstance(n, int) and n > 0 else 0 for n in counts)
        cached, predicted = self._parted(min(cached, prompt))
        self._total = replace(
            self._total,
            prompt=max(prompt, self._total.prompt),
            cached=max(cached, self._total.cached),
            predicted=max(predicted, self._total.predicted),
            completion=max(completion, self._total.completion),
        )

    def _parted(self, cached: int) -> tuple[int, int]:
        """Tokens that were cached, and that were predicted, of those that vLLM says were cached.

        It counts them alike, and with them those that were computed beside it. Where the report
        of a call that asked for predictions is missing, all of them may have been predicted.
        """
        if self._decoding.kv is None:
            return cached, 0
        if self.placed is None:
            return 0, cached
        predicted = min(self.placed.predicted, cached)
        return max(cached - predicted - self.placed.computed, 0), predicted

    def take_guesses(self, metrics: Any) -> None:
        """Only of a call that asked for them: others cost what they cost without.

        vLLM tells of them with its last event: of an answer that we cut short they stay 0.
        `_written_guesses` says how many of those that it accepted are in the answer.
        """
        asked = self._decoding.speculation is not None and isinstance(metrics, dict)
        told = metrics.get("speculative_decoding") if asked else None
        if not isinstance(told, dict):
            return
        names = ("num_draft_tokens", "num_accepted_draft_tokens", "num_spec_steps")
        drafted, accepted, passes = (
            n if isinstance(n := told.get(name), int) and n > 0 else 0 for name in names
        )
        self._total = replace(
            self._total,
            drafted=max(drafted, self._total.drafted),
            accepted=max(min(accepted, drafted), self._total.accepted),
            passes=max(passes, self._total.passes),
        )

    def news(self, written: int) -> Usage:
        """What was used since it was last told; at least the tokens that we have seen."""
        now, told = self._total, self._told
        completion = max(now.completion, written)
        news = Usage(
            now.prompt - told.prompt,
            now.cached - told.cached,
            completion - told.completion,
            now.drafted - told.drafted,
            max(self._written_guesses(completion) - told.accepted, 0),
            now.passes - told.passes,
            now.predicted - told.predicted,
        )
        self._told += news
        return news

    def _written_guesses(self, completion: int) -> int:
        """How many guesses can be among so many tokens, at most as many as were accepted.

        vLLM counts before it cuts at the model's end or at max_tokens. Every pass wrote a token
        that was no guess, except the last, which may have been cut before it; and the prompt's
        own pass wrote one.
        """
        return min(self._total.accepted, max(completion - self._total.passes, 0))
