"""The figures of shorter prompts are computed from what the gateway's answers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bench import compression
from app.bench.compression import Plan, measured, run, sets
from app.errors import ConfigError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    texts = [f"Ada{n} did it. {'More of it. ' * 5}" for n in range(6)]
    squad = [
        {"context": text, "question": f"Who {n}?", "answers": [f"Ada{n}"]}
        for n, text in enumerate(texts)
    ]
    hotpot = [{**each, "answer": each.pop("answers")[0]} for each in map(dict, squad)]
    for name, values in {"squad": squad, "hotpot": hotpot}.items():
        lines = "".join(json.dumps(value) + "\n" for value in values)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return {name: tmp_path / f"{name}.jsonl" for name in ("squad", "hotpot")}


class Gateway:
    """Knows the answer where most of the prompt is left, or the surprising part."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.asked.append(body)
        policy = body.get("policy", {})
        number = body["messages"][0]["content"].split("Who ")[1][0]
        knows = policy.get("ratio", 1) > 0.6 or policy.get("by") == "surprisal"
        said = f"Ada{number}" if knows else "nobody"
        left = {"compressed": {"before": 100, "after": 100 * policy["ratio"]}} if policy else {}
        answer = {
            "choices": [{"message": {"content": said}}],
            "usage": {"cost": 2e-6 if policy else 4e-6},
            "farthing": left,
        }
        return httpx.Response(200, json=answer)


async def test_ways_are_compared_over_the_same_questions(files: dict[str, Path]) -> None:
    gateway = Gateway()
    plan = Plan("large", scorer="small", squad=files["squad"], questions=4, seed=3)
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(gateway), base_url="http://gateway"
    ) as http:
        rows = await measured(http, plan)
    assert [(row["way"], row["ratio"]) for row in rows] == [
        ("whole", 1.0),
        *((way, ratio) for ratio in (0.8, 0.5) for way in ("surprisal", "end", "random")),
    ]
    whole, *_, surprisal, end, _ = rows
    assert whole["f1"]["mean"] == surprisal["f1"]["mean"] == 1 and end["f1"]["mean"] == 0
    assert surprisal["f1_against_whole"]["mean"] == 0
    assert surprisal["f1_against_end"]["low"] == surprisal["f1_against_random"]["mean"] == 1
    assert (surprisal["left"], surprisal["uncut"], whole["uncut"]) == (0.5, 0, 4)
    assert surprisal["cost_usd"] == pytest.approx(2e-6)
    prompts = {body["messages"][0]["content"] for body in gateway.asked}
    assert len(prompts) == 4 and len(gateway.asked) == 4 * 7
    cut = [body["policy"] for body in gateway.asked if "policy" in body]
    assert all(each["scorer"] == "small" and each["least"] == 1 for each in cut)


def test_sets_are_drawn_by_the_seed_and_padded(files: dict[str, Path]) -> None:
    plan = Plan("large", squad=files["squad"], hotpot=files["hotpot"], padded=60, questions=3)
    found = sets(plan)
    assert list(found) == ["squad", "squad, padded", "hotpot"] and found == sets(plan)
    for alone, padded in zip(found["squad"], found["squad, padded"], strict=True):
        assert alone.right == padded.right
        own = alone.text.split("\n\n")[0]
        assert own in padded.text and 40 < len(padded.text.split()) < 100


def test_a_gateway_that_refuses_is_named(files: dict[str, Path], monkeypatch: Any) -> None:
    refuse = httpx.MockTransport(lambda request: httpx.Response(400, text="no such model"))
    client = httpx.AsyncClient
    monkeypatch.setattr(
        compression.httpx, "AsyncClient", lambda **keys: client(transport=refuse, **keys)
    )
    with pytest.raises(ConfigError, match="400: no such model"):
        run("http://gateway", Plan("large", squad=files["squad"]))
    with pytest.raises(ConfigError, match="--squad"):
        run("http://gateway", Plan("large"))
