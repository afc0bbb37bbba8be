"""A real Prometheus with our rules, scraping every other second; and what it answers."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests import servers
from tests.dashboards.expressions import DOCKER

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Series:
    """What an expression answered for one set of labels: (time, value), numbers only."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]

    @property
    def last(self) -> float:
        return self.points[-1][1]

    @property
    def tells(self) -> bool:
        """It was another than 0 at some time."""
        return any(value for _, value in self.points)


@dataclass
class Prometheus:
    """One that runs, and since when."""

    http: httpx.Client
    began: float = field(default_factory=time.time)

    def over_time(self, expr: str) -> list[Series]:
        """What a graph shows of it: a point each second. Raises AssertionError for no PromQL."""
        asked = {"query": expr, "start": self.began, "end": time.time(), "step": 1}
        found = self.get("query_range", **asked)["result"]
        return _series((each["metric"], each["values"]) for each in found)

    def now(self, expr: str, at: float | None = None) -> list[Series]:
        """What it is at this moment, or was at that one."""
        found = self.get("query", query=expr, time=time.time() if at is None else at)
        if found["resultType"] == "scalar":
            return _series([({}, [found["result"]])])
        return _series((each["metric"], [each["value"]]) for each in found["result"])

    def values(self, label: str, series: str) -> set[str]:
        """What this label of this series has been, as Grafana asks for a variable's choice."""
        return set(self.get(f"label/{label}/values", **{"match[]": series}))

    def alerts(self) -> dict[str, str]:
        """The state of each alert that is not inactive; firing, if it is so of anything."""
        found = [(a["labels"]["alertname"], a["state"]) for a in self.get("alerts")["alerts"]]
        return dict(sorted(found, reverse=True))  # pending comes first, and firing prevails

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def get(self, path: str, **asked: Any) -> Any:
        answer = self.http.get(f"/api/v1/{path}", params=asked)
        assert answer.status_code == 200, (asked, answer.text)
        return answer.json()["data"]


def _series(found: Any) -> list[Series]:
    read = ((labels, [(at, float(value)) for at, value in points]) for labels, points in found)
    kept = ((labels, [p for p in points if not math.isnan(p[1])]) for labels, points in read)
    return [Series(labels, points) for labels, points in kept if points]


@contextmanager
def scraping(gateway: str, others: Sequence[str], folder: Path) -> Iterator[Prometheus]:
    """One that scrapes the gateway at this `host:port`, and the servers behind it, by the file that
    docker/compose.yaml gives to it. Raises Missing."""
    program, port = servers.program("prometheus"), servers.free_port()
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text("utf-8"))
    # A scrape may take as long as it is to the next one; beside other tests one takes above 1 s.
    config["global"] = {
        "scrape_interval": "2s",
        "scrape_timeout": "2s",
        "evaluation_interval": "1s",
    }
    config["rule_files"] = [str(DOCKER / "prometheus" / name) for name in config["rule_files"]]
    targets = {"farthing": [gateway], "vllm": list(others)}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": targets.pop(job["job_name"])}]
    assert not targets
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        *(program, f"--config.file={folder / 'prometheus.yml'}", "--log.level=warn"),
        *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            _wait(http, process, folder / "prometheus.log")
            yield Prometheus(http)
    finally:
        process.terminate()
        process.wait(30)


def _wait(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 30
    while not _ready(http):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
