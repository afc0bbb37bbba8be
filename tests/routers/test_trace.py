"""A request that is part of a trace: what is asked for it of engines is part of it too."""

from __future__ import annotations

from typing import Any

import pytest

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, {}),
        ({"traceparent": PARENT}, {"traceparent": PARENT}),
        (
            {"traceparent": PARENT, "tracestate": "a=1,b=2"},
            {"traceparent": PARENT, "tracestate": "a=1,b=2"},
        ),
        ({"tracestate": "a=1"}, {}),
        ({"traceparent": PARENT.upper()}, {}),
        ({"traceparent": f"00-{'0' * 32}-{'cd' * 8}-01"}, {}),
        ({"traceparent": f"{PARENT}-more"}, {}),
        ({"traceparent": PARENT, "tracestate": "x" * 513}, {"traceparent": PARENT}),
    ],
)
async def test_what_the_client_says_of_a_trace_is_passed_on_where_it_can_be_true(
    house: Any, fake: Any, headers: dict[str, str], told: dict[str, str]
) -> None:
    assert (await house.ask(headers=headers)).status_code == 200
    assert fake.calls[0].trace == told
