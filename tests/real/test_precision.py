"""A model in two precisions, and the load that the real engine tells of each."""

from __future__ import annotations

import pytest

from tests.real.real import LARGE, Real, until

pytestmark = pytest.mark.model
INT8 = f"{LARGE}-int8"
RUNNING = "farthing_engine_running"


def test_it_answers_by_the_calls_that_run_in_the_engine(real: Real) -> None:
    alone = real.ask("Who keeps the lamp?", model="brisk", max_tokens=4)
    assert alone.farthing["decided"]["detail"].endswith("tokens/s of 1 call together")
    assert set(alone.farthing["models"]) == {INT8}
    assert alone.farthing["fidelity"] == "approximate"
    until(lambda: real.gauge(RUNNING) == 0, 30)
    both = [
        real.ask(
            f"{n}. Tell a tale.",
            model=name,
            max_tokens=512,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for n, name in enumerate((LARGE, INT8, INT8))
    ]
    try:
        for stream in both:
            next(iter(stream))
        busy = real.ask("Who keeps the lamp?", model="brisk", max_tokens=4)
        assert busy.farthing["decided"]["detail"].endswith("tokens/s of 4 calls together")
    finally:
        for stream in both:
            stream.close()
    until(lambda: real.gauge(RUNNING) == 0, 30)
    document = real.http.get(f"/v1/decisions/{busy.id}").json()
    ways = {way["name"]: way for way in document["alternatives"] if way["kind"] == "model"}
    assert set(ways) == {LARGE, INT8} and ways[INT8]["chosen"]
    assert ways[INT8]["latency_s"] < ways[LARGE]["latency_s"]


def test_an_answer_in_the_named_precision_is_exact(real: Real) -> None:
    named = real.ask("Why?", model=INT8, max_tokens=4, extra_body={"policy": "precision"})
    assert named.farthing["fidelity"] == "exact" and set(named.farthing["models"]) == {INT8}
    direct = real.ask("Why?", model=INT8, max_tokens=4)
    assert named.choices[0].message.content == direct.choices[0].message.content
