"""What is counted of an answer, under bounded labels."""

from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.errors import BudgetExceeded, EngineLost, FarthingError
from app.telemetry.counting import Telemetry, reason_of, reasons
from app.telemetry.instruments import Instruments
from app.telemetry.metrics import LABELS, METRICS, PROCESS
from app.telemetry.names import LATER, NOBODY, Names, Server, Who, server_at
from app.trail import CallRecord
from app.types import Chunk, Decision, Promise, Usage

ECONOMY = {"preset": "economy", "policy": "entropy_switch"}
WHO = Who("large", "economy", "entropy_switch")


@dataclass
class Line:
    model: str
    usage: Usage
    cost: int
    visible: int
    gpu_us: int | None = None


@dataclass
class Bill:
    lines: list[Line]
    overhead: float = 0.002

    @property
    def cost(self):
        return sum(line.cost for line in self.lines)


@dataclass
class Answered:
    target: str = "large"
    preset: str = "economy"
    policy_name: str = "entropy_switch"
    fidelity: str = "approximate"
    budget: int | None = 3 * 10**12
    decisions: list[Decision] = field(default_factory=list)
    bill: Bill = field(
        default_factory=lambda: Bill([Line("small", Usage(10, 4, 7, 5, 3, 4), 2 * 10**12, 6)])
    )
    admitted: bool = True
    promise: Promise | None = None
    took: tuple[float | None, float, float] = (0.5, 2.0, 2.0)


@pytest.fixture
def telemetry():
    telemetry = Telemetry()
    telemetry.names.know(
        ["small", "large"], {"economy": "entropy_switch"}, ["entropy_switch", "direct"]
    )
    return telemetry


def samples(telemetry):
    return [
        sample
        for family in text_string_to_metric_families(telemetry.scrape().decode())
        for sample in family.samples
    ]


def value(telemetry, name, **labels):
    for sample in samples(telemetry):
        if sample.name == name and sample.labels == labels:
            return sample.value
    return None


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        *(("prompt", 10), ("cached", 4), ("completion", 7), ("discarded", 1)),
        *(("drafted", 5), ("accepted", 3), ("wasted", 2), ("predicted", None)),
    ],
)
def test_tokens_by_kind(telemetry, kind, tokens):
    telemetry.answered(Answered(), "kept")
    labels = {"model": "small", **ECONOMY}
    assert value(telemetry, "farthing_tokens_total", **labels, kind=kind) == tokens
    assert value(telemetry, "farthing_visible_tokens_total", **labels) == 6
    assert value(telemetry, "farthing_verification_passes_total", **labels) == 4


def test_answers_by_how_they_ended(telemetry):
    telemetry.answered(Answered(budget=None), "cut")
    labels = {**ECONOMY, "fidelity": "approximate", "outcome": "cut"}
    assert value(telemetry, "farthing_answers_total", **labels) == 1


def test_an_answer_that_was_plain_from_its_start_is_no_hand_over(telemetry):
    decisions = [Decision("plain", "small", 0), Decision("steer", "small", 9)]
    telemetry.answered(Answered(decisions=decisions), "kept")
    steered = {**ECONOMY, "kind": "steer", "to": "small"}
    assert value(telemetry, "farthing_switches_total", **steered) == 1
    assert value(telemetry, "farthing_fallbacks_total", **ECONOMY, kind="plain") == 1
    found = [s for s in samples(telemetry) if s.name == "farthing_switches_total"]
    assert len(found) == 1


def test_what_is_decided_around_whole_answers(telemetry):
    decisions = [
        Decision("compress", "small", 0, dropped=30),
        Decision("escalate", "large", 0, confidence=0.3, answers=1),
        Decision("keep", "large", 0, answers=1),
    ]
    telemetry.answered(Answered(decisions=decisions), "kept")
    for kind in ("compress", "escalate", "keep"):
        assert value(telemetry, "farthing_strategies_total", **ECONOMY, kind=kind) == 1
    assert value(telemetry, "farthing_answers_made_total", **ECONOMY) == 2
    assert value(telemetry, "farthing_prompt_dropped_tokens_total", **ECONOMY) == 30


