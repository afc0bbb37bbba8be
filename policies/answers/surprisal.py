"""How little a model expected each word of a text: surprisal, by a call that writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import EngineError
from app.types import Call, Decoding, Engine, Token
from policies.answers.asking import read

WINDOW = 2048  # tokens that are read at once, at most
_OVERLAP = 4  # of a window so many-th part is what the one before ended with
_NEAR = 32  # characters, mostly spaces, that may stand between two tokens
_LEAST = 0.5  # of the tokens so many must be found in the text


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of a text; of the first `known` the one before it has told."""

    ids: tuple[int, ...]
    known: int


def windows(ids: Sequence[int], context: int) -> list[Window]:
    """A text's tokens in parts that a model of so long a context reads, overlapping by a quarter.

    Together they have at most 4/3 as many tokens as the text.
    """
    size = max(min(WINDOW, context - 1), 2)
    found, begin, known = list[Window](), 0, 0
    while True:
        part = tuple(ids[begin : begin + size])
        found.append(Window(part, known))
        if begin + size >= len(ids):
            return found
        known = size // _OVERLAP
        begin += size - known


async def scored(call: Call, parts: Sequence[Window], engine: Engine) -> list[Token]:
    """The text's tokens with their log-probabilities, but for the first; `call` says whose it is.

    Raises as the engine, and EngineError where it tells of other tokens than it was asked for.
    """
    tokens = list[Token]()
    for part in parts:
        asked = Call(
            model=call.model,
            prompt=part.ids,
            max_tokens=0,
            decoding=Decoding(scores=True),
            goals=call.goals,
            account=call.account,
            id=call.id,
        )
        told = (await read(asked, engine)).tokens
        if len(told) != len(part.ids):
            raise EngineError(f"The engine of {call.model} told of {len(told)} tokens")
        tokens += told[part.known :]
    return tokens


def surprisals(text: str, tokens: Sequence[Token], cores: Sequence[tuple[int, int]]) -> list[float]:
    """Of each of these words, from where to where it goes in the text, the mean over its tokens:
    nats; of a word of which nothing is known, infinity. The words are in order.

    Tokens are found again by what they say: parts of characters, which say nothing, count where
    they stand. Raises EngineError where most of them are not found.
    """
    sums, counts = [0.0] * len(cores), [0] * len(cores)
    at, word, lost = 0, 0, 0
    for token in tokens:
        said = token.piece.decode(errors="replace").strip()
        begin = at
        if said and "\ufffd" not in said:
            begin = text.find(said, at, at + len(said) + _NEAR)
            if begin < 0:
                lost += 1
                continue
            at = begin + len(said)
        elif not said:
            continue
        while word < len(cores) and cores[word][1] <= begin:
            word += 1
        if word < len(cores) and begin >= cores[word][0] and token.logprob is not None:
            sums[word] -= token.logprob
            counts[word] += 1
    if lost > _LEAST * len(tokens):
        raise EngineError("The scorer's tokens are not those of the text")
    return [total / n if n else float("inf") for total, n in zip(sums, counts, strict=True)]
