"""`farthing bench servers` measures what it says it measures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.vllm_servers import FARTHING, VLLMServer

pytestmark = [pytest.mark.vllm, pytest.mark.model]


def test_servers(small_server: VLLMServer, large_server: VLLMServer, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [
            *(FARTHING, "bench", "servers", "--quick", "--json", file),
            *("--small", small_server.url, "--small-name", small_server.name),
            *("--large", large_server.url, "--large-name", large_server.name),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    cached, uncached = figures["handover"]["cached"], figures["handover"]["uncached"]
    assert cached["switches"] == uncached["switches"] == 6
    assert cached["low"] <= cached["excess_itls"] <= cached["high"]
    # Reading some 900 tokens anew or not: no noise turns that around.
    assert cached["gap_ms"] < uncached["gap_ms"]
    sizes = [
        figures["logprobs"][name]["bytes_per_token"] for name in ("none", "k=0", "k=5", "k=20")
    ]
    assert sizes == sorted(sizes)
    assert set(figures["logprobs"]) == {"none", "k=0", "k=5", "k=20", "k=100", "plugin"}
