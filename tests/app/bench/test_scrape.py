"""The bench of scrapes: a short run of it all, with a small catalog."""

import json

import pytest

from app.bench import scrape
from app.bench.processes import family


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(scrape, "QUICK", scrape.Length(repeats=1, scrapes=2, seconds=0.3))
    for name, size in (("MODELS", 2), ("PRESETS", 2), ("WORKERS", 2)):
        monkeypatch.setattr(scrape, name, size)


@pytest.mark.slow
def test_it_writes_what_a_scrape_of_all_workers_costs(short, tmp_path, capsys):
    file = tmp_path / "figures.json"
    scrape.run(quick=True, json_file=file)
    report = json.loads(file.read_text())
    found = report["scrape"]
    # Every model by itself and by each preset has at least a counter of tokens.
    assert found["series"] > 500 and found["bytes"] > 50 * found["series"]
    assert found["zipped"] < found["bytes"] / 5
    assert found["cpu"] > 0 and 0 < found["seconds"] <= found["longest"]
    for gaps in (report["alone"], report["scraped"]):
        assert 1 < gaps["p50"] <= gaps["p99"] <= gaps["most"]
        assert gaps["chunks"] >= scrape.STREAMS * (scrape._TOKENS - 1)
    assert "scraped all the while" in capsys.readouterr().out


def test_a_process_that_has_started_none_is_its_own_family():
    assert family(1 << 30) == [1 << 30]
