"""The speculating worker, with a vLLM of straw around it."""

from __future__ import annotations

import json
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.nets.acceptance_head import About, AcceptanceHead
from app.vllm_plugins import asks
from tests.app.vllm_plugins import straw_vllm
from tests.app.vllm_plugins.straw_vllm import VOCABULARY, Kernels, config, runner, sampling


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (asks.STATE_VARIABLE, asks.HEAD_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in straw_vllm.OURS:
        sys.modules.pop(name, None)


def started(
    monkeypatch: pytest.MonkeyPatch,
    given: list[dict[str, Any] | None] | None = None,
    *,
    kernels: Kernels | None = None,
    unread: tuple[int, ...] = (),
    version: str = "0.32.0",
    **changes: Any,
) -> Any:
    """A worker's model runner, once its device is there."""
    return worker(
        monkeypatch, given, kernels=kernels, unread=unread, version=version, **changes
    ).model_runner


def worker(
    monkeypatch: pytest.MonkeyPatch,
    given: list[dict[str, Any] | None] | None = None,
    *,
    kernels: Kernels | None = None,
    unread: tuple[int, ...] = (),
    version: str = "0.32.0",
    **changes: Any,
) -> Any:
    module = straw_vllm.load(monkeypatch, kernels, version)
    made = runner([{}] if given is None else given, unread)
    if changes.pop("v2", False):
        del made.drafter
    found = module.SpeculatingWorker(config(**changes), made)
    found.init_device()
    return found


def propose(
    made: Any,
    logits: list[list[float]],
    *temperatures: float,
    longest: int = 4,
    seeded: tuple[int, ...] = (),
) -> Any:
    """Drafts of rows of which each pass of the draft model gives the same logits."""
    made.drafter.states = [torch.tensor(logits)] * 9
    return made.drafter.propose(
        num_speculative_tokens=longest,
        common_attn_metadata=SimpleNamespace(batch_size=lambda: len(logits)),
        sampling_metadata=sampling(*(temperatures or [0.0] * len(logits)), seeded=seeded),
    )


def sure(token: int, chance: float = 0.9) -> list[float]:
    """Logits of a distribution that gives this token this chance."""
    rest = (1 - chance) / (VOCABULARY - 1)
    return torch.tensor([chance if i == token else rest for i in range(VOCABULARY)]).log().tolist()


def verify(
    made: Any, counts: list[int], guesses: list[int], logits: Any, meta: Any, probs: Any
) -> Any:
    """What the sampler makes of guesses, by logits of each and of the token after them."""
    totals = torch.tensor(counts) + 1
    metadata = SimpleNamespace(
        num_draft_tokens=counts,
        draft_token_ids=torch.tensor(guesses, dtype=torch.int32),
        bonus_logits_indices=totals.cumsum(0) - 1,
    )
    return made.rejection_sampler(metadata, probs, torch.as_tensor(logits), meta)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": "0.33.0"}, "this is vLLM 0.33.0"),
        ({"method": None}, "no draft model"),
        ({"method": "ngram"}, "no draft model"),
        ({"v2": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
        ({"async_scheduling": True}, "--no-async-scheduling"),
        ({"world_size": 2}, "several devices"),
        ({"data_parallel_size": 2}, "several devices"),
        ({"use_heterogeneous_vocab": True}, "another vocabulary"),
        ({"parallel_drafting": True}, "all tokens at once"),
        ({"rejection_sample_method": "block"}, "'block'"),
    ],
)
def test_where_it_cannot_be_vllm_s_own_drafting_stays(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    changes: dict[str, Any],
    why: str,
) -> None:
    monkeypatch.setenv(asks.STATE_VARIABLE, str(tmp_path / "state"))
    made = started(monkeypatch, **changes)
    assert type(getattr(made, "drafter", None)) in (straw_vllm.Proposer, type(None))
    assert made.rejection_sampler is None
    (record,) = caplog.records
    assert why in record.getMessage()
    assert not (tmp_path / "state").exists()
    kind = sys.modules["vllm.v1.worker.cpu_model_runner"].__dict__["CPUModelRunner"]
    mended = kind.sample_tokens is not straw_vllm.ModelRunner.sample_tokens  # whoever drafts
    assert mended == ("version" not in changes)


@pytest.mark.parametrize(
    ("kernels", "sampled", "replaced"),
    [
        (Kernels(right=True, mends=False), True, 0),
        (Kernels(right=False, mends=True), True, 1),
        (Kernels(right=False, mends=False), False, 1),
    ],
)
def test_vllm_s_sampling_is_tried_mended_and_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernels: Kernels, sampled: bool, replaced: int
) -> None:
    monkeypatch.setenv(asks.STATE_VARIABLE, str(tmp_path / "folder" / "state"))
    started(monkeypatch, kernels=kernels)
    state = json.loads((tmp_path / "folder" / "state").read_text())
    assert asks.Speculating.read(state) == asks.Speculating(longest=4, sampled=sampled)
    assert len(kernels.replaced) == replaced


