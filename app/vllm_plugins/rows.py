"""Which rows of a batch of logits are watched, their entropies, and where a call has to stop.

The rule is that of Entropy Adaptive Decoding (Simonds 2025, arXiv 2502.06833): a rolling mean of
the entropy of the distributions that tokens are drawn from, compared with a level. Nothing here
knows vLLM; `entropy.py` fits it in there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from app.vllm_plugins import asks
from app.vllm_plugins.channel import Seen

_LONGEST_ID = 128  # characters of a call's id
_OF_A_LEVEL = (asks.RISING, asks.WINDOW, asks.AFTER, asks.STOP_ID)  # mean nothing without one


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks of us."""

    call: str | None  # report its entropies under this id
    level: float | None = None  # bits; None: do not stop
    rising: bool = True
    window: int = 1  # tokens
    after: int = 0  # tokens
    stop_id: int | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> Self | None:
        """From a request's `vllm_xargs`; None: it asks nothing. Raises ValueError."""
        if not given or not given.keys() & {asks.CALL, asks.LEVEL, *_OF_A_LEVEL}:
            return None
        call = given.get(asks.CALL)
        if call is not None and not (isinstance(call, str) and 0 < len(call) <= _LONGEST_ID):
            raise ValueError(f"{asks.CALL} is to be a string of 1 to {_LONGEST_ID} characters")
        if asks.LEVEL not in given:
            for name in _OF_A_LEVEL:
                if name in given:
                    raise ValueError(f"{name} needs {asks.LEVEL}")
            return cls(call)
        for name in (asks.RISING, asks.WINDOW, asks.STOP_ID):
            if name not in given:
                raise ValueError(f"{asks.LEVEL} needs {name}")
        return cls(
            call,
            _number(given, asks.LEVEL),
            bool(_whole(given, asks.RISING, 0, 1)),
            _whole(given, asks.WINDOW, 1),
            _whole(given, asks.AFTER, 0) if asks.AFTER in given else 0,
            _whole(given, asks.STOP_ID, 0),
        )


def _number(given: Mapping[str, Any], name: str) -> float:
    value = given[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is to be a finite number, not {value!r}")
    return float(value)


def _whole(given: Mapping[str, Any], name: str, least: int, most: int = 2**31 - 1) -> int:
    value = given[name]
    if type(value) is not int or not least <= value <= most:  # True is an int, but no number here
        raise ValueError(f"{name} is to be a whole number from {least} to {most}, not {value!r}")
    return int(value)


class Row:
    """The rolling window over the tokens of one call.

    Each token's entropy comes with the token's index. An index that comes again replaces what it
    had (a prompt read in pieces shows us a row whose draw is thrown away); one that does not
    follow on the last (a call that was preempted comes back) begins the window anew.
    """

    def __init__(self, ask: Ask, output_ids: Sequence[int]) -> None:
        """`output_ids`: the call's answer, which grows as it is written."""
        self.ask = ask
        self.output_ids = output_ids
        self._window: deque[float] = deque(maxlen=ask.window)
        self._next = 0  # the index after the last one seen

    def see(self, token: int, bits: float) -> float | None:
        """Take in the entropy of the token with this index.

        Returns the rolling mean, bits, where the call has to stop before this token.
        """
        if token == self._next - 1 and self._window:
            self._window.pop()
        elif token != self._next:
            self._window.clear()
        self._window.append(bits)
        self._next = token + 1
        ask = self.ask
        if ask.level is None or len(self._window) < ask.window or self._next < ask.after:
            return None
        mean = sum(self._window) / ask.window
        return mean if (mean >= ask.level if ask.rising else mean <= ask.level) else None


class BatchUpdate(Protocol):
    """How a batch has changed, as vLLM tells it: removed, then added, then moved rows."""

    removed: Sequence[int]
    added: Sequence[tuple[int, Any, Any, Sequence[int]]]  # row, params, prompt, answer
    moved: Sequence[tuple[int, int, Any]]  # from, to, direction


class EntropyRows:
    """The watched rows of a batch."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}
        self._layout: _Layout | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def update(self, change: BatchUpdate | None, ask_of: Callable[[Any], Ask | None]) -> None:
        """Follow the batch; `ask_of` reads a request's parameters."""
        if change is None:
            return
        for index in change.removed:
            self._put(index, None)
        for index, params, _, output_ids in change.added:
            ask = ask_of(params)
            self._put(index, None if ask is None else Row(ask, output_ids))
        for start, end, direction in change.moved:
            leaving, there = self._rows.pop(start, None), self._rows.pop(end, None)
            self._put(end, leaving)
            if direction.name == "SWAP":
                self._put(start, there)
        self._layout = None

    def _put(self, index: int, row: Row | None) -> None:
        if row is None:
            self._rows.pop(index, None)
        else:
            self._rows[index] = row

    def apply(self, logits: torch.Tensor) -> list[Seen]:
        """Look at logits [rows, vocabulary] before tokens are drawn from them.

        Changes them in place: a row that has to stop is left its stop token alone, and in any
        other that stop token is made impossible, so that it always means what it says. Returns
        what was seen of the rows that are to be reported. The entropies of all rows are computed
        together and brought over from the device at once.
        """
        layout = self._layout
        if layout is None or not layout.fits(logits):
            layout = self._layout = _Layout(self._rows, logits)
        watched = logits if layout.everything else logits[layout.index]
        seen, stops = [], []
        for index, bits in zip(layout.rows, entropies(watched).tolist(), strict=True):
            row = self._rows[index]
            if not math.isfinite(bits):
                continue  # such a row has no distribution; its window begins anew
            token = len(row.output_ids)
            mean = row.see(token, bits)
            if index not in layout.stop_ids:
                mean = None
            if mean is not None:
                stops.append(index)
            if row.ask.call is not None:
                seen.append(Seen(row.ask.call, token, bits, mean))
        logits[layout.stop_rows, layout.stop_columns] = -math.inf
        if stops:
            logits[stops] = -math.inf
            logits[stops, [layout.stop_ids[index] for index in stops]] = 0.0
        return seen


class _Layout:
    """Where in the logits the watched rows are, kept on the device until the batch changes."""

    def __init__(self, rows: Mapping[int, Row], logits: torch.Tensor) -> None:
        height, width = self._shape = logits.shape
        self._device = logits.device
        self.rows = sorted(index for index in rows if index < height)
        self.everything = len(self.rows) == height
        self.stop_ids = {
            index: stop_id
            for index in self.rows
            if (stop_id := rows[index].ask.stop_id) is not None and stop_id < width
        }
        self.index = self._tensor(self.rows)
        self.stop_rows = self._tensor(list(self.stop_ids))
        self.stop_columns = self._tensor(list(self.stop_ids.values()))

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def fits(self, logits: torch.Tensor) -> bool:
        return logits.shape == self._shape and logits.device == self._device


def entropies(logits: torch.Tensor) -> torch.Tensor:
    """Shannon entropies [rows], in bits, of the distributions that logits [rows, vocabulary] give.

    A logit of -inf is a token of no probability, which adds nothing.
    """
    logs = torch.log_softmax(logits.float(), dim=-1)
    terms = torch.where(logs == -math.inf, 0.0, logs.exp() * logs)
    return terms.sum(dim=-1) / -math.log(2)
