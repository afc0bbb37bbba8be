"""A KV connector for vLLM 0.32 that predicts keys and values of a prompt in the worker.

Named to vLLM by `--kv-transfer-config`, as `predicting.py` does it; what a request asks of it is
in `asks.py`. It claims the prompt's tokens as if another server had computed them, and puts them
in place between steps, so that other requests go on meanwhile (vLLM's asynchronous loading): a
step has hardly more tokens than vLLM's own would. Predictions are a function of the prompt's ids
alone. A request that was preempted is predicted anew, as far as its blocks are not cached. What
they leave in the prefix cache is found by requests with the same `cache_salt` only, and asks
without one that begins with `asks.SALT` are not honoured. On a GPU it has been read, not run.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm import __version__ as vllm_version
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.tokenizers import cached_tokenizer_from_config

from app.nets.kv_predictor import About, KVPredictor
from app.vllm_plugins import asks, first_layers
from app.vllm_plugins.channel import Placed, Sender
from app.vllm_plugins.first_layers import FirstLayers
from app.vllm_plugins.injection import Injection
from app.vllm_plugins.predictions import Ask, Cost, Desk, Orders, Span
from app.vllm_plugins.state_file import tell

SUPPORTED = "0.32"  # the interface is experimental, and changes with vLLM's minor versions
WORKER = "app.vllm_plugins.predicting_worker.PredictingWorker"

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_PROMPT_LOOKUPS = ("ngram", "ngram_gpu", "suffix")  # drafts that no model's KV is needed for

logger = logging.getLogger("vllm.farthing")  # below vLLM's own, so that its handlers show it


@dataclass
class Metadata(KVConnectorMetadata):
    """What vLLM carries from the scheduler to the worker before a step."""

    orders: Orders = field(default_factory=Orders)


class KVPredictorConnector(KVConnectorBase_V1):
    """Either half: vLLM makes one for its scheduler and one for its worker."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """Raises ValueError, naming the file, where a predictor does not fit the model, and where
        nothing can be predicted here."""
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        problem = _why_not(vllm_config, kv_cache_config)
        if problem is not None:
            raise ValueError(f"KV prediction cannot be had here: {problem}")
        named = self._kv_transfer_config.get_from_extra_config("predictors", [])
        config = vllm_config.model_config.hf_text_config
        self._sender: Sender | None = None
        self._predictors = load([Path(name) for name in named], config)
        if role == KVConnectorRole.SCHEDULER:
            self._init_scheduler({name: each.about for name, each in self._predictors.items()})

    # The scheduler's half.

    def _init_scheduler(self, abouts: Mapping[str, About]) -> None:
        able = asks.Predicting({name: about.share for name, about in abouts.items()})
        costs = {name: _cost(about) for name, about in abouts.items()}
        largest = self._vllm_config.scheduler_config.max_num_batched_tokens
        self._desk = Desk(able, costs, largest, _pieces(self._vllm_config.model_config))
        self._told: set[str] = set()  # requests whose number of predicted tokens was reported
        path = os.environ.get(asks.SOCKET_VARIABLE)
        self._sender = Sender(path) if path else None
        logger.info("farthing: keys and values are predicted by request: %s", able)
        tell(asks.PREDICTION_VARIABLE, able.to_json())

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        """How many tokens behind those in the prefix cache will be put in place, between steps."""
        ask, prompt = self._ask(request), request.num_prompt_tokens
        found = self._desk.promise(request.request_id, ask, prompt, num_computed_tokens)
        return (0, False) if found is None else (found.end - found.start, True)

    def _ask(self, request: Any) -> Ask | None:
        params = request.sampling_params
        whole = request.prompt_token_ids and not request.mm_features and not request.lora_request
        if params is None or not whole:
            return None
        return self._desk.ask(params.extra_args, request.cache_salt)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """The blocks are there: order what was promised, and say once how much it is."""
        ask = self._ask(request)
        if ask is None:
            return
        placed = Span(0, 0, 0)
        if num_external_tokens > 0:
            (ids,) = blocks.get_block_ids()
            order = request.request_id, ask, list(request.prompt_token_ids), list(ids)
            placed = self._desk.order(*order, num_external_tokens)
        if request.request_id in self._told:
            return  # its keys and values are there now, or it was preempted
        self._told.add(request.request_id)
        if ask.call is not None and self._sender is not None:
            self._sender.send([Placed(ask.call, placed.predicted, placed.computed)])

    def build_connector_meta(self, scheduler_output: Any) -> Metadata:
        scheduled = scheduler_output.total_num_scheduled_tokens
        return Metadata(self._desk.orders(scheduler_output.finished_req_ids, scheduled))

    def update_connector_output(self, connector_output: Any) -> None:
        self._desk.fail(set(connector_output.failed_recving or ()))

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        self._desk.forget(request.request_id)
        self._told.discard(request.request_id)
        return False, None

    def shutdown(self) -> None:
        if self._sender is not None:
            self._sender.close()

    # The worker's half.

    def attach(self, model: Any) -> None:
        """Be lent vLLM's model, once it and its KV cache are there."""
        config, device = self._vllm_config.model_config, self._vllm_config.device_config.device
        (group,) = self._kv_cache_config.kv_cache_groups
        spec = group.kv_cache_spec
        self._injection = Injection(
            FirstLayers(model),
            {name: each.to(device, config.dtype) for name, each in self._predictors.items()},
            (spec.num_kv_heads, spec.head_size),
            spec.block_size,
            torch.device(device),
        )

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Behind a step's forward pass, or in its place: put the next pieces in place."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Metadata)
        layers = _attention(forward_context.no_compile_layers)

        def write(
            layer: int, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor
        ) -> None:
            found = layers[layer]
            found.impl.do_kv_cache_update(found, keys, values, found.kv_cache, slots)

        self._injection.step(metadata.orders, write)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        done, lost = self._injection.finished()
        return KVConnectorTransferResults(finished_recving=done, failed_recving=lost)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded for the step under way."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""


