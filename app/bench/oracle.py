"""How fast speculation could be if each draft ended exactly where it goes wrong."""

from __future__ import annotations

from collections.abc import Sequence

from app.bench.racing import Track
from app.bench.reading import Measured
from app.engines.embedded.speculation.lookup import Lookup
from app.engines.embedded.speculation.speculator import LONGEST


def plain_by_oracle(
    track: Track, draft: Measured | None, prompt: Sequence[int], answer: Sequence[int], look: bool
) -> tuple[float, float]:
    """Seconds of plain decoding, and of the best choice of drafts there is, at measured costs.

    The choice is made by dynamic programming over the answer, knowing which guesses are right:
    before each pass, how many tokens are guessed, by the draft model or by look-up (`look`).
    """
    cost, tokens = track.cost, [*prompt, *answer]
    first = cost.seconds(1, 0, len(prompt) + len(answer) // 2)
    row = cost.row(len(prompt) + len(answer) // 2)
    guess = 0.0 if draft is None else track.draft_costs[draft.name].seconds(1, 0, 256)
    modelled = [0] * len(answer) if draft is None else _right(draft, tokens, len(prompt))
    looked = _looked_up(tokens, len(prompt)) if look else [0] * len(answer)
    best = [0.0] * (len(answer) + 1)
    for at in range(len(answer) - 1, 0, -1):  # the first token is written when the prompt is read
        options = [first + best[at + 1]]
        left = len(answer) - at - 1
        for right, each in ((looked[at], row), (modelled[at], row + guess)):
            for count in range(1, min(right, left) + 1):
                options.append(first + count * each + best[at + count + 1])
        for guessed in range(1, min(modelled[at], left) + 1):  # and look-up behind the model
            for more in range(1, min(looked[at + guessed], left - guessed, LONGEST - guessed) + 1):
                took = first + guessed * (row + guess) + more * row
                options.append(took + best[at + guessed + more + 1])
        best[at] = min(options)
    return first * (len(answer) - 1), best[1] if len(answer) > 1 else 0.0


def _right(draft: Measured, tokens: Sequence[int], start: int) -> list[int]:
    """For each place in the answer, how many guesses of the draft model in a row are right."""
    hidden = draft.hidden(tokens)[start - 1 : len(tokens) - 1]
    places = draft.decoder.draft_logits(hidden).argmax(-1)
    ids = draft.decoder.drafting
    guesses = places.tolist() if ids is None else ids[places].tolist()
    return _runs([guess == token for guess, token in zip(guesses, tokens[start:], strict=True)])


def _runs(good: Sequence[bool]) -> list[int]:
    found, run = [], 0
    for each in reversed(good):
        run = min(run + 1, LONGEST) if each else 0
        found.append(run)
    return found[::-1]


def _looked_up(tokens: Sequence[int], start: int) -> list[int]:
    """For each place in the answer, how many looked-up tokens are right."""
    lookup, found = Lookup(), []
    for at in range(start, len(tokens)):
        before = tokens[:at]
        lookup.extend(before)
        match = lookup.match(before)
        ids = [] if match is None else lookup.guesses(before, match, LONGEST)
        right = 0
        for guess, token in zip(ids, tokens[at:], strict=False):
            if guess != token:
                break
            right += 1
        found.append(right)
    return found
