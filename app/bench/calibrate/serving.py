"""A gateway for one calibration alone: a process on a free port, ended whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def gateway(config: Path, log: Path) -> Iterator[str]:
    """The URL of a gateway with the fleet of this file. `log`: where what it says goes.

    Raises ConfigError where it does not start, with what it said.
    """
    settings = {**_ALONE, "config": str(config.resolve())}
    with serving([*CLI, "serve"], settings, log=log) as served:
        yield f"http://{served.host}:{served.port}"
