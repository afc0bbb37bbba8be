"""The engine's bench measures what it says, on the real model."""

import json
import math
from pathlib import Path

import pytest
import torch

from app.bench import engine


@pytest.mark.model
@pytest.mark.slow
def test_it_writes_every_ratio_and_what_each_round_gave(
    smollm2_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(engine, "QUICK", engine.Length(prompt=16, tokens=3, passes=1, rounds=2))
    threads = torch.get_num_threads()
    engine.run(smollm2_gguf, quick=True, json_file=tmp_path / "figures.json", threads=1)
    torch.set_num_threads(threads)
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("decode_vs_transformers", "int8_vs_transformers", "batch8_vs_1", "pass8_vs_1"):
        assert len(figures["rounds"][name]) == 2
        assert 0 < figures[name] < math.inf
    assert figures["setup"]["threads"] == 1
    assert "eight sequences against one" in capsys.readouterr().out.replace("\n", " ")
