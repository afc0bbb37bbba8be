"""The names under which asks travel to vLLM and reports come back: gateway and plugin share them.

A request body's `vllm_xargs` holds the asks, flat. Those of entropy follow Entropy Adaptive
Decoding (Simonds 2025, arXiv 2502.06833): the server reports each token's entropy, and ends the
call by itself where the rolling mean of the entropies crosses a level. It ends it by writing the
token `farthing_stop_id` in place of the one that it would have drawn, so that one must be reserved
(no answer holds it, no answer ends with it) and stand in the request's `stop_token_ids` too; the
answer's finish_reason is then `stop`, its stop_reason the id. Those of speculation say how far a
draft model guesses ahead of this request's answer, and which guesses stay. Those of KV prediction
(Horton et al. 2024, arXiv 2410.08391) say by which predictor keys and values of the prompt come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CALL = "farthing_call"  # str: an id that no other running call has; report entropies under it
LEVEL = "farthing_level"  # number, bits: stop where the rolling mean crosses it
RISING = "farthing_rising"  # 1: stop at mean >= level; 0: at mean <= level
WINDOW = "farthing_window"  # int, tokens of this call; the mean is over full windows only
AFTER = "farthing_after"  # int, tokens of this call, the crossing one included, before it may stop
STOP_ID = "farthing_stop_id"  # int: the reserved token
HELLO = "farthing_hello"  # anything: the request is refused with MARKER in the message

MARKER = "farthing-entropy/1"
"""What the refusal of a hello begins with where asks will be honoured, and only there; behind it
stands `vllm=` and vLLM's version. Refusals are HTTP 400; of a request to be streamed, an error
in the first event of a stream that begins with HTTP 200."""

CALL_HEADER = "X-Farthing-Call"
"""Request header with the id of `farthing_call`: write its reports into the event stream."""

REQUEST_HEADER = "X-Request-Id"
"""Request header with the name that the call is to have in vLLM's log."""

SOCKET_VARIABLE = "FARTHING_ENTROPY_SOCKET"
"""Environment variable of vLLM's processes: the path of the socket for reports."""

SOCKET_FOLDER = "farthing-vllm-"
"""How a folder begins that is made for one server's socket, and goes with it."""

SPEC_K = "spec_k"  # int: guesses for one pass of the model, at most; 0: none
SPEC_STOP = "spec_stop"  # number in [0, 1]: P(some guess is refused) above which a draft ends
SPEC_CONFIDENCE = "spec_confidence"  # number in [0, 1]: a guess less likely than it ends a draft
SPEC_LENIENCE = "spec_lenience"  # epsilon, accept by p / epsilon; 1 is exact
LEAST_LENIENCE = 0.001  # as `app.types` has it; a number from it to 1
SPECULATION = (SPEC_K, SPEC_STOP, SPEC_CONFIDENCE, SPEC_LENIENCE)

SPECULATES_PATH = "/farthing/speculation"
"""GET: what our worker does with the asks of speculation, a `Speculating`; 404: there is none."""

STATE_VARIABLE = "FARTHING_SPECULATION_STATE"
"""Environment variable of vLLM's processes: the file in which the worker says what it does."""

HEAD_VARIABLE = "FARTHING_ACCEPTANCE_HEAD"
"""Environment variable of vLLM's processes: the file of the acceptance head, if there is one."""

KV = "farthing_kv"  # str: the predictor, as Predicting names it, or EXACT
KV_LAST = "farthing_kv_last"  # int from 1 on: tokens at the prompt's end that are computed; or 1
KV_FIRST = "farthing_kv_first"  # int from 0 on: and at its beginning; or 0
KV_RELEVANT = "farthing_kv_relevant"  # number in [0, 1]: of the rest, what the end asks about; or 0
KV_CALL = (
    "farthing_kv_call"  # str: an id as `farthing_call`; report under it how many were predicted
)
PREDICTION = (KV, KV_LAST, KV_FIRST, KV_RELEVANT, KV_CALL)

EXACT = "exact"
"""A predictor that runs all layers: it predicts what is true, and costs what computing costs."""

