"""
Every error raised on purpose, each with its HTTP status:

* FarthingError (500)
  + ConfigError: a setting or farthing.toml; ends the start
  + BadRequest (400)
    - EngineUnsupported: the engine cannot do what was asked
    - ContextOverflow: prompt and answer do not fit the model's context
  + InvalidKey (401): no API key, or not one of ours
  + BudgetExceeded (402): the budget does not pay for it
    - Unaffordable: a call inside an answer; policies may catch it and steer
    - KeySpent: a limit of the API key; `param` names it
  + Forbidden (403): the key may not do this
  + UnknownModel (404)
  + UnknownKey (404): an administrator named a key that does not exist
  + TooSlow (408): the request did not arrive in time
  + UnknownResponse (404): none is kept under this id for whoever asks
  + UnknownAnswer (404): there is none of this id to explain to whoever asks
  + BodyTooLarge (413)
  + HeadersTooLarge (431)
  + Overloaded (429): the queue is full; try again after a while
    - RateLimited: a rate of the API key, or money that running requests hold
  + EngineError (502): something behind us failed
    - EngineUnavailable (503): no healthy engine for the model, and nothing was begun
    - EngineLost: it broke off before it said anything; it may have worked in vain
  + LedgerUnavailable (503): the store of keys and spending does not answer
  + SandboxUnavailable (503): untrusted code cannot be confined, and so is not run
  + DeadlineExceeded (504)
"""

from typing import Literal


class FarthingError(Exception):
    """An error with a message for whoever caused it.

    `param` names the field or header at fault. `retry` False tells stock clients not to retry
    (`x-should-retry: false`); `retry_after` is in seconds.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    retry: bool | None = None

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class ConfigError(FarthingError):
    """A setting that cannot be used; the message names file, table and key."""


class BadRequest(FarthingError):
    status = 400
    type = "invalid_request_error"


class EngineUnsupported(BadRequest):
    code = "unsupported"


class ContextOverflow(BadRequest):
    code = "context_length_exceeded"


class InvalidKey(FarthingError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class BudgetExceeded(FarthingError):
    status = 402
    type = "budget_exceeded"
    code = "budget_exceeded"
    retry = False


class Unaffordable(BudgetExceeded):
    """The rest of the budget does not buy one token of this call."""


class KeySpent(BudgetExceeded):
    """The key's limit, not the request's budget; `param` is the limit's name."""


class Forbidden(FarthingError):
    status = 403
    type = "invalid_request_error"
    code = "not_allowed"


class UnknownModel(FarthingError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class UnknownKey(FarthingError):
    status = 404
    type = "invalid_request_error"
    code = "key_not_found"


class TooSlow(FarthingError):
    status = 408
    type = "invalid_request_error"
    code = "request_too_slow"


class UnknownResponse(FarthingError):
    status = 404
    type = "invalid_request_error"
    code = "response_not_found"


class UnknownAnswer(FarthingError):
    status = 404
    type = "invalid_request_error"
    code = "answer_not_found"


class BodyTooLarge(FarthingError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class HeadersTooLarge(FarthingError):
    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class Overloaded(FarthingError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class RateLimited(Overloaded):
    code = "rate_limit_exceeded"


class EngineError(FarthingError):
    status = 502
    type = "engine_error"


class EngineUnavailable(EngineError):
    status = 503
    code = "engine_unavailable"


class EngineLost(EngineError):
    pass


class LedgerUnavailable(FarthingError):
    status = 503
    code = "ledger_unavailable"

    def __init__(self, message: str = "The ledger does not answer; try again") -> None:
        super().__init__(message, retry_after=1.0)


class SandboxUnavailable(FarthingError):
    status = 503
    code = "sandbox_unavailable"


class DeadlineExceeded(FarthingError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    retry = False


def blamed(error: Exception) -> Literal["failed", "refused"]:
    """Whose fault it is: an engine's or our own, or that of whoever asked."""
    if isinstance(error, FarthingError) and not isinstance(error, EngineError):
        return "refused"
    return "failed"


def to_install(extra: str) -> str:
    """The README's command for what an extra brings; farthing itself is no package of an index."""
    return f"pip install -c constraints.txt '.[{extra}]'"
