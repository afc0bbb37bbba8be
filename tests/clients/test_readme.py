"""Each example of README's "From your client", as it stands there, against the real gateway."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients import javascript
from tests.clients.conftest import ROOT, Gateway

HERE = "http://127.0.0.1:8080"
TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BEFORE, _, AFTER = TEXT.partition("## From your client\n")
SECTION, _, AFTER = AFTER.partition("\n## ")
BLOCKS = BLOCK.findall(SECTION)
ELSEWHERE = [
    text
    for language, text in BLOCK.findall(BEFORE) + BLOCK.findall(AFTER)
    if HERE in text and language in ("python", "bash")
]
COST = r"\b(?:0\.0000\d+|\d(?:\.\d+)?e-0?[5-9])\b"  # of a few dozen tokens, in USD


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


@pytest.fixture
def environment(gateway: Gateway, key: str, tmp_path: Path) -> dict[str, str]:
    """What the section's first block exports; and `llm` keeps its files to itself."""
    export, *_ = blocks("bash")
    assert re.findall(r"^export (\w+)=", export, re.MULTILINE) == [
        "OPENAI_BASE_URL",
        "OPENAI_API_KEY",
    ]
    bin = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{bin}:{os.environ['PATH']}",
        "OPENAI_BASE_URL": gateway.base,
        "OPENAI_API_KEY": key,
        "LLM_USER_PATH": str(tmp_path),
    }


def output(command: list[str | Path], environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_an_example_for_each_client() -> None:
    assert [language for language, _ in BLOCKS] == [
        *("bash", "python", "javascript", "python", "javascript", "yaml", "bash", "bash")
    ]


@pytest.mark.parametrize("example", blocks("python"), ids=["openai", "langchain"])
def test_python(example: str, environment: dict[str, str], tmp_path: Path) -> None:
    said = output([sys.executable, "-W", "error", "-c", example], environment, tmp_path)
    assert re.search(f"USD: {COST}", said), said


@pytest.mark.parametrize("example", blocks("javascript"), ids=["openai", "ai-sdk"])
def test_javascript(example: str, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "example.mjs").write_text(example)
    said = javascript.run(["example.mjs"], tmp_path, **environment)
    assert len(re.findall(f"USD: {COST}", said)) == 2, said


def test_llm(gateway: Gateway, environment: dict[str, str], tmp_path: Path) -> None:
    (models,) = blocks("yaml")
    here = models.replace(HERE, gateway.url)
    assert here != models
    (tmp_path / "extra-openai-models.yaml").write_text(here)
    example = blocks("bash")[1]
    assert example.startswith("llm")
    assert len(output(["bash", "-euc", example], environment, tmp_path).split()) > 4


def test_curl(environment: dict[str, str], tmp_path: Path) -> None:
    said = output(["bash", "-euc", blocks("bash")[2]], environment, tmp_path)
    assert re.search(r"^x-farthing-policy: economy\r?$", said, re.MULTILINE), said
    assert re.search(f'"cost":{COST}', said), said
    assert said.rstrip().endswith("data: [DONE]")


def test_some_examples_go_by_the_profile() -> None:
    """Of those below, which a fresh fleet answers as it comes with one."""
    assert sum('"auto"' in text or "route;share" in text for text in ELSEWHERE) == 2


@pytest.mark.parametrize("example", ELSEWHERE)
def test_elsewhere(
    example: str, gateway: Gateway, key: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """Those of other sections, which need no key: here they are given one."""
    here = example.replace(HERE, gateway.url)
    if "import" in here:
        here = here.replace('"unused"', f'"{key}"')
        said = output([sys.executable, "-W", "error", "-c", here], environment, tmp_path)
    else:
        here = here.replace("curl ", 'curl --fail -H "Authorization: Bearer $OPENAI_API_KEY" ', 1)
        said = output(["bash", "-euc", here], environment, tmp_path)
    assert re.search(COST, said), said
