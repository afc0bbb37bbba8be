"""What `farthing serve-vllm` adds to vLLM's command for KV prediction: no imports but Python's."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.vllm_plugins.asks import PREDICTION_VARIABLE
from app.vllm_plugins.room import private_path

CONNECTOR, MODULE = "KVPredictorConnector", "app.vllm_plugins.kv_connector"
WORKER = "app.vllm_plugins.predicting_worker.PredictingWorker"
DOOR = "app.vllm_plugins.door.PredictionDoor"
_BUNDLED = "bundled:"


def add_options(options: argparse.ArgumentParser) -> None:
    """The launcher's option for KV prediction."""
    options.add_argument(
        "--kv-predictor",
        action="append",
        default=[],
        metavar="FILE",
        help="of `farthing train kv-predictor`, for MODEL: prompts are read through it where a"
        " request asks for that; may be repeated",
    )


def problem(options: argparse.Namespace) -> str | None:
    """What is wrong with these options; None: nothing."""
    if options.kv_predictor and options.draft is not None:
        return "--kv-predictor and --draft: a draft model cannot read what is predicted for MODEL"
    for named in options.kv_predictor:
        if not _path(named).is_file():
            return f"--kv-predictor: there is no file {_path(named)}"
    return None


def flags(named: Sequence[str]) -> list[str]:
    """vLLM's own flags for these predictors, our worker, and who refuses in front of it."""
    paths = [os.path.abspath(_path(name)) for name in named]
    config = {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": MODULE,
        "kv_role": "kv_consumer",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"predictors": paths},
    }
    own = ["--worker-cls", WORKER, "--middleware", DOOR]
    return ["--kv-transfer-config", json.dumps(config), *own]


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What our connector needs in the environment."""
    if PREDICTION_VARIABLE in environment:
        return {}
    return {PREDICTION_VARIABLE: private_path("prediction")}


def _path(named: str) -> Path:
    if named.startswith(_BUNDLED):
        weights = Path(__file__).resolve().parents[1] / "weights"
        return weights / named.removeprefix(_BUNDLED)
    return Path(named).expanduser()