def test_money_in_usd(telemetry):
    telemetry.answered(Answered(), "kept")
    assert value(telemetry, "farthing_cost_usd_total", model="small", **ECONOMY) == 2
    assert value(telemetry, "farthing_budget_admitted_usd_total", **ECONOMY) == 3
    assert value(telemetry, "farthing_budget_spent_usd_total", **ECONOMY) == 2
    assert value(telemetry, "farthing_budget_overshoot_usd_total", **ECONOMY) == 0
    assert value(telemetry, "farthing_budget_utilization_ratio_sum", **ECONOMY) == 2 / 3


def test_accelerator_seconds_of_models_that_say_them(telemetry):
    lines = [Line("large", Usage(), 0, 0, 2_500_000), Line("small", Usage(), 0, 0)]
    for _ in range(2):
        telemetry.answered(Answered(bill=Bill(lines)), "kept")
    assert value(telemetry, "farthing_gpu_seconds_total", model="large", **ECONOMY) == 5
    assert value(telemetry, "farthing_gpu_seconds_total", model="small", **ECONOMY) is None


def test_what_is_spent_beyond_a_budget_is_counted(telemetry):
    telemetry.answered(Answered(budget=10**12), "kept")
    telemetry.answered(Answered(budget=5 * 10**12), "kept")
    assert value(telemetry, "farthing_budget_overshoot_usd_total", **ECONOMY) == 1


def test_without_a_budget_only_the_cost_counts(telemetry):
    telemetry.answered(Answered(budget=None), "kept")
    assert value(telemetry, "farthing_cost_usd_total", model="small", **ECONOMY) == 2
    assert value(telemetry, "farthing_budget_spent_usd_total", **ECONOMY) is None
    assert value(telemetry, "farthing_budget_outcomes_total", **ECONOMY, outcome="kept") is None


@pytest.mark.parametrize("outcome", ["refused", "failed", "deadline"])
def test_a_budget_that_never_began_was_not_admitted(telemetry, outcome):
    telemetry.answered(Answered(admitted=False, bill=Bill([])), outcome)
    assert value(telemetry, "farthing_budget_outcomes_total", **ECONOMY, outcome=outcome) == 1
    assert value(telemetry, "farthing_budget_admitted_usd_total", **ECONOMY) is None


def test_one_that_began_was_admitted_even_if_it_is_refused_then(telemetry):
    telemetry.answered(Answered(), "refused")
    for said, usd in (("admitted", 3), ("spent", 2), ("overshoot", 0)):
        assert value(telemetry, f"farthing_budget_{said}_usd_total", **ECONOMY) == usd


def test_a_budget_of_nothing_has_no_share_that_was_spent(telemetry):
    telemetry.answered(Answered(budget=0, bill=Bill([])), "kept")
    assert value(telemetry, "farthing_budget_utilization_ratio_count", **ECONOMY) is None


def test_switches_by_who_took_over(telemetry):
    decisions = [Decision("switch", "large", 5, 2.75), Decision("steer", "small", 9)]
    telemetry.answered(Answered(decisions=decisions), "steered")
    for kind, to in (("switch", "large"), ("steer", "small")):
        assert value(telemetry, "farthing_switches_total", **ECONOMY, kind=kind, to=to) == 1
    assert value(telemetry, "farthing_switch_entropy_bits_sum", **ECONOMY, to="large") == 2.75
    assert value(telemetry, "farthing_switch_entropy_bits_sum", **ECONOMY, to="small") is None


def test_tokens_that_came_together_are_as_many_gaps_of_equal_length(telemetry):
    note = telemetry.next_tokens(WHO)
    note(0.025, 4)
    note(0.3, 1)
    name = "farthing_inter_token_latency_seconds"
    labels = {"model": "large", **ECONOMY}
    assert value(telemetry, f"{name}_count", **labels) == 5
    assert value(telemetry, f"{name}_sum", **labels) == pytest.approx(0.4)
    found = [value(telemetry, f"{name}_bucket", le=le, **labels) for le in ("0.01", "0.025", "0.3")]
    assert found == [0, 4, 5]
    assert value(telemetry, f"{name}_bucket", le="+Inf", **labels) == 5