def test_a_sampling_that_raises_is_known_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels(right=True, mends=True)
    monkeypatch.setattr(kernels, "reject", lambda *_: 1 / 0)
    made = started(monkeypatch, kernels=kernels)
    assert propose(made, [sure(1)], 1.0) == [[]]


def test_nobody_is_told_where_nobody_asks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    started(monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv(asks.STATE_VARIABLE, str(tmp_path / "file" / "state"))
    made = started(monkeypatch)
    assert type(made.drafter).__name__ == "AdaptiveDraft"
    assert "nobody is told" in caplog.text


def test_each_row_is_drafted_for_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        None, {asks.SPEC_K: 2}, {asks.SPEC_K: 0}, {asks.SPEC_STOP: 0.15},
        {asks.SPEC_CONFIDENCE: 0.95}, {asks.SPEC_K: "x"}, {},
    ]  # fmt: skip
    made = started(monkeypatch, given, unread=(6,))
    rows = [sure(row % VOCABULARY) for row in range(7)]
    drafts = propose(made, rows)
    assert [len(draft) for draft in drafts] == [4, 2, 0, 2, 1, 4, 0]
    assert all(set(draft) <= {row} for row, draft in enumerate(drafts))


def test_the_draft_model_works_no_more_than_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = started(monkeypatch, [{asks.SPEC_K: 2}, {asks.SPEC_STOP: 0.0}])
    propose(made, [sure(0), sure(1)])
    assert made.drafter.passes == 2
    made = started(monkeypatch, [{asks.SPEC_STOP: 0.0}])
    assert propose(made, [sure(0)]) == [[0]]
    assert made.drafter.passes == 1
    # Its KV cache is kept whole even so, and no more.
    made = started(monkeypatch, [{asks.SPEC_K: 0}])
    made.drafter.model.compute_logits = lambda states: pytest.fail("nobody wants a guess")
    assert propose(made, [sure(0)]) == [[]]
    assert made.drafter.passes == 1
    assert not made.drafter._failed


def test_what_was_drawn_from_is_told_with_the_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = started(monkeypatch, [{}, {asks.SPEC_K: 1}])
    assert [len(draft) for draft in propose(made, [sure(0), sure(1)], 1.0, 0.0, longest=3)] == [
        3,
        1,
    ]
    assert made.drafter._last_draft_probs.shape == (2, 3, VOCABULARY)
    propose(made, [sure(0), sure(1)])
    assert made.drafter._last_draft_probs is None


def test_rows_beyond_the_batch_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made = started(monkeypatch, [{}])
    assert [len(draft) for draft in propose(made, [sure(0), sure(1)])] == [4, 0]


