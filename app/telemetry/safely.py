"""An answer is worth more than what is told of it: what goes wrong in the telling is logged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


def safely(tell: Callable[P, T], *told: P.args, **more: P.kwargs) -> T | None:
    """What this returns; None where it raises."""
    try:
        return tell(*told, **more)
    except Exception:  # whatever it was: nobody who is answered is to blame for it
        log.exception("%s failed", getattr(tell, "__qualname__", "telemetry"))
        return None
