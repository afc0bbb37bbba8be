"""What `farthing serve-vllm` adds to vLLM's command for a draft model; the standard library alone.

With our worker each request says how far it is guessed ahead of, and which guesses stay. Without
it vLLM makes as many guesses for every request.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

from app.vllm_plugins.asks import HEAD_VARIABLE, STATE_VARIABLE
from app.vllm_plugins.room import private_path

WORKER = "app.vllm_plugins.draft_proposer.SpeculatingWorker"
DOOR = "app.vllm_plugins.door.SpeculationDoor"
LONGEST = 128  # guesses for one pass that vLLM takes
_KNOWN = "0.32."


def add_options(options: argparse.ArgumentParser) -> None:
    """The launcher's options for speculation."""
    options.add_argument(
        "--draft",
        metavar="MODEL",
        help="a small model of the same family that guesses ahead, as speculative decoding does",
    )
    options.add_argument(
        "--draft-tokens",
        type=int,
        default=5,
        metavar="K",
        help="guesses for one pass of MODEL, at most; default: %(default)s",
    )
    options.add_argument(
        "--acceptance-head",
        type=Path,
        metavar="FILE",
        help="of `farthing train acceptance-head`, for this draft: it tells when to stop guessing",
    )


def problem(options: argparse.Namespace) -> str | None:
    """What is wrong with these options; None: nothing."""
    head = options.acceptance_head
    if head is not None and options.draft is None:
        return "--acceptance-head is for a draft: name one with --draft"
    if head is not None and not head.is_file():
        return f"--acceptance-head: there is no file {head}"
    if not 1 <= options.draft_tokens <= LONGEST:
        return f"--draft-tokens is to be 1 to {LONGEST}, not {options.draft_tokens}"
    return None


def flags(draft: str, longest: int, version: str, worker: bool) -> list[str]:
    """vLLM's own flags for this draft model, without our worker or for it."""
    config: dict[str, object] = {"method": "draft_model", "model": draft}
    config["num_speculative_tokens"] = longest
    if version.startswith(_KNOWN):
        # Guesses are drawn as the model itself would draw them: more of them are accepted.
        config["draft_sample_method"] = "probabilistic"
    if worker:
        # As many for a batch of any size: so vLLM knows that what is verified varies in length,
        # and makes up no guesses for a request of which all but one token was cached.
        config["num_speculative_tokens_per_batch_size"] = [[1, 1, longest]]
    metrics = ["--per-request-spec-decode-metrics", "summary"]
    return ["--speculative-config", json.dumps(config), *metrics]


def worker_flags(cpu: bool) -> list[str]:
    """Flags for our worker, and for who answers and refuses in front of it."""
    found = ["--worker-cls", WORKER, "--middleware", DOOR]
    # Scheduling that runs ahead of the answer has to know how many guesses there will be.
    return found if cpu else [*found, "--no-async-scheduling"]


def variables(head: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """What our worker needs in the environment."""
    found = {}
    if STATE_VARIABLE not in environment:
        found[STATE_VARIABLE] = private_path("speculation")
    if head is not None:
        found[HEAD_VARIABLE] = os.path.abspath(head)
    return found


def notes_without(reason: str, cpu: bool) -> list[str]:
    """What the user should know where our worker is left out."""
    found = [f"every request gets as many guesses, whatever it asks: {reason}"]
    if cpu:
        found.append(
            "at a temperature above 0 vLLM 0.32 on a CPU then samples wrongly; our worker mends it"
        )
    return found
