"""The bench of the gateway's overhead: its arithmetic, its upstream, and a short run of it all."""

import json

import pytest

from app.bench import overhead, processes
from app.bench.load import Failed, Load, Observed, drive
from app.bench.overhead_figures import Point, Sample, figures
from app.errors import ConfigError


def sample(cpu=0.0, requests=100, chunks=6400, p50=1.0, p99=2.0, first=0.5):
    return Sample(Observed(requests, 2.0, chunks, p50, p99, first, 2 * first), cpu)


def test_what_is_added_is_the_difference_to_the_direct_way_in_the_same_round():
    rounds = [
        {
            Point("direct", "whole", 1): sample(p50=1.0 + noise, p99=2.0),
            Point("vllm", "whole", 1): sample(cpu, p50=1.5 + noise, p99=4.0),
        }
        for noise, cpu in ((0.0, 0.05), (7.0, 0.06), (0.5, 0.04))
    ]
    found = figures(rounds)
    added = found["vllm"]["whole"][1]
    assert added["added_p50_ms"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    assert added["added_p99_ms"]["mean"] == pytest.approx(2.0)
    assert added["requests_per_s"]["mean"] == pytest.approx(50)
    cpu = added["cpu_ms_per_request"]
    assert cpu["mean"] == pytest.approx(0.5)
    assert 0.4 <= cpu["low"] < 0.5 < cpu["high"] <= 0.6
    assert "cpu_us_per_chunk" not in added  # it has no chunks
    assert set(found["direct"]["whole"][1]) == {"p50_ms", "p99_ms", "requests_per_s"}


def test_a_paced_stream_is_late_by_its_first_chunk():
    rounds = [
        {
            Point("direct", "paced", 32): sample(p50=640.0, first=0.5),
            Point("vllm", "paced", 32): sample(0.32, p50=650.0, first=1.25),
        }
    ]
    found = figures(rounds)["vllm"]["paced"][32]
    assert found["added_p50_ms"]["mean"] == pytest.approx(0.75)
    assert found["added_p99_ms"]["mean"] == pytest.approx(1.5)
    assert found["cpu_us_per_chunk"]["mean"] == pytest.approx(50)
    assert found["chunks_per_s"]["mean"] == pytest.approx(3200)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(overhead, "QUICK", overhead.Length(rounds=2, seconds=0.05, idle=0.1))
    monkeypatch.setattr(overhead, "CONCURRENCY", (3,))
    monkeypatch.setattr(overhead, "TOKENS", 8)


@pytest.mark.slow
def test_it_writes_what_a_real_gateway_adds(short, tmp_path, capsys):
    file = tmp_path / "figures.json"
    overhead.run(quick=True, json_file=file)
    report = json.loads(file.read_text())
    assert set(report["figures"]) == {"direct", "openai", "vllm"}
    for kind in ("openai", "vllm"):
        for mode in ("whole", "burst", "paced"):
            found = report["figures"][kind][mode]["3"]
            assert found["cpu_ms_per_request"]["mean"] > 0
            assert found["requests_per_s"]["mean"] > 0
            assert "added_p50_ms" in found and "added_p99_ms" in found
            assert (mode != "whole") == ("cpu_us_per_chunk" in found)
    for one in report["rounds"]:
        for point in one:
            seen = point["observed"]
            tokens = 0 if point["mode"] == "whole" else 8
            assert seen["chunks"] == seen["requests"] * tokens
    assert "CPU a chunk" in capsys.readouterr().out


async def test_an_answer_that_is_none_is_told():
    request = "GET /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with (
        processes.serving(("-m", "app.bench.mock_server"), {}) as server,
        pytest.raises(Failed, match="404"),
    ):
        await drive(Load(server.host, server.port, request, at_once=2, seconds=0.1))


@pytest.mark.parametrize("log", [None, "server.log"])
def test_a_server_that_does_not_start_is_told(log, tmp_path):
    with (
        pytest.raises(ConfigError, match="did not start.*no such"),
        processes.serving(("-c", "exit('no such thing')"), {}, log=log and tmp_path / log),
    ):
        pass