def load(paths: Sequence[Path], config: Any) -> dict[str, KVPredictor]:
    """By name (`layers-20`), the predictors in these files, for a model of transformers'
    configuration. Raises ValueError, naming the file."""
    found: dict[str, KVPredictor] = {}
    heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ours = (config.hidden_size, config.num_hidden_layers, heads * size)
    for path in paths:
        try:
            predictor = KVPredictor.load(path)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}") from error
        about = predictor.about
        name = f"layers-{about.kept}"
        if (about.hidden, about.layers, about.width) != ours:
            raise ValueError(
                f"{path}: is for {about.layers} layers of {about.hidden} and keys of"
                f" {about.width}; the model has {ours[1]} of {ours[0]} and {ours[2]}"
            )
        if about.kind != "layers":
            raise ValueError(f"{path}: is told by another model, not by the model's first layers")
        if name in found:
            raise ValueError(f"{path}: there is another predictor by {about.kept} first layers")
        found[name] = predictor
    return dict(sorted(found.items(), key=lambda item: -item[1].about.share))  # the best first


def _cost(about: About) -> Cost:
    return Cost(about.kept / about.layers, about.share)


def _pieces(config: Any) -> Callable[[int], bytes]:
    """What each token adds to a text; without a tokenizer nothing is known of it."""
    tokenizer = cached_tokenizer_from_config(config)

    @functools.cache
    def piece(id: int) -> bytes:
        return b"" if tokenizer is None else str(tokenizer.decode([id])).encode()

    return piece


def _attention(modules: Mapping[str, Any]) -> dict[int, Any]:
    """vLLM's attention, by layer."""
    named = ((_LAYER.search(name), module) for name, module in modules.items())
    return {int(found[1]): module for found, module in named if found and hasattr(module, "impl")}


def _why_not(config: Any, cache: Any) -> str | None:
    """Why nothing can be predicted for this server; None: it can."""
    parallel, speculative = config.parallel_config, config.speculative_config
    if not str(vllm_version).startswith(f"{SUPPORTED}."):
        return f"farthing knows vLLM {SUPPORTED}, and this is vLLM {vllm_version}"
    if parallel.worker_cls != WORKER:
        return f"it needs --worker-cls {WORKER}"
    if parallel.world_size != 1:
        return "the model is spread over several devices"
    if speculative is not None and speculative.method not in _PROMPT_LOOKUPS:
        return "a draft model would lack the keys and values of what is predicted for its base"
    if len(cache.kv_cache_groups) != 1:
        return "the model's layers have caches of different kinds"
    if not str(config.cache_config.cache_dtype).startswith(("auto", "float", "bfloat")):
        return f"its KV cache is of the type {config.cache_config.cache_dtype}"
    return first_layers.why_not(config.model_config.hf_text_config)
