"""What stands behind the numbers: `farthing serve` before real models and stand-ins for servers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app import catalog
from app.settings import DEFAULT_CONFIG
from tests import servers
from tests.chaos.gateways import Gateway, Ledger
from tests.policies.measured import measured
from tests.upstreams.server import Upstream, wait_for

WORKERS = 2
BUNDLED = "bundled:smollm2-135m/profile.json"  # the default fleet's, in whose place ours comes
SERVE = "from app.cli import main; main()"
# Beside the default fleet: stand-ins for vLLM servers, and what is asked of all of them.
FLEET = """
[models.small]
engine = "vllm"
urls = ["{small}"]
family = "stand-in"
gpu_seconds = {{ input = 90, cached_input = 2, output = 400 }}
usd_per_hour = 2.50

[models.large]
engine = "vllm"
urls = ["{large}", "{twin}"]
family = "stand-in"
gpu_seconds = {{ input = 900, cached_input = 20, output = 4000 }}
usd_per_hour = 2.50

[models.slow]
engine = "vllm"
urls = ["{slow}"]
served = "small"
family = "stand-in"
max_running = 1
price = {{ input = 1, output = 2 }}

[models.gone]
engine = "vllm"
urls = ["{gone}"]
served = "small"
family = "stand-in"
price = {{ input = 1, output = 2 }}

[presets.relay]
policy = "entropy_switch"
description = "the default fleet's economy, on servers"
small = "small"
large = "large"
window = 1
raise_at = 2.5
lower_at = 1.0
expected_tokens = 53

[presets.ahead]
policy = "kv_prediction"
description = "int8's answer to a long prompt, sooner and less exactly"
target = "smollm2-135m-int8"
predictor = "layers-8"
least = 128
"""


@dataclass
class House:
    """All of it, while it runs."""

    url: str
    gateway: Gateway
    ledger: Ledger
    database: servers.Postgres
    upstreams: dict[str, Upstream]
    down: set[str] = field(default_factory=set)

    def kill(self, name: str) -> None:
        """One of the servers, as if its machine had lost it."""
        self.upstreams[name].kill()
        self.down.add(name)

    def start(self, name: str) -> None:
        self.upstreams[name].start()
        self.down.discard(name)

    def close(self) -> None:
        for name in self.upstreams.keys() - self.down:
            self.upstreams[name].stop()

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def metrics(self, kind: str = "text/plain") -> str:
        """What it counts, in this format."""
        answer = httpx.get(f"{self.url}/metrics", headers={"Accept": kind}, timeout=60)
        assert answer.headers["content-type"].startswith(kind.partition(";")[0])
        return answer.text

    def gauge(self, name: str) -> list[float]:
        """The values of this metric."""
        lines = (line.split() for line in self.metrics().splitlines())
        return [float(line[-1]) for line in lines if line[0].partition("{")[0] == name]

    def whole(self) -> bool:
        """Every worker serves, and every server can be asked."""
        ups = self.gauge("farthing_engine_up")
        return self.gauge("farthing_workers") == [WORKERS] and all(ups) and bool(ups)

    def workers(self) -> set[int]:
        """The pids of those that run."""
        pid = self.gateway.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return {int(child) for child in children if "spawn_main" in _command(child)}

    def lose_worker(self) -> None:
        """One is killed, and the one in its place too: that takes a while to be replaced."""
        before = self.workers()
        os.kill(min(before), signal.SIGKILL)
        wait_for(lambda: self.workers() - before, what="another worker")
        os.kill((self.workers() - before).pop(), signal.SIGKILL)


@contextmanager
def standing(folder: Path, database: servers.Postgres) -> Iterator[House]:
    upstreams = {
        name: Upstream("large" if name in ("large", "twin") else "small")
        for name in ("small", "large", "twin", "slow", "gone")
    }
    fleet = folder / "fleet.toml"
    theirs = FLEET.format(**{name: upstream.url for name, upstream in upstreams.items()})
    fleet.write_text(DEFAULT_CONFIG.read_text("utf-8") + theirs)
    _survey(fleet, folder / "profile.json")
    more = {"FARTHING_CONFIG": str(fleet), "FARTHING_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ledger = Ledger(database.new_database(), folder, more)
    with ExitStack() as stack:
        for upstream in upstreams.values():
            upstream.start()
        gateway = Gateway(ledger, SERVE, "serve", "--workers", str(WORKERS))
        stack.callback(gateway.kill)
        house = House(gateway.ready().url, gateway, ledger, database, upstreams)
        stack.callback(house.close)
        stack.callback(gateway.stop)
        wait_for(house.whole, 300, gateway.said())
        yield house


def _survey(fleet: Path, profile: Path) -> None:
    """What was measured of two of its models, one of them in this process."""
    found = measured(catalog.read(fleet), large=1.0, **{"smollm2-tiny": 0.5}).profile
    assert found is not None
    profile.write_text(found.model_dump_json())
    named = fleet.read_text("utf-8").replace(BUNDLED, str(profile))
    fleet.write_text(named)
    assert catalog.read(fleet).profile == found


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended
        return ""
