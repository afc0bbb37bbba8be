"""What the stand-in says: one answer, whichever model writes which part of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.upstreams.vocabulary import END, START, encode

TEXT = (
    "The sky is blue because small particles scatter short waves most 😀 of all and of violet"
    " light there is less to begin with 😀😀 as it was said long ago \u2028 naïve\n\nend"
)
ANSWER = encode(TEXT)
# The small model is at a loss in the midst of the smiley: it is handed on by halves.
UNSURE_AT = next(i for i in range(len(ANSWER)) if ANSWER[i] == encode("😀")[1])
SURE_AT = UNSURE_AT + 12  # here the large one hands it back
CONTEXT = 4096
MOST_LOGPROBS = 20
_HEADER = encode("assistant\n")


def position(prompt: Sequence[int]) -> int:
    """How much of the answer stands in these ids already."""
    if START not in prompt:
        return 0
    last = len(prompt) - 1 - list(reversed(prompt)).index(START)
    return max(len(prompt) - last - 1 - len(_HEADER), 0)


def complaint(prompt: Sequence[int]) -> str | None:
    """What is wrong with the part of the answer that is handed over, if anything is."""
    done = position(prompt)
    if done and list(prompt[-done:]) != ANSWER[:done]:
        return f"handed over {list(prompt[-done:])}, written was {ANSWER[:done]}"
    return None


def rest(done: int) -> list[int]:
    """The ids from here on, the end included."""
    return [*ANSWER[done:], END]


def entropy(model: str, index: int) -> float:
    """Bits, about, of this model's distribution for the token at this index of the answer."""
    if model == "small":
        return 4.0 if index == UNSURE_AT else 0.1
    return 2.0 if index < SURE_AT else 0.1


def likeliest(id: int, bits: float, number: int) -> dict[int, float]:
    """The token and others, with logprobs of a distribution of this entropy."""
    others = [other for other in range(3, 3 + MOST_LOGPROBS + 1) if other != id]
    if bits < 0.5:
        logprobs = [math.log(0.99), *[math.log(0.0005)] * (MOST_LOGPROBS - 1)]
    else:
        equal = round(2**bits)
        logprobs = [math.log(1 / equal)] * equal + [-30.0] * (MOST_LOGPROBS - equal)
    ids = [id, *others]
    return dict(zip(ids[: max(number, 1)], logprobs, strict=False))
