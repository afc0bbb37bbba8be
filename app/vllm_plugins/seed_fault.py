"""vLLM 0.32's death on a CPU of a seeded request whose prompt is read in pieces, mended.

A piece that does not end the prompt is drawn from like any other row, and what was drawn is thrown
away. vLLM then turns the row's generator back, by an offset that only generators of GPUs have: a
CPU's raises, and the whole server ends. With our mend such a row has no generator while its token
is drawn, so that there is nothing to turn back, and the seed gives what it gives in one piece.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any

import torch
from vllm import __version__ as vllm_version

SUPPORTED = "0.32"  # what is replaced here changes with vLLM's minor versions

_MARK = "_farthing_mended"

logger = logging.getLogger("vllm.farthing")  # below vLLM's own, so that its handlers show it


def mend(device: Any) -> None:
    """Replace how this process's model runner draws tokens, once, where it has the fault.

    `device`: of the runner. Never raises: without the mend a server runs as vLLM's own would.
    """
    try:
        if torch.device(device).type != "cpu" or not _is_supported():
            return
        runner = import_module("vllm.v1.worker.cpu_model_runner").CPUModelRunner  # CPUs' alone
        if not getattr(runner.sample_tokens, _MARK, False):
            runner.sample_tokens = _mended(runner.sample_tokens)
    except Exception:
        logger.exception("farthing: seeded requests with long prompts may end this server")


def _is_supported() -> bool:
    return str(vllm_version).startswith(f"{SUPPORTED}.")


def _mended(sample_tokens: Any) -> Any:
    """A runner's method that draws the tokens of a step, with the mend around it."""

    @wraps(sample_tokens)
    def mended(runner: Any, *args: Any, **keys: Any) -> Any:
        batch = runner.input_batch
        if not batch.generators:
            return sample_tokens(runner, *args, **keys)
        unread = runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0].tolist()
        with _without(batch.generators, unread):
            return sample_tokens(runner, *args, **keys)

    setattr(mended, _MARK, True)
    return mended


@contextmanager
def _without(generators: dict[int, torch.Generator], rows: list[int]) -> Iterator[None]:
    """These rows' generators are taken away for a while: where there is none, nobody draws."""
    kept = {row: generators.pop(row) for row in rows if row in generators}
    try:
        yield
    finally:
        generators.update(kept)
