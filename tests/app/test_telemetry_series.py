"""The number of series has a bound, which is that of the catalog."""

from itertools import product
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app import factory
from app.factory import most_series as most_of_app
from app.gateway import Outcome
from app.reasons import STRATEGIES
from app.telemetry.counting import (
    FALLBACKS,
    KINDS,
    OUTCOMES,
    PLANNED,
    STATUSES,
    TRIED,
    Telemetry,
    reasons,
)
from app.telemetry.names import Server
from app.telemetry.series import most_series
from app.trail import CallRecord
from app.types import HAND_OVERS, Chunk, Decision, Promise, Usage
from tests.app.test_telemetry import Answered, Bill, Line

MODELS = ("small", "large")
SERVERS = [Server("large", "a:1"), Server("large", "b:1"), Server("small", "embedded")]
HOWS = (("economy", "switching"), ("", "switching"), ("", "direct"), ("mine", "hostile"))
ANY = (*MODELS, "mine")
ROUTES = ("/v1/chat", "/v1/completions", "/health")


@pytest.fixture
def telemetry():
    telemetry = Telemetry()
    telemetry.names.know(MODELS, {"economy": "switching"}, ["switching", "direct"], SERVERS)
    return telemetry


def samples(telemetry):
    families = text_string_to_metric_families(telemetry.scrape().decode())
    return sum(len(family.samples) for family in families)


def planned(telemetry):
    for way, why in product((*ANY, *(preset for preset, _ in HOWS)), PLANNED):
        promise = Promise(way, way, 1.0, 1.0, 1.0, why)
        telemetry.answered(Answered(promise=promise, budget=None, bill=Bill([])), "kept")


def everything(telemetry):
    """All that can be counted, under all names, some of them nobody's."""
    usage = Usage(9, 1, 5, 4, 2, 2, 3)
    for model, (preset, policy) in product(ANY, HOWS):
        decisions = [
            Decision(kind, to, 1, entropy=1.0, saves=1.0)
            for kind, to in product((*HAND_OVERS, *FALLBACKS, *STRATEGIES, "predict"), ANY)
        ]
        bill = Bill([Line(each, usage, 1, 3, 10**6) for each in ANY])
        for fidelity, outcome in product(("exact", "approximate"), (*OUTCOMES, "new")):
            answer = Answered(model, preset, policy, fidelity, 5, decisions, bill)
            telemetry.answered(answer, outcome)
        who = telemetry.who(answer)
        telemetry.first_token(who, 0.1)
        telemetry.next_tokens(who)(0.1, 1)
        for each in ANY:
            telemetry.entropies(who, each)(1.0)
            telemetry.handed_over(who, each, 0.1)
        for tried in TRIED:
            call = CallRecord(model, 9)
            call.saw(Chunk(usage=usage))
            for server in ("a:1", "b:1", "embedded", "mine"):
                call.tried(server, tried)
            telemetry.called(answer, call)
        for route, status in product(ROUTES[:2], (*STATUSES, 299)):
            telemetry.requested(route, who, status, 0.1)
    planned(telemetry)
    nobody = telemetry.names.who("", "", "")
    for route, status in product((*ROUTES, "other"), (*STATUSES, 299)):
        telemetry.requested(route, nobody, status, 0.1)
    for reason in reasons():
        telemetry.refused(reason)
    gauged = [telemetry.names.server(*server) for server in (*SERVERS, *product(ANY, ("mine",)))]
    for name in ("up", "running", "waiting", "breaker_open"):
        telemetry.show(f"farthing_engine_{name}", dict.fromkeys(gauged, 1.0))
    models = {(telemetry.names.model(model),): 1.0 for model in ANY}
    telemetry.show("farthing_queue_waiting", models)
    telemetry.show("farthing_engine_kv_bytes", models)
    telemetry.show("farthing_build_info", {("1", "x"): 1.0})


def test_the_bound_is_what_there_is_when_everything_has_happened(telemetry):
    most = most_series(telemetry.names, len(ROUTES), 2)
    everything(telemetry)
    assert samples(telemetry) == most


def test_what_clients_send_does_not_raise_it(telemetry):
    most = most_series(telemetry.names, len(ROUTES), 2)
    for n in range(100):
        answer = Answered(f"m{n}", f"p{n}", f"q{n}")
        telemetry.answered(answer, f"o{n}")
        telemetry.requested("/v1/chat", telemetry.who(answer), 1000 + n, 0.1)
    assert most_series(telemetry.names, len(ROUTES), 2) == most
    assert samples(telemetry) < most / 10


def test_the_words_are_those_of_the_rooms_that_say_them():
    assert set(OUTCOMES) == set(get_args(Outcome))
    assert len(KINDS) == 8


def test_an_app_tells_its_bound(gateway_app):
    one = most_of_app(gateway_app)
    front = gateway_app.state.front
    front.telemetry.names.know(["third"], {}, ())
    assert one < most_of_app(gateway_app) < 2 * one


def test_all_of_its_routes_count(gateway_app):
    names, routes = gateway_app.state.front.telemetry.names, len(gateway_app.openapi()["paths"])
    assert routes > 20
    answering = factory._paths(factory._ANSWERING)
    assert most_of_app(gateway_app) >= most_series(names, routes, len(answering))
