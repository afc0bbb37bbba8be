"""What is counted of an answer, under bounded labels."""

from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry import Telemetry
from app.types import Decision, Load, Usage


@dataclass
class Line:
    model: str
    usage: Usage
    cost: int
    visible: int


@dataclass
class Bill:
    lines: list[Line]
    overhead: float = 0.002

    @property
    def cost(self):
        return sum(line.cost for line in self.lines)


@dataclass
class Answered:
    policy: str = "economy"
    budget: int | None = 3 * 10**12
    decisions: list[Decision] = field(default_factory=list)
    bill: Bill = field(
        default_factory=lambda: Bill([Line("small", Usage(10, 4, 7, 5, 3, 4), 2 * 10**12, 6)])
    )


@pytest.fixture
def telemetry():
    telemetry = Telemetry()
    telemetry.know(["small", "large"], ["economy", "direct"])
    return telemetry


def value(telemetry, name, **labels):
    for family in text_string_to_metric_families(telemetry.scrape({}).decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


@pytest.mark.parametrize(
    ("kind", "tokens"), [("prompt", 10), ("cached", 4), ("completion", 7), ("discarded", 1)]
)
def test_tokens_by_kind(telemetry, kind, tokens):
    telemetry.answered(Answered(), "kept")
    assert value(telemetry, "farthing_tokens_total", model="small", kind=kind) == tokens


@pytest.mark.parametrize(
    ("name", "count"), [("drafted_tokens", 5), ("accepted_tokens", 3), ("verification_passes", 4)]
)
def test_guesses_by_model(telemetry, name, count):
    telemetry.answered(Answered(), "kept")
    assert value(telemetry, f"farthing_{name}_total", model="small") == count


def test_an_answer_that_was_plain_from_its_start_is_no_hand_over(telemetry):
    decisions = [Decision("plain", "small", 0), Decision("steer", "small", 9)]
    telemetry.answered(Answered(decisions=decisions), "kept")
    assert value(telemetry, "farthing_switches_total", policy="economy", to="small") == 1


def test_money_in_usd(telemetry):
    telemetry.answered(Answered(), "kept")
    assert value(telemetry, "farthing_cost_usd_total", model="small", policy="economy") == 2
    assert value(telemetry, "farthing_budget_admitted_usd_total", policy="economy") == 3
    assert value(telemetry, "farthing_budget_spent_usd_total", policy="economy") == 2


def test_without_a_budget_only_the_cost_counts(telemetry):
    telemetry.answered(Answered(budget=None), "kept")
    assert value(telemetry, "farthing_cost_usd_total", model="small", policy="economy") == 2
    assert value(telemetry, "farthing_budget_spent_usd_total", policy="economy") is None
    outcomes = {"policy": "economy", "outcome": "kept"}
    assert value(telemetry, "farthing_budget_outcomes_total", **outcomes) is None


def test_a_refused_budget_was_not_admitted(telemetry):
    telemetry.answered(Answered(bill=Bill([])), "refused")
    outcomes = {"policy": "economy", "outcome": "refused"}
    assert value(telemetry, "farthing_budget_outcomes_total", **outcomes) == 1
    assert value(telemetry, "farthing_budget_admitted_usd_total", policy="economy") is None


def test_switches_by_who_took_over(telemetry):
    decisions = [Decision("switch", "large", 5), Decision("steer", "small", 9)]
    telemetry.answered(Answered(decisions=decisions), "steered")
    for model in ("large", "small"):
        assert value(telemetry, "farthing_switches_total", policy="economy", to=model) == 1


def test_tokens_that_came_together_share_the_time(telemetry):
    telemetry.next_tokens("direct", 0.3, 3)
    name = "farthing_inter_token_latency_seconds"
    assert value(telemetry, f"{name}_count", policy="direct") == 3
    assert value(telemetry, f"{name}_sum", policy="direct") == pytest.approx(0.3)
    assert value(telemetry, f"{name}_bucket", policy="direct", le="0.15") == 3


def test_loads_are_of_the_moment_of_the_scrape(telemetry):
    telemetry.scrape({"small": Load(running=3)})
    text = telemetry.scrape({"small": Load(healthy=False, running=1, waiting=2)}).decode()
    for line in ("healthy", 0), ("running", 1), ("waiting", 2):
        assert 'farthing_engine_{}{{model="small"}} {}.0'.format(*line) in text


def test_an_unknown_name_is_counted_as_other(telemetry):
    stranger = Answered(policy="p", bill=Bill([Line("m", Usage(1, 0, 1), 1, 1)]))
    telemetry.answered(stranger, "kept")
    telemetry.requested("/", "p", 200, 0.1)
    assert value(telemetry, "farthing_tokens_total", model="other", kind="prompt") == 1
    text = telemetry.scrape({}).decode()
    assert '"p"' not in text and '"m"' not in text


def test_what_is_under_way_is_counted_until_it_ends(telemetry):
    with pytest.raises(ZeroDivisionError), telemetry.in_flight():
        assert value(telemetry, "farthing_requests_in_flight") == 1
        raise ZeroDivisionError
    assert value(telemetry, "farthing_requests_in_flight") == 0


def test_tokens_that_came_together_are_as_many_gaps_of_equal_length(telemetry):
    telemetry.next_tokens("economy", 0.1, 4)
    telemetry.next_tokens("economy", 0.3, 1)
    name = "farthing_inter_token_latency_seconds"
    labels = {"policy": "economy"}
    assert value(telemetry, f"{name}_count", **labels) == 5
    assert value(telemetry, f"{name}_sum", **labels) == pytest.approx(0.4)
    found = [value(telemetry, f"{name}_bucket", le=le, **labels) for le in ("0.01", "0.025", "0.3")]
    assert found == [0, 4, 5]
    assert value(telemetry, f"{name}_bucket", le="+Inf", **labels) == 5
