"""Puts the keys and values of prompts in place, a piece at a time: the worker's side."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from app.nets.kv_predictor import KVPredictor, normed
from app.vllm_plugins.first_layers import FirstLayers, PromptCache
from app.vllm_plugins.predictions import Job, Orders, Piece

logger = logging.getLogger("vllm.farthing")  # below vLLM's own, so that its handlers show it


class Write(Protocol):
    """Puts keys and values `[n, kv_heads, head_dim]` of one layer into slots of the cache `[n]`."""

    def __call__(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor) -> None: ...


class Injection:
    """The prompts under way, the oldest first."""

    def __init__(
        self,
        layers: FirstLayers,
        predictors: Mapping[str, KVPredictor],
        shape: tuple[int, int],
        block: int,
        device: torch.device,
    ) -> None:
        """`predictors` by name; `shape`: of a layer's keys of a token; `block`: tokens of one."""
        self._layers = layers
        self._predictors = predictors
        self._shape = shape
        self._block = block
        self._device = device
        self._jobs: dict[str, tuple[Job, PromptCache]] = {}
        self._done: set[str] = set()
        self._lost: set[str] = set()
        self._failed = False

    def step(self, orders: Orders, write: Write) -> None:
        """Do as much as the orders allow. Never raises: what fails is vLLM's to compute."""
        self._jobs |= {job.request: (job, PromptCache(len(job.tokens))) for job in orders.new}
        for request in orders.over & self._jobs.keys():
            self._end(request)
        budget = orders.budget
        for request, (job, cache) in list(self._jobs.items()):
            if budget <= 0:
                return
            try:
                budget = self._advance(job, cache, budget, write)
            except Exception:
                if not self._failed:  # once: every request may fail alike
                    logger.exception("farthing: KV prediction failed; prompts are computed instead")
                self._failed = True
                self._lost.add(request)
                self._end(request)
                continue
            if job.done:
                self._end(request)

    def finished(self) -> tuple[set[str], set[str]]:
        """Requests that nothing more will be written for, and those of them that failed; once."""
        done, self._done = self._done, set()
        lost, self._lost = self._lost, set()
        return done, lost

    def _end(self, request: str) -> None:
        del self._jobs[request]
        self._done.add(request)

    @torch.inference_mode()
    def _advance(self, job: Job, cache: PromptCache, budget: int, write: Write) -> int:
        """The rest of the budget."""
        while budget > 0 and not job.done:
            piece = job.piece(budget)
            self._run(job, piece, cache, write)
            job.at = piece.end
            budget -= piece.end - piece.start
        return budget

    def _run(self, job: Job, piece: Piece, cache: PromptCache, write: Write) -> None:
        predictor = None if piece.true else self._predictors[job.predictor]
        depth = self._layers.layers if predictor is None else predictor.about.kept
        ids = torch.tensor(job.tokens[piece.start : piece.end], device=self._device)
        stream, rows = self._layers.run(ids, piece.start, cache, depth)
        start = max(piece.start, job.span.start)
        if predictor is not None and (start < piece.end or job.looked_at):
            made = self._predicted(predictor, stream, piece.start)
            if job.looked_at:
                for layer, (keys, values) in enumerate(made, depth):
                    cache.put(layer, piece.start, keys, values)
            rows += made
        if start >= piece.end:
            return  # all of it is cached
        slots = torch.tensor(job.slots(start, piece.end, self._block), device=self._device)
        new = start - piece.start
        for layer, (keys, values) in enumerate(rows):
            write(layer, keys[new:].contiguous(), values[new:].contiguous(), slots)

    def _predicted(
        self, predictor: KVPredictor, stream: Tensor, at: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys after RoPE and values, `[n, kv_heads, head_dim]`, of each layer that is not run, of
        tokens from the place `at` on."""
        told = normed(stream.float(), self._layers.epsilon)
        made = predictor(told.to(predictor.bias.dtype)).to(stream.dtype)
        found = []
        for place, layer in enumerate(range(predictor.about.kept, predictor.about.layers)):
            keys, values = made[:, place].unflatten(-1, self._shape).unbind(1)
            found.append((self._layers.rotated(keys, layer, at), values))
        return found
