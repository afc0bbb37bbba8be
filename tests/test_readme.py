"""What the README says is so."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import app.errors
import policies
from app.budget import Purse
from app.catalog import read
from app.cli import with_map
from app.gateway import Gateway, Order
from app.settings import DEFAULT_CONFIG, Settings
from app.telemetry.metrics import METRICS
from policies.base import Policy
from policies.cascade import Cascade
from policies.kv_prediction import KvPrediction
from policies.planner import Planner
from policies.precision import Precision
from policies.refine import Refine
from policies.route import Route
from policies.speculative import Speculative
from routers import terms
from tests.policies import scripts
from tests.policies import test_contract as contract

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """The code blocks in this language: the file each is meant for, and its text."""
    return [(file, text) for found, file, text in BLOCKS if found == language]


def row(first: str, text: str = TEXT) -> list[str]:
    """The cells of the table row that begins with this code."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def curl() -> list[str]:
    (block,) = [text for _, text in blocks("bash") if text.startswith("curl")]
    return shlex.split(block)


@pytest.mark.parametrize("extra", ["embedded", "otel", "train"])
def test_what_an_error_says_to_install_is_what_is_said_here(extra: str) -> None:
    said = [text.splitlines() for _, text in (*blocks("bash"), *blocks("sh"))]
    assert any(app.errors.to_install(extra) in lines for lines in said)


def test_the_map_is_that_of_today() -> None:
    assert with_map(TEXT) == TEXT, "run `make map`"


def test_each_metric_has_its_row() -> None:
    metrics = TEXT.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    for name, metric in METRICS.items():
        _, kind, labels, text = row(f"`{name}`")
        assert (kind, tuple(re.findall(r"`(\w+)`", labels))) == (metric.kind, metric.labels)
        assert text.startswith(metric.text)
        assert all(row(f"`{label}`", metrics)[1] for label in metric.labels)
    assert set(re.findall(r"^\| `((?:farthing|process)_\w+)` \|", TEXT, re.MULTILINE)) == set(
        METRICS
    )


def test_each_setting_has_its_row_and_no_other() -> None:
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        _, shown, meaning = row(f"`FARTHING_{name.upper()}`")
        assert shown == default
        assert meaning == (field.description or meaning) != ""
    rows = re.findall(r"^\| `FARTHING_(\w+)` \|", TEXT, re.MULTILINE)
    assert sorted(rows) == sorted(name.upper() for name in Settings.model_fields)


def test_each_request_header_has_its_row() -> None:
    budgets = (terms.USD, terms.GPU, terms.LATENCY, terms.TTFT, terms.QUALITY, terms.FALLBACK)
    for header in (*budgets, terms.POLICY, terms.DEBUG):
        assert row(f"`{header}`")[1]


@pytest.mark.parametrize(
    ("policy", "title"),
    [
        (Speculative, "Guessing ahead"),
        (KvPrediction, "Reading ahead of the prompt"),
        (Precision, "Precision by load"),
        (Cascade, "Cascades"),
        (Route, "Easy and hard requests"),
        (Refine, "Refining"),
        (Planner, "Auto, the planner"),
    ],
)
def test_each_option_of_a_policy_has_its_row(policy: type[Policy], title: str) -> None:
    section = re.split(r"\n##+ ", TEXT.partition(f"## {title}\n")[2])[0]
    for name, field in policy.model_fields.items():
        default = "" if field.default in (None, "", ()) else f"`{field.default}`"
        assert row(f"`{name}`", section) == [f"`{name}`", default, field.description]


def test_each_error_s_status_has_its_row() -> None:
    kinds = [kind for kind in vars(app.errors).values() if inspect.isclass(kind)]
    for status in {kind.status for kind in kinds if issubclass(kind, app.errors.FarthingError)}:
        assert row(str(status))[1]


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", TEXT, re.MULTILINE))
    assert {"serve", "test", "install", "check"} <= named <= targets


def test_the_files_that_it_names_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    named = re.findall(r"`((?:app|routers|policies|tests)/[\w/.]*)`", TEXT)
    assert [path for path in [*links, *named] if not (ROOT / path).exists()] == []


def test_the_sections_that_it_links_to_exist() -> None:
    titles = re.findall(r"^##+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


def test_the_example_fleet_can_be_read(tmp_path: Path) -> None:
    ((_, text),) = blocks("toml")
    path = tmp_path / "farthing.toml"
    path.write_text(text, encoding="utf-8")
    fleet = read(path)
    assert set(fleet.presets) == {"thrifty", "swift"}
    for preset in fleet.presets.values():
        policies.load(preset.policy, preset.options).fit(fleet, None)


def test_the_first_request_fits_the_default_fleet() -> None:
    words = curl()
    body = json.loads(words[words.index("-d") + 1])
    fleet = read(DEFAULT_CONFIG)
    assert body["model"] in fleet.presets
    assert words[1] == "http://127.0.0.1:8080/v1/chat/completions"
    assert f'model="{body["model"]}"' in blocks("python")[0][1]
    dearest = max(card.price.output for card in fleet.models.values())
    (budget,) = [word.split()[1] for word in words if word.startswith("X-Budget-Usd")]
    assert terms.pico_usd(budget, "") > 2 * dearest * body["max_tokens"]


def test_python_examples_are_python() -> None:
    for file, text in blocks("python"):
        compile(text, file or "README.md", "exec")


@pytest.fixture
def or_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example policy, as if it stood in its folder."""
    ((file, text),) = [block for block in blocks("python") if block[0]]
    assert file == "policies/or_else.py"
    (tmp_path / Path(file).name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(policies, "__path__", [*policies.__path__, str(tmp_path)])
    policies.names.cache_clear()
    assert "or_else" in policies.names()
    yield "or_else"
    sys.modules.pop("policies.or_else", None)
    policies.__dict__.pop("or_else", None)
    policies.names.cache_clear()


def owed(module: ModuleType) -> list[Callable[..., Any]]:
    return [test for name, test in vars(module).items() if name.startswith("test_")]


@pytest.mark.parametrize("test", owed(contract), ids=lambda test: str(test.__name__))
async def test_the_example_policy_keeps_the_contract(
    test: Callable[..., Any], or_else: str
) -> None:
    wants = inspect.signature(test).parameters
    given = {"chunks_read": 2, "length": scripts.LENGTH}
    assert set(wants) <= {"name", *given}
    more = {name: value for name, value in given.items() if name in wants}
    done = test(name=or_else, **more)
    if inspect.isawaitable(done):
        await done


async def test_the_example_policy_asks_the_other_model_when_it_must(or_else: str) -> None:
    for budget, first in ((1000, "l0"), (60, "s0")):
        order = Order(scripts.call("large"), policy=or_else, usd=scripts.usd(budget))
        chunks = await scripts.read(
            Gateway(scripts.engine(), scripts.fleet()).answer(order, Purse())
        )
        assert scripts.text(chunks).split()[0] == first
