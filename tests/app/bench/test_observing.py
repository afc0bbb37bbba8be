"""The bench of telemetry's cost: its arithmetic, and a short run of it all."""

import json
import math

import pytest

from app.bench import observing
from app.bench.load import Observed
from app.bench.observing import BURST, OFF, SIDES, WHOLE, Point, Sample, figures
from app.errors import ConfigError


def sample(cpu, requests=100):
    return Sample(Observed(requests, 2.0, 64 * requests, 1.0, 2.0, 0.5, 1.0), cpu)


def test_a_request_is_compared_with_one_of_the_same_round():
    rounds = [
        {
            Point(OFF, BURST): sample(0.1 * slow),
            Point("metrics", BURST): sample(0.24 * slow, 200),
            Point(OFF, WHOLE): sample(0.1),
            Point("metrics", WHOLE): sample(0.1),
        }
        for slow in (1.0, 3.0, 1.5)  # other processes make all of a round slow
    ]
    found = figures(rounds)
    metrics = found[BURST]["metrics"]
    assert metrics["times_off"] == pytest.approx({"mean": 1.2, "low": 1.2, "high": 1.2})
    assert metrics["cpu_ms_per_request"]["mean"] == pytest.approx(2.2)
    assert metrics["cpu_us_per_chunk"]["mean"] == pytest.approx(2200 / 64)
    assert "times_off" not in found[BURST][OFF]
    assert "cpu_us_per_chunk" not in found[WHOLE]["metrics"]


def test_every_side_is_first_in_its_turn():
    firsts = {observing._points(number)[0].side for number in range(len(SIDES))}
    assert firsts == set(SIDES)
    assert {len(set(observing._points(number))) for number in range(3)} == {4 * len(SIDES)}


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(observing, "QUICK", observing.Length(rounds=2, seconds=0.05, idle=0.1))
    monkeypatch.setattr(observing, "CLIENTS", 3)
    monkeypatch.setattr(observing, "TOKENS", 8)


@pytest.mark.slow
def test_it_writes_what_each_part_of_it_costs(short, monkeypatch, tmp_path, capsys):
    some = {name: SIDES[name] for name in (OFF, observing.ALL)}
    monkeypatch.setattr(observing, "SIDES", some)
    monkeypatch.setattr(observing, "WORKERS", 1)
    file = tmp_path / "figures.json"
    observing.run(quick=True, json_file=file)
    found = json.loads(file.read_text())["figures"]
    assert found.keys() == set(observing.MODES)
    for by_side in found.values():
        assert by_side[OFF]["cpu_ms_per_request"]["mean"] > 0
        # What a busy machine makes of so few requests may even be below 0.
        assert math.isfinite(by_side[observing.ALL]["times_off"]["mean"])
    assert "times off" in capsys.readouterr().out


def test_what_tells_nothing_is_not_measured(short, monkeypatch):
    silent = {observing.ALL: SIDES[observing.ALL] | {"log_level": "warning"}}
    monkeypatch.setattr(observing, "SIDES", {OFF: SIDES[OFF], **silent})
    monkeypatch.setattr(observing, "WORKERS", 1)
    with pytest.raises(ConfigError, match="no requests in the log"):
        observing.run(quick=True)
