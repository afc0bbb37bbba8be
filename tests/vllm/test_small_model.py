"""The small model that we ship, on a real vLLM server: it writes what it writes here."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.bench.prompts import OWN
from app.bench.reading import Measured, Weights
from app.catalog import read
from app.downloads import local_path
from app.settings import DEFAULT_CONFIG, Settings
from app.types import Sampling
from tests.vllm.two_servers import ByHand
from tests.vllm_servers import serving

pytestmark = [pytest.mark.vllm, pytest.mark.model]
TINY, TOKENS = "smollm2-tiny", 24


def test_vllm_writes_what_the_embedded_engine_does(tmp_path: Path, smollm2_gguf: Path) -> None:
    folder = local_path(read(DEFAULT_CONFIG).models[TINY], Settings().models_dir)
    here = Measured.load(Weights(TINY, folder, smollm2_gguf, "fp32"))
    prompts = [here.chat(text) for text in OWN[:6]]
    wanted = here.write(prompts, TOKENS, Sampling(temperature=0.0))
    with serving("fp32", 0, tmp_path, model=TINY) as server:
        there = ByHand(server)
        for prompt, ids in zip(prompts, wanted, strict=True):
            body = {"prompt": prompt, "temperature": 0, "max_tokens": TOKENS}
            answer = there.post("/v1/completions", {**body, "return_token_ids": True})
            assert answer["choices"][0]["token_ids"] == ids
        there.http.close()
