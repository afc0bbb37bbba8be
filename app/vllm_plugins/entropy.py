"""A logits processor for vLLM 0.32 that reports exact entropies and ends calls by them.

Named to vLLM by `--logits-processors app.vllm_plugins.entropy:EntropyProcessor`, or found by it
under the entry point `vllm.logits_processors`. What it is asked is in `asks.py`, what it does in
`rows.py`. It works with model runner V1 only, and not with speculative decoding: vLLM refuses to
start with both where the processor was named to it, and drops the processor without a word where
it was found; the asks of a request are refused then. It costs a request without asks nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import weakref
from typing import Any

import torch
from vllm import SamplingParams
from vllm import __version__ as vllm_version
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from app.vllm_plugins import asks, seed_fault
from app.vllm_plugins.channel import Sender
from app.vllm_plugins.rows import Ask, EntropyRows

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as _V2Processor
except ImportError:  # another vLLM, for which we do nothing anyway
    _V2Processor = type("_V2Processor", (), {})

SUPPORTED = "0.32"  # vLLM's interfaces for this change with its minor versions

logger = logging.getLogger("vllm.farthing")  # below vLLM's own, so that its handlers show it


class EntropyProcessor(LogitsProcessor, _V2Processor):
    """Watches the rows that ask for it.

    It is a processor of runner V2 by name only: that runner refuses to start where an installed
    processor is not, and whoever has farthing beside vLLM would find his server broken by it.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError, which vLLM answers with HTTP 400: for a hello, for malformed asks,
        and for any asks where they would not be honoured."""
        given = sampling_params.extra_args or {}
        hello = asks.HELLO in given
        if not hello and Ask.read(given) is None:
            return
        why_not = _why_not()
        if why_not is not None:
            raise ValueError(f"farthing's entropy plugin is off: {why_not}")
        if hello:
            raise ValueError(f"{asks.MARKER} vllm={vllm_version}")
        _check_request(sampling_params)

    def __init__(self, vllm_config: Any, device: Any = None, is_pin_memory: bool = False) -> None:
        """Runner V2 gives its request state in place of the device."""
        self._rows = EntropyRows()
        self._failed = False
        self._live = _is_supported() and isinstance(device, torch.device | str)
        if self._live:
            seed_fault.mend(device)
        if self._live and _is_double(self, vllm_config):
            self._live = False
        path = os.environ.get(asks.SOCKET_VARIABLE)
        self._sender = Sender(path) if path and self._live else None

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if self._live and batch_update is not None:
            self._rows.update(batch_update, _ask_of)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Runner V2 asks whether this request's logits will be changed."""
        return False

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Look at, and perhaps change, logits [rows, vocabulary]. Never raises, never waits."""
        if not self._rows:
            return logits
        try:
            seen = self._rows.apply(logits)
            if seen and self._sender is not None:
                self._sender.send(seen)
        except Exception:
            if not self._failed:  # once: this runs for every token
                logger.exception("farthing's entropy plugin failed; logits are left as they are")
            self._failed = True
        return logits


_first: tuple[weakref.ref[EntropyProcessor], Any] | None = None


def _is_double(processor: EntropyProcessor, config: Any) -> bool:
    """Whether this engine has such a processor: one both named and found is loaded twice.

    The second would see the logits that the first has changed, and report them.
    """
    global _first
    if _first is not None and _first[1] is config and _first[0]() is not None:
        return True
    _first = (weakref.ref(processor), config)
    return False


def _ask_of(params: SamplingParams) -> Ask | None:
    try:
        return Ask.read(params.extra_args)
    except ValueError:  # refused at the door already; an engine without one lets it pass
        return None


def _check_request(params: SamplingParams) -> None:
    ask = Ask.read(params.extra_args)
    if params.n != 1:
        raise ValueError("entropies are reported of requests with n = 1 only")
    if ask is None or ask.stop_id is None:
        return
    if ask.stop_id not in (params.stop_token_ids or ()):
        raise ValueError(f"{asks.STOP_ID} {ask.stop_id} is not among the stop_token_ids")
    if params.structured_outputs is not None:
        raise ValueError(f"{asks.LEVEL} does not go with structured outputs, which forbid the stop")


def _why_not() -> str | None:
    """Why asks would not be honoured by the server that we run in; None: they will be."""
    if not _is_supported():
        return f"it knows vLLM {SUPPORTED}, and this is vLLM {vllm_version}"
    config = _caller_s_config()
    if getattr(config, "speculative_config", None) is not None:
        return "speculative decoding is on, and vLLM runs no logits processors with it"
    if getattr(config, "use_v2_model_runner", False):
        return "model runner V2 is in use; start vLLM with VLLM_USE_V2_MODEL_RUNNER=0"
    return None


def _is_supported() -> bool:
    return str(vllm_version).startswith(f"{SUPPORTED}.")


def _caller_s_config() -> Any:
    """The configuration of the vLLM that asks us to validate, which it does not hand over.

    It is looked for in the objects whose methods have called us; None: there is none.
    """
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        config = getattr(caller.f_locals.get("self"), "vllm_config", None)
        if config is not None:
            return config
        frame = caller
    return None
