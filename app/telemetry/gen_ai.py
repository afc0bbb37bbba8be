"""OpenTelemetry's metrics of generative AI, beside those for Prometheus: names, buckets, labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opentelemetry.metrics import Meter

from app.telemetry.counting import PICO
from app.telemetry.ended import Ended, Known
from app.telemetry.names import NONE, Names
from app.trail import CallRecord

OURSELVES = "farthing"
"""The provider of what we answer, and of what we compute ourselves."""
OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""What each route does, in OpenTelemetry's words."""
# The buckets that the conventions ask for.
_DURATION = tuple(0.01 * 2**n for n in range(14))
_FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_NEXT = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(4**n for n in range(14))


class Meters:
    """The same names as in Prometheus: of the catalog, or `other`."""

    def __init__(
        self, meter: Meter, names: Names, providers: Callable[[], Mapping[str, str]]
    ) -> None:
        self._names = names
        self._providers = providers
        self._duration = meter.create_histogram(
            "gen_ai.server.request.duration",
            "s",
            "From a request's first byte to its answer's last",
            explicit_bucket_boundaries_advisory=_DURATION,
        )
        self._first = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            "s",
            "From a request's first byte to the first token of its answer",
            explicit_bucket_boundaries_advisory=_FIRST,
        )
        self._next = meter.create_histogram(
            "gen_ai.server.time_per_output_token",
            "s",
            "For each token of an answer after the first",
            explicit_bucket_boundaries_advisory=_NEXT,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens that a call of an engine read and wrote",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._cost = meter.create_counter("farthing.cost", "{USD}", "USD billed")

    def called(self, answer: Known, record: CallRecord) -> None:
        """A call of an engine has ended, and is paid for."""
        model = self._names.model(record.model)
        who = self._names.who(answer.target, answer.preset, answer.policy_name)
        labels = {
            "gen_ai.operation.name": operation(answer),
            "gen_ai.provider.name": self._providers().get(record.model, OURSELVES),
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
        }
        usage = record.usage
        if usage.prompt:
            self._tokens.record(usage.prompt, {**labels, "gen_ai.token.type": "input"})
        if usage.completion:
            self._tokens.record(usage.completion, {**labels, "gen_ai.token.type": "output"})
        paid = {"farthing.preset": who.preset, "farthing.policy": who.policy}
        self._cost.add(record.cost / PICO, {"gen_ai.request.model": model, **paid})

    def ended(self, request: Ended) -> None:
        """A request has ended; those that are for no model are not told of."""
        name = OPERATIONS.get(request.route)
        if name is None:
            return
        labels = {
            "gen_ai.operation.name": name,
            "gen_ai.provider.name": OURSELVES,
            "gen_ai.request.model": request.who.model,
        }
        answer = request.answer
        if answer is not None and (writer := writer_of(answer)):
            labels["gen_ai.response.model"] = self._names.model(writer)
        timed = labels
        if error := error_of(request):
            timed = {**labels, "error.type": error}
        self._duration.record(request.seconds, timed)
        if request.ttft is None:
            return
        self._first.record(request.ttft, labels)
        written = 0 if answer is None else answer.tokens[2]
        if written > 1:
            self._next.record((request.seconds - request.ttft) / (written - 1), labels)


def operation(answer: Known) -> str:
    """What is asked of engines, in OpenTelemetry's words."""
    call = answer.order.call
    return "embeddings" if call.embeds else "chat" if call.prompt is None else "text_completion"


def writer_of(answer: Known) -> str:
    """The model that wrote most of this answer; empty where nothing was written."""
    visible = answer.visible
    return max(visible, key=visible.__getitem__) if visible else ""


def error_of(request: Ended) -> str:
    """Why it went wrong, in a word; empty where it did not."""
    if request.failed or request.status >= 400:
        return request.reason or str(request.status)
    return "client_gone" if request.gone else ""


def named(name: str) -> bool:
    """Whether this label says anything."""
    return name not in ("", NONE)
