"""What every engine asks of a KVPrediction before it takes it."""

from __future__ import annotations

from collections.abc import Collection

from app.errors import BadRequest, EngineUnsupported
from app.types import Call, KVPrediction

_LONGEST = 64  # characters of a conversation's name


def check(call: Call, asked: KVPrediction, there: Collection[str]) -> None:
    """`there`: the model's predictors. Raises EngineUnsupported where it is not one of these, and
    BadRequest for what makes no sense."""
    if asked.predictor not in there:
        names = ", ".join(there) or "none"
        raise EngineUnsupported(
            f"KV prediction: {call.model} has no predictor {asked.predictor!r}; there are: {names}",
            param="policy",
        )
    if asked.last < 1 or asked.first < 0:
        raise BadRequest(
            "KV prediction: the last token at least is computed: last must be 1 or more, first 0"
            " or more",
            param="policy",
        )
    if not 0 <= asked.relevant <= 1:
        raise BadRequest("KV prediction: relevant must be 0 to 1", param="policy")
    if len(asked.conversation) > _LONGEST:
        raise BadRequest(
            f"KV prediction: a conversation's name has {_LONGEST} characters at most",
            param="policy",
        )
