"""Real models that hand over to each other: what is told of it is what happened."""

from __future__ import annotations

import pytest

from tests.prompts import OWN
from tests.real.real import LARGE, SMALL, Real

pytestmark = pytest.mark.model
_TOLD = ("kind", "token", "model", "entropy", "threshold", "rest_usd")


def test_the_decisions_that_are_kept_are_those_that_the_answer_told(real: Real) -> None:
    switches = 0
    for number, prompt in enumerate(OWN[::4]):
        headers = {"X-Debug": 1, "X-Budget-Usd": "0.0001", "X-Request-Id": f"ours {number}"}
        answer = real.ask(prompt, headers=headers)
        document = real.http.get(f"/v1/decisions/{answer.id}").json()
        told = answer.farthing["switches"]
        kept = [{name: one[name] for name in _TOLD} for one in document["decisions"]]
        assert kept == [{name: one[name] for name in _TOLD} for one in told]
        switches += len(told)
        assert document["cost"]["usd"] == answer.usage.cost
        assert sum(call["usd"] for call in document["calls"]) == pytest.approx(answer.usage.cost)
        visible = {n: line["visible_tokens"] for n, line in document["cost"]["models"].items()}
        assert visible == answer.farthing["models"]
        assert {way["name"] for way in document["alternatives"]} == {"economy", SMALL, LARGE}
        assert len(document["calls"]) == len(told) + 1
        assert real.http.get(f"/v1/decisions/ours {number}").json() == document
        said = answer.choices[0].message.content
        words = {word for word in (*prompt.split(), *said.split()) if len(word) > 9}
        assert [word for word in words if word in str(document)] == []
    assert switches > 0
