"""Tools under a policy over servers: one of them answers alone, and faults lose nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.houses import CHAT, House, Told, settled
from tests.upstreams.faults import FAULTS
from tests.upstreams.script import TEXT

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def ask(home: House, *, stream: bool, **more: Any) -> Told:
    with settled(home) as asked:
        asked.append(home.ask("economy", stream=stream, tools=TOOLS, **more))
    return asked[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("usd", "writer", "fidelity"),
    [("0.0025", "large", "exact"), ("0.0006", "small", "approximate")],
)
def test_the_best_server_that_the_budget_affords_answers_in_its_own_words(
    home: House, stream: bool, usd: str, writer: str, fidelity: str
) -> None:
    before = {upstream.model: len(upstream.calls()) for upstream in home.upstreams}
    told = ask(home, stream=stream, headers={"X-Budget-Usd": usd})
    assert told.right
    assert told.summary["whole"] == writer and set(told.summary["models"]) == {writer}
    assert told.headers["x-farthing-fidelity"] == told.summary["fidelity"] == fidelity
    for upstream in home.upstreams:
        new = upstream.calls()[before[upstream.model] :]
        sent = [request.body["tools"] for request in new if request.path == CHAT]
        assert sent == ([TOOLS] if upstream.model == writer else [])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["reset before headers", "status 500", "reset after headers"])
def test_the_next_answers_for_a_server_that_fails_before_its_first_word(
    home: House, stream: bool, fault: str
) -> None:
    home.large[0].breaks(FAULTS[fault])
    told = ask(home, stream=stream)
    assert told.right and told.summary["whole"] == "small"
    assert told.summary["fidelity"] == "approximate"
    home.ready()


def test_one_that_breaks_off_later_ends_the_answer(home: House) -> None:
    home.large[0].breaks(FAULTS["reset in mid-answer"])
    told = ask(home, stream=True)
    assert told.error and told.text and TEXT.startswith(told.text)
    home.ready()
