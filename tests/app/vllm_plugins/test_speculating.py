"""What the launcher adds to vLLM's command for a draft model, and what it says otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.vllm_plugins import launch, speculating
from app.vllm_plugins.asks import HEAD_VARIABLE, SOCKET_FOLDER, SOCKET_VARIABLE, STATE_VARIABLE
from tests.app.vllm_plugins.test_launch import (
    Make,
    _environment,
    make,
    options,
    plan,
)

__all__ = ["_environment", "make"]  # the launcher's own fixtures
METRICS = "--per-request-spec-decode-metrics"


def speculative(start: launch.Start) -> dict[str, object]:
    found: dict[str, object] = json.loads(options(start)["--speculative-config"] or "")
    return found


def test_a_draft_gets_our_worker_and_our_door(make: Make) -> None:
    start = plan(make(), "--draft", "models/small", "--draft-tokens", "7")
    assert speculative(start) == {
        "method": "draft_model",
        "model": "models/small",
        "num_speculative_tokens": 7,
        "draft_sample_method": "probabilistic",
        "num_speculative_tokens_per_batch_size": [[1, 1, 7]],
    }
    found = options(start)
    assert found[METRICS] == "summary"
    assert found["--worker-cls"] == speculating.WORKER
    assert found["--middleware"] == speculating.DOOR
    assert "--no-async-scheduling" not in found  # a CPU's never is
    assert Path(start.environment["PYTHONPATH"], "app/vllm_plugins/draft_proposer.py").exists()
    assert Path(start.environment["PYTHONPATH"], "app/nets/acceptance_head.py").exists()
    state = Path(start.environment[STATE_VARIABLE])
    assert state.parent.name.startswith(SOCKET_FOLDER) and not state.parent.exists()
    assert not {HEAD_VARIABLE, SOCKET_VARIABLE} & start.environment.keys()
    assert start.notes == [
        "the entropy plugin is left out: vLLM runs no logits processors with speculative decoding"
    ]


def test_without_a_draft_nothing_is_said_of_one(make: Make) -> None:
    start = plan(make())
    assert not {"--speculative-config", "--worker-cls", METRICS} & options(start).keys()
    assert STATE_VARIABLE not in start.environment


def test_on_a_gpu_the_runner_is_the_one_that_the_worker_knows(make: Make) -> None:
    start = plan(make(cpu=False), "--draft", "d")
    assert start.environment["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert "--no-async-scheduling" in options(start)


def test_the_head_is_named_by_where_it_is_from_anywhere(make: Make) -> None:
    Path("head").touch()
    start = plan(make(), "--draft", "d", "--acceptance-head", "head")
    assert start.environment[HEAD_VARIABLE] == str(Path.cwd() / "head")


@pytest.mark.parametrize(
    ("own", "further", "variables", "version", "why"),
    [
        (["--no-plugins"], [], {}, "0.32.0", "--no-plugins"),
        ([], ["--worker-cls", "w.W"], {}, "0.32.0", "--worker-cls"),
        ([], [], {"VLLM_USE_V2_MODEL_RUNNER": "1"}, "0.32.0", "runner V2"),
        ([], [], {}, "0.33.0", "there is vLLM 0.33.0"),
    ],
)
def test_without_our_worker_vllm_guesses_for_all_alike_and_it_is_said(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    own: list[str],
    further: list[str],
    variables: dict[str, str],
    version: str,
    why: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    start = plan(make(version), "--draft", "d", *own, "--", *further)
    expected: dict[str, object] = {"method": "draft_model", "model": "d"}
    expected["num_speculative_tokens"] = 5
    if version.startswith("0.32."):
        expected["draft_sample_method"] = "probabilistic"
    assert speculative(start) == expected
    assert options(start)[METRICS] == "summary"
    assert "app." not in " ".join(start.command)
    assert not {"PYTHONPATH", STATE_VARIABLE} & start.environment.keys()
    note, wrong = start.notes[:2]
    assert note.startswith("every request gets as many guesses, whatever it asks: ")
    assert why in note
    assert "samples wrongly" in wrong


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--acceptance-head", "head"], "name one with --draft"),
        (["--draft", "d", "--acceptance-head", "nowhere"], "no file nowhere"),
        (["--draft", "d", "--draft-tokens", "0"], "1 to 128, not 0"),
        (["--draft", "d", "--draft-tokens", "129"], "1 to 128, not 129"),
    ],
)
def test_what_cannot_be_is_refused(make: Make, own: list[str], message: str) -> None:
    Path("head").touch()
    with pytest.raises(launch.Unusable, match=message):
        plan(make(), *own)


def test_what_the_user_says_of_speculation_wins(make: Make) -> None:
    start = plan(make(), "--draft", "d", "--", "--speculative-config", "{}")
    assert start.command[-2:] == ["--speculative-config", "{}"]