@pytest.mark.parametrize("seen", [0.0, 0.01, 0.0100001, 0.2, 80.0, 1e9])
def test_observing_often_is_observing_one_by_one(seen):
    """A change of what the library keeps would show here."""
    one, often = (
        Instruments().histograms["farthing_inter_token_latency_seconds"]("m", "p", "q")
        for _ in range(2)
    )
    for _ in range(3):
        one.observe(seen)
    often.observe_often(seen, 3)
    kept = [
        [(s.name, s.labels, pytest.approx(s.value)) for s in each.collect()[0].samples]
        for each in (one, often)
    ]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 22


def test_a_gauge_says_how_it_is_now(telemetry):
    name, here, there = "farthing_engine_running", ("small", "a:1"), ("large", "b:1")
    telemetry.show(name, {here: 3, there: 1})
    telemetry.show(name, {here: 2})
    assert value(telemetry, name, model="small", server="a:1") == 2
    assert value(telemetry, name, model="large", server="b:1") is None
    telemetry.show("farthing_ledger_owed", {(): 4})
    assert value(telemetry, "farthing_ledger_owed") == 4


def test_what_is_under_way_is_counted_until_it_ends(telemetry):
    with pytest.raises(ZeroDivisionError), telemetry.in_flight():
        assert value(telemetry, "farthing_requests_in_flight") == 1
        raise ZeroDivisionError
    assert value(telemetry, "farthing_requests_in_flight") == 0


def test_an_unknown_name_is_counted_as_other(telemetry):
    decisions = [Decision("switch", "m", 5)]
    line = Line("m", Usage(1, 0, 1), 1, 1)
    stranger = Answered("m", "p", "q", decisions=decisions, bill=Bill([line]))
    telemetry.answered(stranger, "kept")
    telemetry.answered(stranger, "astray")
    telemetry.requested("/", telemetry.who(stranger), 799, 0.1)
    telemetry.handed_over(WHO, "m", 0.1)
    telemetry.entropies(WHO, "m")(1.0)
    found = {label for sample in samples(telemetry) for label in sample.labels.values()}
    assert not found & {"m", "p", "q", "799", "astray"}
    other = dict.fromkeys(("model", "preset", "policy"), "other")
    assert value(telemetry, "farthing_tokens_total", **other, kind="prompt") == 2
    assert value(telemetry, "farthing_requests_total", endpoint="/", **other, status="other") == 1


def record(model="large", **more):
    return CallRecord(model, 10, began=100.0, ended=102.5, **more)


def test_calls_by_the_servers_that_had_a_part(telemetry):
    telemetry.names.know([], {}, [], [Server("large", "a:1"), Server("large", "b:1")])
    call = record(queued=0.5, outcome="ok")
    call.tried("a:1", "failed")
    call.tried("b:1", "ok")
    call.tried("c:1", "ok")
    telemetry.called(Answered(), call)
    for server, outcome in (("a:1", "failed"), ("b:1", "ok"), ("other", "ok")):
        labels = {"model": "large", "server": server, "outcome": outcome}
        assert value(telemetry, "farthing_engine_attempts_total", **labels) == 1
    assert value(telemetry, "farthing_engine_call_seconds_sum", model="large") == 2.5
    assert value(telemetry, "farthing_queue_seconds_sum", model="large") == 0.5


def test_a_call_that_never_had_a_place_was_given_to_nobody(telemetry):
    telemetry.called(Answered(), record(outcome="refused"))
    assert value(telemetry, "farthing_engine_call_seconds_count", model="large") == 1
    assert value(telemetry, "farthing_queue_seconds_count", model="large") is None
    assert not [s for s in samples(telemetry) if s.name == "farthing_engine_attempts_total"]


def test_a_call_in_our_own_process_is_given_to_it(telemetry):
    telemetry.names.know([], {}, [], [Server("large", "embedded")])
    telemetry.called(Answered(), record(outcome="closed"))
    labels = {"model": "large", "server": "embedded", "outcome": "closed"}
    assert value(telemetry, "farthing_engine_attempts_total", **labels) == 1
    assert value(telemetry, "farthing_queue_seconds_count", model="large") == 1


