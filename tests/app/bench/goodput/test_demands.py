"""Classes of requests, and which request is of which."""

from __future__ import annotations

from collections import Counter

import pytest

from app.bench import items
from app.bench.goodput.demands import DEFAULT, Slo, parse, wanted
from app.errors import ConfigError
from routers import terms


def test_a_class_is_told_in_headers() -> None:
    slo = parse("quick;first_token=0.25;latency=4;usd=0.00001;weight=2")
    assert slo == Slo("quick", 0.25, 4.0, 10_000_000, 2.0)
    assert slo.headers == {terms.TTFT: "250", terms.LATENCY: "4000", terms.USD: "0.00001"}
    assert parse("any").headers == {}


@pytest.mark.parametrize("slo", DEFAULT)
def test_a_gateway_reads_the_same(slo: Slo) -> None:
    found = terms.terms(terms.Headers(dict(slo.headers)))
    assert (found.ttft, found.latency, found.usd) == (slo.first_token, slo.latency, slo.usd)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (";usd=1", "must look like NAME;first_token"),
        ("a;price=1", "must look like NAME;first_token"),
        ("a;usd=1;usd=2", "must look like NAME;first_token"),
        ("a;usd=x", "--slo a: usd: must be a number, not 'x'"),
        ("a;latency=0", "--slo a: latency: must be above 0"),
        ("a;weight=inf", "--slo a: weight: must be above 0"),
    ],
)
def test_what_is_no_class(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse(text)


def test_a_window_of_requests() -> None:
    every = items.shipped()
    questions = [one for one in every if one.task.name == "math"]
    questions += [one for one in every if one.task.name == "extraction"][:2]
    slos = (Slo("often", weight=9), Slo("seldom"))
    found = wanted([0.5 * n for n in range(400)], questions, slos, 3)
    assert [(one.number, one.at) for one in found[:2]] == [(0, 0.0), (1, 0.5)]
    kinds, classes = (
        Counter(one.question.task.name for one in found),
        Counter(one.slo.name for one in found),
    )
    assert 150 < kinds["math"] < 250 and kinds.total() == 400  # as many of each kind
    assert 340 < classes["often"] < 380
    # What one draws does not depend on what there is of the others.
    again = wanted([0.5 * n for n in range(400)], questions, slos[:1], 3)
    assert [one.question for one in again] == [one.question for one in found]
    assert wanted([0.0] * 9, questions, slos, 4) != wanted([0.0] * 9, questions, slos, 3)
