"""The bench of accounts measures what it says, on real gateways."""

import json

import pytest

from app.bench import accounts
from app.errors import ConfigError


@pytest.mark.postgres
@pytest.mark.slow
def test_it_writes_what_each_ledger_adds_beside_none(postgres, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accounts, "QUICK", accounts.Length(requests=64, rounds=2))
    file = tmp_path / "figures.json"
    accounts.run(postgres=postgres.new_database(), quick=True, json_file=file)
    figures = json.loads(file.read_text())
    ledgers = ("sqlite", "postgres")
    assert set(figures["added"]) == {
        "off",
        *ledgers,
        *(f"{ledger}, headroom 2 s" for ledger in ledgers),
    }
    assert len(figures["rounds"]) == 2
    for at_once in (1, 32):
        for name in ("p50", "p99", "cpu"):
            median, least, greatest = figures["added"]["off"][f"{name}_ms_at_{at_once}"]
            assert 0 <= least <= median <= greatest
        # A ledger that is really asked costs something.
        assert figures["added"]["sqlite"]["p50_ms_at_1"][0] > 0
    assert "sqlite: added" in capsys.readouterr().out


def test_a_database_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be opened"):
        accounts.run(postgres="postgresql://nobody@127.0.0.1:1/none", quick=True)
