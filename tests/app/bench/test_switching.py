"""The curve of entropy switching is computed from what the gateway's answers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bench import switching
from app.bench.reading import Measured, Weights
from app.bench.switching import Plan, caught_up, curve, run
from app.errors import ConfigError
from tests.app.engines.embedded.tiny import write_model

PLAN = Plan("small", "large", raise_at=(1.0, 4.0), limit=2, tokens=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    lines = {
        "prompts": [{"prompt": "Why?"}, {"prompt": "How?"}],
        "squad": [
            {"context": "Ada did.", "question": f"Who {n}?", "answers": ["Ada"]} for n in "12"
        ],
    }
    for name, values in lines.items():
        text = "".join(json.dumps(value) + "\n" for value in values)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return {name: tmp_path / f"{name}.jsonl" for name in lines}


class Gateway:
    """Answers as one would, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, Any], str | None]] = []
        self.keys: set[str | None] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        budget = request.headers.get("X-Budget-Usd")
        self.asked.append((body, budget))
        self.keys.add(request.headers.get("Authorization"))
        assert request.headers["X-Debug"] == "1"
        if budget is not None and body["model"] == "large":
            return httpx.Response(402, json={"error": {"message": "too dear"}})
        switched = "policy" in body
        level = body["policy"]["raise_at"] if switched else 0
        written = {"small": 6, "large": 2 if level == 1.0 else 0} if switched else {"small": 8}
        switches = [{"token": 4, "model": "large"}, {"token": 6, "model": "small"}]
        return httpx.Response(
            200,
            json={
                "choices": [{"message": {"content": "Ada did"}}],
                "usage": {"cost": 0.0000015 * (1 + level)},
                "farthing": {"models": written, "switches": switches if level == 1.0 else []},
            },
        )

    def contents(self) -> list[str]:
        return [f"{body['messages'][0]['content']}" for body, _ in self.asked]


async def rows(gateway: Gateway, base: Path, **changed: Any) -> list[dict[str, Any]]:
    plan = Plan(**{**vars(PLAN), **changed})
    transport = httpx.MockTransport(gateway)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        return await curve(http, plan, Measured.load(Weights("large", base, None, "fp32")))


async def test_a_row_for_each_threshold(base: Path, files: dict[str, Path]) -> None:
    gateway = Gateway()
    found = await rows(gateway, base, **files)
    assert [(row["raise_at"], row["lower_at"]) for row in found] == [(1.0, 0.5), (4.0, 2.0)]
    often, seldom = (row["switching"] for row in found)
    assert often["large_share"]["mean"] == pytest.approx(2 / 8)
    assert often["large_share_with_catch_up"]["mean"] == pytest.approx((2 + 4) / 8)
    assert seldom["large_share"]["mean"] == 0
    assert often["squad_f1"]["mean"] == pytest.approx(2 / 3)
    assert often["cost_usd"]["mean"] == pytest.approx(0.000003)
    assert 0 <= often["agreement"]["mean"] <= 1 and often["nll"]["mean"] > 0
    alone = found[0]["large_alone"]
    assert alone["refused"] == 4 and alone["squad_f1"]["mean"] == 0
    assert alone["agreement"] is None and alone["large_share"] is None


async def test_each_model_alone_has_what_the_policy_cost(
    base: Path, files: dict[str, Path]
) -> None:
    gateway = Gateway()
    await rows(gateway, base, raise_at=(4.0,), **files)
    budgets = [budget for body, budget in gateway.asked if "policy" not in body]
    assert len(budgets) == 8 and {float(b or 0) for b in budgets} == {0.0000075}
    assert {body["model"] for body, budget in gateway.asked if budget} == {"small", "large"}
    assert all(body["temperature"] == 0 for body, _ in gateway.asked)


async def test_no_prompt_begins_as_another_did(base: Path, files: dict[str, Path]) -> None:
    """What the prefix cache kept of one answer would make the next one cheaper."""
    gateway = Gateway()
    await rows(gateway, base, **files)
    begins = [content.split(")")[0] for content in gateway.contents()]
    assert len(set(begins)) == len(begins) == 24


async def test_an_answer_is_judged_behind_what_was_asked(
    base: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[tuple[str, str]] = []
    monkeypatch.setattr(
        switching, "_seen", lambda _, asked, text: judged.append((asked, text)) or (1, 1, 1.0)
    )
    gateway = Gateway()
    await rows(gateway, base, raise_at=(4.0,), prompts=files["prompts"])
    asked = gateway.contents()
    assert sorted(text for text, _ in judged) == sorted(asked)
    again = Gateway()
    await rows(again, base, raise_at=(4.0,), prompts=files["prompts"])
    assert sorted(again.contents()) == sorted(asked)


@pytest.mark.parametrize(
    ("turns", "read"),
    [
        ([], 0),
        ([(10, "large")], 10),
        ([(10, "large"), (25, "small")], 10),
        ([(10, "large"), (25, "small"), (31, "large")], 16),
        ([(7, "small")], 0),
        ([(7, "small"), (20, "large")], 13),
    ],
)
def test_catching_up_reads_each_token_once(turns: list[tuple[int, str]], read: int) -> None:
    assert caught_up([{"token": at, "model": model} for at, model in turns], "large") == read


def test_a_key_is_sent(
    base: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway = Gateway()
    client = httpx.AsyncClient

    def connected(**options: Any) -> httpx.AsyncClient:
        return client(transport=httpx.MockTransport(gateway), **options)

    monkeypatch.setattr(httpx, "AsyncClient", connected)
    weights, report = Weights("large", base, None, "fp32"), tmp_path / "figures.json"
    run("http://g/v1", weights, Plan(**{**vars(PLAN), **files}), key="sk-1", json_file=report)
    assert gateway.keys == {"Bearer sk-1"}
    assert len(json.loads(report.read_text())["rows"]) == 2


def test_no_gateway_and_nothing_to_ask(base: Path, files: dict[str, Path]) -> None:
    weights = Weights("large", base, None, "fp32")
    with pytest.raises(ConfigError, match="nothing to ask: name --prompts, --squad or both"):
        run("http://127.0.0.1:9", weights, PLAN)
    with pytest.raises(ConfigError, match="the gateway at http://127.0.0.1:9"):
        run("http://127.0.0.1:9", weights, Plan(**{**vars(PLAN), **files}))
