"""`llm`, the command line by Simon Willison, with models of ours in its own file of models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import MODEL, Gateway


@pytest.fixture
def home(gateway: Gateway, tmp_path: Path) -> Path:
    """Its folder, as a user would have it."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"""
- model_id: economy
  model_name: economy
  api_base: {gateway.base}
  api_key_name: farthing
  headers: {{X-Budget-Usd: "0.0001"}}
- model_id: large
  model_name: {MODEL}
  api_base: {gateway.base}
  api_key_name: farthing
  supports_schema: true
"""
    )
    return tmp_path


def llm(home: Path, key: str, *arguments: str) -> str:
    command = [Path(sys.executable).with_name("llm"), *arguments]
    environment = {**os.environ, "LLM_USER_PATH": str(home)}
    (home / "keys.json").write_text(json.dumps({"farthing": key}))
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_it_lists_its_models(home: Path, key: str) -> None:
    assert "economy" in llm(home, key, "models")


@pytest.mark.parametrize("streaming", [[], ["--no-stream"]])
def test_a_prompt(home: Path, key: str, streaming: list[str]) -> None:
    options = ["-o", "max_tokens", "8", "-o", "temperature", "0"]
    asked = ["-m", "economy", "-s", "Answer in one word.", "Is the sky blue?", *options, *streaming]
    assert llm(home, key, *asked).strip()
    (logged,) = json.loads(llm(home, key, "logs", "--json"))
    assert logged["model"] == "economy"
    assert logged["output_tokens"] == 8


def test_a_conversation(home: Path, key: str) -> None:
    options = ["-o", "max_tokens", "8", "-o", "temperature", "0"]
    llm(home, key, "-m", "large", "Is the sky blue?", *options)
    assert llm(home, key, "-c", "And at night?", *options).strip()
    first, second = json.loads(llm(home, key, "logs", "--json"))
    assert second["input_tokens"] > first["input_tokens"]


def test_an_answer_by_a_schema(home: Path, key: str) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["blue", "grey"]}, "cloudy": {"type": "boolean"}},
        "required": ["colour", "cloudy"],
        "additionalProperties": False,
    }
    asked = ["-m", "large", "--schema", json.dumps(schema), "How is the sky above Oslo?"]
    sky = json.loads(llm(home, key, *asked, "-o", "max_tokens", "64"))
    assert sky.keys() == {"colour", "cloudy"}