def test_drafts_by_pass(telemetry):
    call = record()
    for usage in (
        Usage(completion=1, drafted=4, accepted=1, passes=1),  # a pass whose tokens are told
        Usage(completion=1, accepted=1),  # one by one
        Usage(completion=1),
        Usage(completion=1, passes=1),
        Usage(completion=9, drafted=6, accepted=3, passes=4),  # several in one
    ):
        call.saw(Chunk(usage=usage))
    telemetry.called(Answered(), call)
    who = {"model": "large", **ECONOMY}
    for name, total, short in (("draft", 10, 5), ("accepted", 5, 5)):
        metric = f"farthing_{name}_length_tokens"
        assert value(telemetry, f"{metric}_count", **who) == 6
        assert value(telemetry, f"{metric}_sum", **who) == total
        assert value(telemetry, f"{metric}_bucket", **who, le="2.0") == short + (name != "draft")


def test_what_a_predicted_prompt_saved(telemetry):
    decisions = [Decision("predict", "small", 0, saves=1.5), Decision("predict", "small", 0)]
    telemetry.answered(Answered(decisions=decisions), "kept")
    who = {"model": "small", **ECONOMY}
    assert value(telemetry, "farthing_ttft_saved_seconds_sum", **who) == 1.5
    assert value(telemetry, "farthing_ttft_saved_seconds_count", **who) == 1


def test_where_nobody_answered_there_is_no_name(telemetry):
    telemetry.requested("/health", NOBODY, 0, 0.1)
    labels = {"endpoint": "/health", "status": "499"}
    none = dict.fromkeys(("model", "preset", "policy"), "none")
    assert value(telemetry, "farthing_requests_total", **labels, **none) == 1


def test_a_preset_s_name_goes_with_its_own_policy_only():
    names = Names()
    names.know(["m"], {"p": "one"}, ["one", "two"])
    assert names.who("m", "p", "one") == ("m", "p", "one")
    assert names.who("m", "", "two") == ("m", "none", "two")
    assert names.who("m", "p", "two") == ("m", "other", "other")


def test_catalogs_bring_so_many_names_only():
    names = Names()
    names.know([f"first-{n}" for n in range(100)], {}, ["direct"])
    for catalog in range(50):
        models = [f"{catalog}-{n}" for n in range(10)]
        servers = [Server(model, "a:1") for model in models]
        names.know(models, dict.fromkeys(models, "direct"), ["direct"], servers)
    assert len(names.models) == 100 + LATER
    assert len(names.pairs) == 3 + LATER
    assert len(names.servers) == LATER
    assert names.model("0-0") == "0-0"
    assert names.model("49-0") == "other"
    assert names.server("0-0", "a:1") == ("0-0", "a:1")
    assert names.server("49-0", "a:1") == ("other", "other")


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("http://gpu-1:8000", "gpu-1:8000"),
        ("https://api.example/openai", "api.example/openai"),
        ("http://[::1]:80", "[::1]:80"),
    ],
)
def test_a_server_is_named_by_where_it_is(url, label):
    assert server_at(url) == label


def test_reasons_are_codes_or_classes():
    assert reason_of(BudgetExceeded("")) == "budget_exceeded"
    assert reason_of(EngineLost("")) == "engine_lost"
    assert reason_of(FarthingError("")) == "farthing_error"
    assert {"queue_full", "engine_unavailable", "no_such_route"} < reasons()


def test_each_metric_is_named_as_it_should_be():
    for name, metric in METRICS.items():
        assert name.startswith("farthing_") or name in PROCESS
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert bool(metric.buckets) == (metric.kind == "histogram"), name
        assert sorted(metric.buckets) == list(metric.buckets)
        assert metric.text and not metric.text.endswith(".")
        assert set(metric.labels) <= LABELS.keys()


@pytest.mark.parametrize(("expected", "ratio"), [(0.5, 2.0), (4.0, 1.0), (16.0, 0.5)])
def test_where_a_client_read_slowly_only_what_is_sure_is_drift(telemetry, expected, ratio):
    promise = Promise("large", "large", 1.0, 0.25, expected, "best")
    telemetry.answered(Answered(promise=promise, took=(0.5, 1.0, 8.0)), "kept")
    drift = "farthing_plan_drift_ratio_sum"
    assert value(telemetry, drift, way="large", kind="latency") == ratio
    assert value(telemetry, drift, way="large", kind="first_token") == 2.0
