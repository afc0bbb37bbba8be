"""A worker for vLLM 0.32 whose drafts end when they should, request by request.

Named to vLLM by `--worker-cls app.vllm_plugins.draft_proposer.SpeculatingWorker`, beside a
`--speculative-config` of the method `draft_model`. The draft model stays vLLM's, with its paged KV
cache; how long each draft becomes and which guesses pass is ours, as `asks.py` names it and
`drafts.py` does it. Where this cannot be, the worker is vLLM's own, which makes as many guesses
for every request. It works with model runner V1, one device and scheduling in step; a request
without asks is served as vLLM would. On a GPU it has been read, not run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from vllm import __version__ as vllm_version
from vllm.platforms import current_platform
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from app.nets.acceptance_head import AcceptanceHead
from app.vllm_plugins import asks, sampling_fault, seed_fault
from app.vllm_plugins.drafts import Ask, Drafting, favour, softened
from app.vllm_plugins.state_file import tell

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_worker import Worker as _Worker

SUPPORTED = "0.32"  # what is replaced here changes with vLLM's minor versions

_NO_LENIENCE = "farthing: lenience failed; guesses are accepted exactly"

logger = logging.getLogger("vllm.farthing")  # below vLLM's own, so that its handlers show it


class SpeculatingWorker(_Worker):
    """vLLM's worker, whose model runner has our proposer and our sampler."""

    def init_device(self) -> None:
        super().init_device()
        seed_fault.mend(self.device)
        why_not = _why_not(self.vllm_config, self.model_runner)
        if why_not is not None:
            logger.warning("farthing: drafts are vLLM's own, of one length for all: %s", why_not)
            return
        runner = self.model_runner
        sampled = sampling_fault.mended(runner.device)
        if not sampled:
            logger.warning(
                "farthing: vLLM samples wrongly here when it speculates: requests with a"
                " temperature above 0 get no drafts"
            )
        head = _head(runner)
        runner.drafter = AdaptiveDraft(self.vllm_config, runner, head, sampled)
        runner.rejection_sampler = LenientSampler(runner, sampled)
        _tell(
            asks.Speculating(
                longest=runner.speculative_config.num_speculative_tokens,
                sampled=sampled,
                level=None if head is None else head.about.level,
            )
        )

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """What the scheduler will have verified.

        Near the end of the draft model's context vLLM asks nobody, and guesses token 0 throughout,
        for every row: a tensor, where ours are lists. Nobody asked for these.
        """
        taken: DraftTokenIds | None = super().take_draft_token_ids()
        runner = self.model_runner
        ours = isinstance(getattr(runner, "drafter", None), AdaptiveDraft)
        if taken is None or not ours or not torch.is_tensor(runner._draft_token_ids):
            return taken
        return DraftTokenIds(taken.req_ids, [[] for _ in taken.req_ids])


def _why_not(config: Any, runner: Any) -> str | None:
    """Why vLLM's own drafting has to stay; None: ours may take its place."""
    speculative = config.speculative_config
    if not str(vllm_version).startswith(f"{SUPPORTED}."):
        return f"farthing knows vLLM {SUPPORTED}, and this is vLLM {vllm_version}"
    if speculative is None or speculative.method != "draft_model":
        return "there is no draft model"
    if not isinstance(getattr(runner, "drafter", None), DraftModelProposer):
        return "model runner V2 is in use; start vLLM with VLLM_USE_V2_MODEL_RUNNER=0"
    if config.scheduler_config.async_scheduling:
        return "scheduling runs ahead; start vLLM with --no-async-scheduling"
    if config.parallel_config.world_size * config.parallel_config.data_parallel_size != 1:
        return "several devices would have to end their drafts together"
    if speculative.use_heterogeneous_vocab or speculative.parallel_drafting:
        return "the draft model has another vocabulary, or guesses all tokens at once"
    if speculative.rejection_sample_method != "standard":
        return f"guesses are accepted by {speculative.rejection_sample_method!r}"
    return None


