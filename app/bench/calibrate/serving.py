"""A gateway for one calibration alone: a process on a free port, ended whatever happens."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from app.bench.processes import CLI, serving

_ALONE = {
    "host": "127.0.0.1",
    "port": "0",
    "workers": "1",
    "no_auth": "true",
    "first_key": "false",
    "ledger": "off",
    "rate_store": "memory",
    "root_path": "",
    "responses_keep_s": "0",
    "decisions_keep_s": "0",
    "access_log": "false",
}
"""Settings: nobody else uses it, nothing is kept, all else is as `farthing serve` would have it."""

_SERVE = f"""
import ctypes, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, {signal.SIGKILL:d})  # PR_SET_PDEATHSIG: should its parent be killed
{CLI[1]}
"""


@contextmanager
def gateway(config: Path, log: Path, more: Mapping[str, str] = _ALONE) -> Iterator[str]:
    """The URL of a gateway with the fleet of this file, and these settings. `log`: where what it
    says goes.

    Raises ConfigError where it does not start, with what it said.
    """
    settings = {**_ALONE, **more, "config": str(config.resolve())}
    with _ends_as_by_ctrl_c(), serving(["-c", _SERVE, "serve"], settings, log=log) as served:
        yield f"http://{served.host}:{served.port}"


@contextmanager
def _ends_as_by_ctrl_c() -> Iterator[None]:
    """By SIGTERM, or when the terminal goes, this process would end at once, and leave the gateway
    behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}
    ends = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in ends:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)  # asyncio's own, while it runs
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)
