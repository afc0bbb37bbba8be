"""What the launcher adds to vLLM's command for KV prediction, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.vllm_plugins import launch, predicting
from app.vllm_plugins.asks import PREDICTION_VARIABLE, SOCKET_FOLDER, SOCKET_VARIABLE
from tests.app.vllm_plugins.test_launch import Make, _environment, make, options, plan

__all__ = ["_environment", "make"]  # the launcher's own fixtures
DOORS = [predicting.DOOR, launch.MIDDLEWARE]


def middlewares(start: launch.Start) -> list[str]:
    pairs = zip(start.command, start.command[1:], strict=False)
    return [value for flag, value in pairs if flag == "--middleware"]


def test_predictors_get_our_connector_our_worker_and_our_door(make: Make) -> None:
    for name in ("one", "two"):
        Path(name).touch()
    start = plan(make(), "--kv-predictor", "one", "--kv-predictor", "two")
    found = options(start)
    paths = [str(Path.cwd() / name) for name in ("one", "two")]
    assert json.loads(found["--kv-transfer-config"] or "") == {
        "kv_connector": "KVPredictorConnector",
        "kv_connector_module_path": "app.vllm_plugins.kv_connector",
        "kv_role": "kv_consumer",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"predictors": paths},
    }
    assert found["--worker-cls"] == predicting.WORKER
    assert found["--logits-processors"] == launch.PROCESSOR  # they go together
    assert middlewares(start) == DOORS
    path = Path(start.environment["PYTHONPATH"], "app")
    for part in (
        "vllm_plugins/kv_connector",
        "vllm_plugins/predicting_worker",
        "nets/kv_predictor",
    ):
        assert (path / f"{part}.py").exists()
    for variable in (PREDICTION_VARIABLE, SOCKET_VARIABLE):
        state = Path(start.environment[variable])
        assert state.parent.name.startswith(SOCKET_FOLDER) and not state.parent.exists()
    assert start.notes == []


def test_without_one_nothing_is_said_of_it(make: Make) -> None:
    start = plan(make())
    assert not {"--kv-transfer-config", "--worker-cls"} & options(start).keys()
    assert PREDICTION_VARIABLE not in start.environment


def test_what_is_bundled_is_named_by_its_place(make: Make) -> None:
    start = plan(make(), "--kv-predictor", "bundled:smollm2-tiny/config.json")
    assert "app/weights/smollm2-tiny/config.json" in str(start)


def test_it_needs_no_entropies(make: Make) -> None:
    Path("one").touch()
    start = plan(make(), "--kv-predictor", "one", "--", "--logits-processors", "theirs:P")
    assert middlewares(start) == DOORS and SOCKET_VARIABLE in start.environment
    assert launch.PROCESSOR not in start.command
    (note,) = start.notes
    assert note.startswith("the entropy plugin is left out: ")


@pytest.mark.parametrize(
    ("own", "further", "version", "message"),
    [
        (["--kv-predictor", "nowhere"], [], "0.32.0", "no file nowhere"),
        (["--kv-predictor", "one", "--draft", "d"], [], "0.32.0", "--draft"),
        (["--kv-predictor", "one", "--no-plugins"], [], "0.32.0", "--no-plugins"),
        (["--kv-predictor", "one"], [], "0.33.0", "there is vLLM 0.33.0"),
        (["--kv-predictor", "one"], ["--kv-transfer-config", "{}"], "0.32.0", "another connector"),
        (["--kv-predictor", "one"], ["--worker-cls", "w.W"], "0.32.0", "another worker"),
        (["--kv-predictor", "one"], ["--speculative-config={}"], "0.32.0", "speculative"),
    ],
)
def test_what_cannot_be_is_refused(
    make: Make, own: list[str], further: list[str], version: str, message: str
) -> None:
    Path("one").touch()
    with pytest.raises(launch.Unusable, match=message):
        plan(make(version), *own, "--", *further)


def test_the_other_runner_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("one").touch()
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(launch.Unusable, match="runner V2"):
        plan(make(), "--kv-predictor", "one")
