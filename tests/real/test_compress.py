"""A long text, cut by what the smallest model of the default fleet expected of it."""

from __future__ import annotations

import pytest

from tests.real.real import LARGE, SMALL, Real

pytestmark = pytest.mark.model
TEXT = (
    "The lighthouse on the headland was built in 1871 by a firm of engineers who had come from the"
    " north of the country to look for work. It was the habit of the keeper, whose name was Tamsin"
    " Okonkwo, to walk along the beach in the early hours of the morning, and to bring back to the"
    " house whatever the sea had left there in the night. "
)
PROMPT = f"{TEXT * 3}He wrote “nothing that  is lost” above the door.\n\nWho was the keeper?"


@pytest.mark.parametrize("ratio", [0.8, 0.5])
def test_a_real_text_is_cut_to_its_ratio(real: Real, ratio: float) -> None:
    options = {"name": "compress", "ratio": ratio, "least": 100}
    body = {"policy": options, "max_tokens": 4}
    messages = [{"role": "user", "content": PROMPT}]
    made = [
        real.http.post(
            "/v1/chat/completions",
            json={"model": LARGE, "messages": messages, "temperature": 0, **body},
            headers={"X-Debug": "1"},
        ).json()
        for _ in range(2)
    ]
    told = made[0]["farthing"]["compressed"]
    (message,) = told["messages"]
    said = message["content"]
    assert said == made[1]["farthing"]["compressed"]["messages"][0]["content"]
    counted = [
        real.http.post("/tokenize", json={"model": LARGE, "prompt": text}).json()["count"]
        for text in (PROMPT, said)
    ]
    assert ratio * counted[0] - 4 <= counted[1] <= ratio * counted[0]
    assert told["before"] - told["after"] == pytest.approx(counted[0] - counted[1], abs=2)
    assert said.endswith("\n\nWho was the keeper?") and "“nothing that  is lost”" in said
    assert "Tamsin Okonkwo" in said and "1871" in said
    billed = made[0]["usage"]["cost_details"]["models"]
    assert billed[SMALL]["completion_tokens"] == 0 and billed[SMALL]["prompt_tokens"] > 0
    assert billed[LARGE]["prompt_tokens"] == told["after"]
