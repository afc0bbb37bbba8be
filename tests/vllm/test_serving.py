"""What the launcher gives vLLM, vLLM takes, and does."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import httpx
import pytest

from app.vllm_plugins import asks, launch
from tests import test_docker
from tests.vllm_servers import VLLMServer, python

pytestmark = [pytest.mark.vllm, pytest.mark.model]

PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
given = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
validate_parsed_serve_args(given)
print(json.dumps(vars(given), default=str))
"""


def parsed(words: list[str]) -> dict[str, Any]:
    """What vLLM's own parser makes of the server's flags."""
    command = [str(python()), "-P", "-c", PARSE, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    given: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return given


def flags(words: list[str]) -> list[str]:
    """Of the command that the launcher would run."""
    own, further = launch._split([*words, "--python", str(python())])
    start = launch.plan(launch.parser().parse_args(own), further, os.environ)
    return start.command[start.command.index(launch.SERVER) + 1 :]


def test_vllm_reads_our_flags_as_they_are_meant() -> None:
    given = parsed(flags(["org/model", "--port", "8123"]))
    wanted = {
        "model": "org/model",
        "served_model_name": ["model"],
        "port": 8123,
        "enable_scale_out": True,
        "enable_prompt_tokens_details": True,
        "enable_per_request_metrics": True,
        "enable_prefix_caching": True,
        "max_logprobs": 20,
        "shutdown_timeout": 10,
        "block_size": 32,
        "enforce_eager": True,
        "middleware": [launch.MIDDLEWARE],
        "logits_processors": [launch.PROCESSOR],
    }
    assert {name: given[name] for name in wanted} == wanted


def test_flags_after_ours_win() -> None:
    own, further = launch._split(["m", "--python", str(python()), "--", "--block-size", "64"])
    further += ["--no-enforce-eager", "--max-logprobs", "-1", "--served-model-name", "a", "b"]
    start = launch.plan(launch.parser().parse_args(own), further, os.environ)
    given = parsed(start.command[start.command.index(launch.SERVER) + 1 :])
    assert (given["block_size"], given["enforce_eager"], given["max_logprobs"]) == (64, False, -1)
    assert given["served_model_name"] == ["a", "b"]


@pytest.mark.parametrize("name", test_docker.SERVERS)
def test_vllm_takes_what_the_compose_file_says(name: str) -> None:
    options = test_docker.server_options(test_docker.SERVERS[name])
    given = parsed(flags(test_docker.SERVERS[name]["command"]))
    assert given["served_model_name"] == [options.served_model_name]


def test_weights_are_served_in_the_precision_they_have(
    small_server: VLLMServer, large_server: VLLMServer
) -> None:
    for server in (small_server, large_server):
        log = server.log.read_text("utf-8")
        assert "dtype=torch.float32" in log
        assert ("quantization=compressed-tensors" in log) == (server is small_server)


def test_the_small_server_has_the_plugin_too(small_server: VLLMServer) -> None:
    body = {"model": small_server.name, "prompt": [1, 2, 3], "vllm_xargs": {asks.HELLO: 1}}
    answer = httpx.post(f"{small_server.url}/v1/completions", json=body)
    assert answer.status_code == 400
    assert asks.MARKER in answer.text