def test_a_failure_is_logged_once_and_costs_drafts_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = started(monkeypatch, [{}, {}])
    monkeypatch.setattr(made.drafter.model, "compute_logits", lambda states: 1 / 0)
    caplog.clear()
    for _ in range(3):
        assert propose(made, [sure(0), sure(1)], 1.0, 1.0) == [[], []]
    assert made.drafter._last_draft_probs is None
    (record,) = caplog.records
    assert record.levelname == "ERROR"


def test_a_batch_that_cannot_be_read_gets_no_drafts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = started(monkeypatch, [{}, {}])
    for broken in ({}, {"common_attn_metadata": None}):
        assert made.drafter.propose(num_speculative_tokens=4, **broken) == [[], []]
    assert caplog.text.count("drafting failed") == 1


def test_who_has_a_seed_and_a_temperature_gets_no_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM draws them without the seed."""
    made = started(monkeypatch, [{}, {}, {}])
    drafts = propose(made, [sure(row) for row in range(3)], 1.0, 1.0, 0.0, seeded=(1,))
    assert [len(draft) for draft in drafts] == [4, 0, 4]


@pytest.mark.parametrize(
    ("guesses", "taken"),
    [
        ([[3], [4, 5]], [[3], [4, 5]]),
        # vLLM's own, near the end of the draft's context.
        (torch.zeros(1, dtype=torch.int32).expand(2, 4), [[], []]),
    ],
)
def test_nobody_verifies_guesses_that_nobody_made(
    monkeypatch: pytest.MonkeyPatch, guesses: Any, taken: list[list[int]]
) -> None:
    made = worker(monkeypatch, [{}, {asks.SPEC_K: 0}])
    made.model_runner._draft_token_ids = guesses
    made.model_runner._draft_token_req_ids = ["r0", "r1"]
    found = made.take_draft_token_ids()
    assert (found.req_ids, found.draft_token_ids) == (["r0", "r1"], taken)
    made.model_runner._draft_token_req_ids = None
    assert made.take_draft_token_ids() is None


def test_without_our_drafts_vllm_s_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    made = worker(monkeypatch, [{}], version="0.33.0")
    made.model_runner._draft_token_ids = torch.zeros(1, 4, dtype=torch.int32)
    made.model_runner._draft_token_req_ids = ["r0"]
    assert made.take_draft_token_ids().draft_token_ids == [[0] * 4]


def test_another_s_guesses_are_drawn_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own warm-up has no drafts of ours under way."""
    made = started(monkeypatch)
    guesses, _ = made.drafter._sample_draft_tokens(torch.tensor([sure(3)]), sampling(0.0))
    assert guesses.tolist() == [3]


def saved_head(folder: Path, hidden: int) -> Path:
    AcceptanceHead(About(hidden=hidden, depth=1, level=0.6)).save(folder / "head")
    return folder / "head"


def test_an_acceptance_head_is_asked_and_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(asks.HEAD_VARIABLE, str(saved_head(tmp_path, VOCABULARY)))
    monkeypatch.setenv(asks.STATE_VARIABLE, str(tmp_path / "state"))
    made = started(monkeypatch, [{asks.SPEC_STOP: 0.6}])
    # A head of zeros says one half of everything.
    assert propose(made, [sure(0, 0.999)]) == [[0, 0]]
    assert json.loads((tmp_path / "state").read_text())["level"] == 0.6


@pytest.mark.parametrize(("hidden", "why"), [(9, "width 9"), (None, "cannot be used")])
def test_a_head_that_does_not_fit_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    hidden: int | None,
    why: str,
) -> None:
    path = tmp_path / "nowhere" if hidden is None else saved_head(tmp_path, hidden)
    monkeypatch.setenv(asks.HEAD_VARIABLE, str(path))
    made = started(monkeypatch, [{asks.SPEC_STOP: 0.6}])
    assert why in caplog.text
    assert propose(made, [sure(0, 0.999)]) == [[0] * 4]


