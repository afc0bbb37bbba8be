"""What was said is put together from whatever servers send."""

import json

import pytest

from app.telemetry.content import Heard
from app.types import Chunk


@pytest.mark.parametrize(
    "odd",
    [
        *({"delta": "text"}, {"message": ["text"]}, {"delta": {"content": ["part"]}}),
        *({"index": None, "text": "x"}, {"index": [0], "finish_reason": "stop"}),
    ],
)
def test_what_is_not_as_the_api_has_it_is_left_out(odd):
    heard = Heard()
    for choice in (odd, {"index": 0, "delta": {"content": "well"}, "finish_reason": "stop"}):
        heard.note(Chunk(raw=b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()))
    (message,) = json.loads(heard.messages())
    assert message["parts"] == [{"type": "text", "content": "well"}]
    assert message["finish_reason"] == "stop"