SALT = "kvp:"
"""How the `cache_salt` of a request has to begin that asks for predictions: what they leave in the
prefix cache is then found by requests with the same salt alone."""

PREDICTS_PATH = "/farthing/kv-prediction"
"""GET: the predictors of this server, a `Predicting`; 404: there is none."""

PREDICTION_VARIABLE = "FARTHING_KV_PREDICTION_STATE"
"""Environment variable of vLLM's processes: the file in which the connector says what it does."""

_PREFIX = b": farthing "  # to a reader of server-sent events, a comment


@dataclass(frozen=True, slots=True)
class Report:
    """Entropies of tokens that stand next to each other in one call's answer."""

    first: int  # index, in what this call writes, of the first of them
    bits: tuple[float, ...]  # of the distribution that each token is drawn from; error below 1e-5
    mean: float | None = None  # bits: the rolling mean, where the last of them made the call stop


def format_report(report: Report) -> bytes:
    """A comment in a stream of server-sent events, the empty line after it included."""
    fields = {
        "first": report.first,
        "bits": [round(bits, 6) for bits in report.bits],
        "mean": report.mean,
    }
    return _PREFIX + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def parse_report(line: bytes) -> Report | None:
    """The report in this line of an event stream; None: it holds none that can be read."""
    if not line.startswith(_PREFIX):
        return None
    try:
        fields = json.loads(line[len(_PREFIX) :])
        mean = fields["mean"]
        report = Report(
            int(fields["first"]),
            tuple(float(bits) for bits in fields["bits"]),
            None if mean is None else float(mean),
        )
    except (ValueError, KeyError, TypeError):
        return None
    return report if all(map(math.isfinite, report.bits)) else None


@dataclass(frozen=True, slots=True)
class Placed:
    """Tokens of a prompt that vLLM takes for cached, and that were put in place for the call."""

    predicted: int
    computed: int = 0  # through all layers


def format_placed(placed: Placed) -> bytes:
    """A comment in a stream of server-sent events."""
    return _PREFIX + json.dumps(asdict(placed)).encode() + b"\n\n"


def parse_placed(line: bytes) -> Placed | None:
    """What this line of an event stream says; None: it holds nothing of the kind."""
    if not line.startswith(_PREFIX):
        return None
    try:
        fields = json.loads(line[len(_PREFIX) :])
        counts = fields["predicted"], fields["computed"]
    except (ValueError, KeyError, TypeError):
        return None
    return Placed(*counts) if all(type(n) is int and n >= 0 for n in counts) else None


@dataclass(frozen=True, slots=True)
class Predicting:
    """What the connector does with the asks of KV prediction."""

    shares: Mapping[str, float]
    """By predictor (`layers-20`), its multiplications by those of computing a prompt's token."""

    def to_json(self) -> str:
        return json.dumps({"shares": dict(self.shares)})

    @classmethod
    def read(cls, given: Any) -> Predicting | None:
        """From its JSON, parsed; None: it is none."""
        if not isinstance(given, Mapping):
            return None
        shares = given.get("shares")
        if not isinstance(shares, Mapping):
            return None
        if not all(type(share) in (int, float) and share > 0 for share in shares.values()):
            return None
        return cls(dict(shares))


@dataclass(frozen=True, slots=True)
class Speculating:
    """What the worker does with the asks of speculation."""

    longest: int  # guesses for one pass of the model, at most; without asks as many are made
    sampled: bool  # guesses at a temperature above 0 too; else such requests get none
    level: float | None = None
    """A good `spec_stop` for the acceptance head, by which it goes then; None: there is none, and
    `spec_stop` goes by the probabilities that the draft model gave its guesses."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, given: Any) -> Speculating | None:
        """From its JSON, parsed; None: it is none."""
        if not isinstance(given, Mapping):
            return None
        longest, sampled, level = (given.get(name) for name in ("longest", "sampled", "level"))
        if type(longest) is not int or longest < 1 or not isinstance(sampled, bool):
            return None
        if level is not None and not (type(level) in (int, float) and 0 <= level <= 1):
            return None
        return cls(longest, sampled, level)