def test_a_head_that_fails_in_any_way_ends_no_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv(asks.HEAD_VARIABLE, str(tmp_path / "head"))
    monkeypatch.setenv(asks.STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.setattr(AcceptanceHead, "load", lambda path: 1 / 0)
    started(monkeypatch)
    assert "the acceptance head cannot be used" in caplog.text
    assert json.loads((tmp_path / "state").read_text())["level"] is None


def test_a_step_without_guesses_is_sampled_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM would die of a top_k of no guesses."""
    made = started(monkeypatch, [{}, {}])
    output = verify(made, [0, 0], [], [sure(2), sure(5)], sampling(1.0, 1.0), None)
    assert output.sampled_token_ids.tolist() == [[2], [5]]


Logprobs = namedtuple("Logprobs", ["ids", "values", "sizes"])


def test_where_sampling_is_wrong_guesses_are_refused_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = started(monkeypatch, [{}, {}], kernels=Kernels(right=False, mends=False))
    # A greedy row may have some, and be verified in the step in which another is drawn.
    assert propose(made, [sure(0), sure(1)], 1.0, 0.0) == [[], [1] * 4]
    logits = [sure(3), sure(4), sure(5), sure(6)]
    told = Logprobs(torch.tensor([[1], [2]]), torch.tensor([[0.1], [0.2]]), None)
    output = verify(made, [0, 2], [1, 1], logits, sampling(1.0, 0.0, told=told), None)
    assert output.sampled_token_ids.tolist() == [[3, -1, -1], [4, -1, -1]]
    assert output.logprobs_tensors.ids.tolist() == [[1]] * 3 + [[2]] * 3
    assert verify(made, [0, 2], [1, 1], logits, sampling(0.0, 0.0), None) == "verified"


def test_a_draft_that_vllm_filled_up_is_refused_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    made = started(monkeypatch, [{}])
    logits = [sure(3), sure(4)]
    output = verify(made, [1], [-1], logits, sampling(1.0), None)
    assert output.sampled_token_ids.tolist() == [[3, -1]]
    assert verify(made, [1], [-1], logits, sampling(0.0), None) == "verified"


def test_who_asks_for_lenience_gets_it_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [{asks.SPEC_LENIENCE: 0.5}, {}, {asks.SPEC_LENIENCE: 0.5}]
    made = started(monkeypatch, given)
    near = torch.tensor([sure(0, 0.4)] * 6)
    near[:, 1] = near[:, 0] - 0.5  # p(1) is 0.6 of p(0)
    probs = torch.full((3, VOCABULARY), 1 / VOCABULARY)
    verify(made, [1, 1, 1], [1, 1, 1], near, sampling(0.0, 0.0, 0.5), probs)
    ((by, logits),) = made.rejection_sampler.seen
    assert by[:, 1].tolist() == pytest.approx([1 / 16, 1 / 8, 1 / 16])
    assert logits[:3].argmax(-1).tolist() == [1, 0, 0]


def test_without_lenience_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = started(monkeypatch, [{asks.SPEC_LENIENCE: 1.0}])
    probs = torch.full((1, VOCABULARY), 1 / VOCABULARY)
    verify(made, [1], [1], [sure(0), sure(0)], sampling(1.0), probs)
    ((by, logits),) = made.rejection_sampler.seen
    assert by is probs
    assert torch.equal(logits, torch.tensor([sure(0)]))


@pytest.mark.parametrize("fails", ["softened", "favour"])
def test_lenience_that_fails_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    made = started(monkeypatch, [{asks.SPEC_LENIENCE: 0.5}, {asks.SPEC_LENIENCE: 0.5}])
    monkeypatch.setitem(type(made.rejection_sampler).forward.__globals__, fails, lambda *_: 1 / 0)
    caplog.clear()
    logits = [sure(0)] * 4
    for _ in range(2):
        assert verify(made, [1, 1], [1, 1], logits, sampling(0.0, 1.0), None) == "verified"
    assert made.rejection_sampler.seen[0][1].argmax(-1).tolist() == [0] * 2
    (record,) = caplog.records
    assert "accepted exactly" in record.getMessage()