def _head(runner: Any) -> AcceptanceHead | None:
    """The acceptance head that the environment names, seen to fit the draft model.

    None where it cannot be used, whatever the reason: that is logged, and the rule `head` is not
    offered.
    """
    path = os.environ.get(asks.HEAD_VARIABLE)
    if not path:
        return None
    try:
        head = AcceptanceHead.load(Path(path)).to(runner.device)
        width = runner.speculative_config.draft_model_config.get_hidden_size()
    except Exception:  # the worker would end, and the server with it
        logger.exception("farthing: the acceptance head cannot be used; drafts end without it")
        return None
    if head.about.hidden != width:
        logger.error(
            "farthing: the acceptance head is for states of width %d, and the draft model's have"
            " %d; drafts end without it",
            head.about.hidden,
            width,
        )
        return None
    return head


def _tell(state: asks.Speculating) -> None:
    """Leave word for the API server, which is another process."""
    logger.info("farthing: drafts end by request: %s", state)
    tell(asks.STATE_VARIABLE, state.to_json())


class _Stop(Exception):
    """No row wants another guess: how a batch's drafts end before vLLM's loop does."""


class AdaptiveDraft(DraftModelProposer):
    """Drafts of a batch, each as long as its request asks."""

    _last_draft_probs: torch.Tensor | None  # vLLM's: what the last guesses were drawn from

    def __init__(
        self, config: Any, runner: Any, head: AcceptanceHead | None, sampled: bool
    ) -> None:
        """`sampled`: whether requests with a temperature above 0 get drafts."""
        super().__init__(config, runner.device, runner)
        self._runner = runner
        self._head = head
        self._sampled = sampled
        self._drafting: Drafting | None = None  # of the step under way
        self._draft_probs: list[torch.Tensor] = []
        self._failed = False

    def propose(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """Guesses of each row, of different numbers. Never raises."""
        try:
            rows = kwargs["common_attn_metadata"].batch_size()
            return self._propose(rows, *args, **kwargs)
        except Exception:
            # A step without drafts is only slower; an exception would end the server.
            self._last_draft_probs = None
            if not self._failed:  # once: this runs for every token
                logger.exception("farthing: drafting failed; steps go on without drafts")
            self._failed = True
            return [[] for _ in range(self._runner.input_batch.num_reqs)]
        finally:
            self._drafting = None

    def _propose(self, rows: int, num_speculative_tokens: int, **kwargs: Any) -> list[list[int]]:
        sampling = kwargs["sampling_metadata"]
        greedy = _greedy(sampling, rows, self.device)
        given = [
            # vLLM draws guesses without a request's seed: with them it could not be repeated.
            Ask(longest=0) if row in sampling.generators else self._ask(row, bool(is_greedy))
            for row, is_greedy in enumerate(greedy.tolist())
        ]
        drafting = Drafting(given, num_speculative_tokens, greedy, self._head)
        self._drafting, self._draft_probs = drafting, []
        with suppress(_Stop):
            # Where no row wants any, one pass is made all the same: the draft's KV cache may have
            # no holes where a later request finds this one's tokens in it.
            super().propose(num_speculative_tokens=drafting.longest, **kwargs)
        if self._draft_probs:
            self._last_draft_probs = torch.stack(self._draft_probs, dim=1)
        return drafting.drafts()

    def _ask(self, row: int, greedy: bool) -> Ask:
        batch = self._runner.input_batch
        unread = row >= batch.num_reqs or bool(self._runner.discard_request_mask.np[row])
        if unread or not (greedy or self._sampled):
            return Ask(longest=0)  # amid its prompt, or not to be trusted
        return _ask_of(self._runner, row)

    def _sample_draft_tokens(
        self, hidden_states: torch.Tensor, sampling_metadata: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One guess of each row, and the distributions it was drawn from unless all are greedy.

        Raises _Stop where no row wants another.
        """
        drafting = self._drafting
        guesses: torch.Tensor
        probs: torch.Tensor | None
        if drafting is None:
            guesses, probs = super()._sample_draft_tokens(hidden_states, sampling_metadata)
            return guesses, probs
        logits = self.model.compute_logits(hidden_states)
        guesses, probs = self._sample_from_logits(logits, sampling_metadata)
        logs = None
        if drafting.weighs:
            # Where it drew, vLLM has divided these by the temperatures.
            logs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        if probs is not None:
            self._draft_probs.append(probs)
        if not drafting.take(hidden_states, guesses, logs):
            raise _Stop
        return guesses, probs


class LenientSampler(RejectionSampler):
    """vLLM's rejection sampler, by p / epsilon where a request asks for it."""

    def __init__(self, runner: Any, sampled: bool) -> None:
        """`sampled`: whether vLLM's own rejection is right at a temperature above 0."""
        super().__init__(runner.sampler, runner.speculative_config, runner.device)
        self._runner = runner
        self._sampled = sampled
        self._lenience: torch.Tensor | None = None  # of each guess
        self._failed = False

    def forward(
        self, metadata: Any, draft_probs: torch.Tensor | None, logits: Any, sampling_metadata: Any
    ) -> Any:
        """Tokens for each row: what was accepted of its guesses, and one more."""
        counts = metadata.num_draft_tokens
        if not any(counts):
            # vLLM would go through with it, and fail at a top_k of no guesses.
            return self.sampler(logits=logits, sampling_metadata=sampling_metadata)
        if not sampling_metadata.all_greedy and not self._may_sample(metadata):
            return self._without_drafts(metadata, logits, sampling_metadata)
        try:
            self._lenience = self._asked(counts, logits.device)
            if self._lenience is not None and not sampling_metadata.all_greedy:
                draft_probs = softened(
                    draft_probs, metadata.draft_token_ids, self._lenience, logits.shape[-1]
                )
        except Exception:
            self._lenience = None
            if not self._failed:
                logger.exception(_NO_LENIENCE)
            self._failed = True
        return super().forward(metadata, draft_probs, logits, sampling_metadata)

    def _may_sample(self, metadata: Any) -> bool:
        """Whether vLLM's rejection at a temperature above 0 is right for these guesses.

        It fills up drafts with guesses of -1 at times, whose probabilities are no memory of ours.
        """
        return self._sampled and not bool((metadata.draft_token_ids < 0).any())

    def apply_logits_processors(
        self, logits: torch.Tensor, sampling_metadata: Any, metadata: Any
    ) -> torch.Tensor:
        """Logits [guesses, vocabulary] that guesses are verified by."""
        logits = super().apply_logits_processors(logits, sampling_metadata, metadata)
        if self._lenience is None or sampling_metadata.all_random:
            return logits
        try:
            counts = torch.tensor(metadata.num_draft_tokens, device=logits.device)
            greedy = _greedy(sampling_metadata, len(counts), logits.device)
            rows = greedy.repeat_interleave(counts)
            return favour(logits, metadata.draft_token_ids, self._lenience, rows)
        except Exception:
            if not self._failed:
                logger.exception(_NO_LENIENCE)
            self._failed = True
            return logits

    def _asked(self, counts: Sequence[int], device: Any) -> torch.Tensor | None:
        """Epsilon of each guess; None: all are exact."""
        batch = self._runner.input_batch
        rows = [
            _ask_of(self._runner, row).lenience if count and row < batch.num_reqs else 1.0
            for row, count in enumerate(counts)
        ]
        if all(lenience == 1.0 for lenience in rows):
            return None
        each = torch.tensor(rows, device=device)
        return each.repeat_interleave(torch.tensor(counts, device=device))

    def _without_drafts(self, metadata: Any, logits: Any, sampling_metadata: Any) -> Any:
        """One token for each row, from the logits before its first guess: all are refused."""
        counts = torch.tensor(metadata.num_draft_tokens, device=logits.device)
        first = metadata.bonus_logits_indices - counts
        output = self.sampler(logits=logits[first], sampling_metadata=sampling_metadata)
        width = max(metadata.num_draft_tokens) + 1
        tokens = output.sampled_token_ids
        output.sampled_token_ids = torch.nn.functional.pad(tokens, (0, width - 1), value=-1)
        if output.logprobs_tensors is not None:
            # Rows for every place of the padded answer, of which vLLM keeps those with a token.
            output.logprobs_tensors = type(output.logprobs_tensors)(
                *(
                    part.repeat_interleave(width, dim=0) if torch.is_tensor(part) else part
                    for part in output.logprobs_tensors
                )
            )
        return output


def _ask_of(runner: Any, row: int) -> Ask:
    request = runner.requests[runner.input_batch.req_ids[row]]
    params = request.sampling_params
    return Ask.lenient_read(None if params is None else params.extra_args)


def _greedy(sampling: Any, rows: int, device: Any) -> torch.Tensor:
    """Which rows [rows] are greedy."""
    if sampling.all_greedy or sampling.temperature is None:
        return torch.ones(rows, dtype=torch.bool, device=device)
    return sampling.temperature[:rows] == 0  # type: ignore[no-any-return]  # vLLM's are Any
