"""What a model takes alone, by the length of its prompt, and for each token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bench.calibrate.observed import Point
from app.bench.calibrate.points import points
from app.bench.calibrate.runtimes import Grid, Sample, fitted, measure, read
from app.bench.calibrate.spending import Spending
from app.engines.fake import Fake, Script
from app.factory import create_app
from app.profile import Runtime
from app.settings import Settings
from tests.policies.scripts import fleet

GRID = Grid(lengths=(16, 64), rounds=2, tokens=4)
ALONE = [point for point in points(fleet(), 0) if point.policy == "direct"]


def scripted(context: int = 4096) -> Fake:
    words = [str(n) for n in range(9)]
    return Fake({"small": Script(words), "large": Script(words, context=context)})


async def measured(
    tmp_path: Path,
    fake: Fake,
    usd: int | Spending | None = None,
    alone: list[Point] = ALONE,
    **grid: Any,
) -> tuple[dict[str, Runtime], list[int]]:
    settings = Settings(state_dir=tmp_path, ledger="off", no_auth=True)
    app, told = create_app(settings, catalog=fleet(), engine=fake), list[int]()
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            file = tmp_path / "runtimes.jsonl"
            spending = usd if isinstance(usd, Spending) else Spending(usd)
            grid_ = replace(GRID, **grid)
            found = await measure(http, alone, grid_, spending, file, told.append)
    return found, told


async def test_each_model_by_each_length(tmp_path: Path) -> None:
    fake = scripted()
    found, told = await measured(tmp_path, fake)
    assert list(found) == ["small", "large"] and sum(told) == 8
    lengths = list(found["small"].first)
    assert len(lengths) == 2 and lengths[0] < lengths[1] and found["small"].each >= 0
    assert [call.max_tokens for call in fake.calls] == [4] * 8
    # None is found in a cache: the first word is another each time.
    assert len({call.messages[0]["content"].split()[0] for call in fake.calls}) == 8


async def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    fake = scripted()
    first, _ = await measured(tmp_path, fake)
    again, told = await measured(tmp_path, fake)
    assert (again, len(fake.calls), sum(told)) == (first, 8, 8)
    changed = [replace(ALONE[0], digest="other"), ALONE[1]]
    await measured(tmp_path, fake, alone=changed)
    assert len(fake.calls) == 12


async def test_a_length_that_is_refused_is_left_out(tmp_path: Path) -> None:
    fake = scripted(context=30)
    found, told = await measured(tmp_path, fake)
    assert [len(found[name].first) for name in ("small", "large")] == [2, 1]
    assert sum(told) == 8 and len(fake.calls) == 6


async def test_the_budget_ends_it(tmp_path: Path) -> None:
    fake = scripted()
    await measured(tmp_path, fake, usd=300_000_000)
    assert 0 < sum(sample.spent for sample in read(tmp_path / "runtimes.jsonl")) <= 300_000_000
    assert 0 < len(fake.calls) < 8


async def test_what_is_no_sample_is_paid_for_all_the_same(tmp_path: Path) -> None:
    words = ["", *map(str, range(9))]
    fake = Fake({"small": Script(words, fails_after=1), "large": Script(words)})
    held = tmp_path / "held.json"
    spending = Spending(10**9, file=held)
    await measured(tmp_path, fake, usd=spending, alone=ALONE[:1], rounds=1)
    spending.close()
    assert not (tmp_path / "runtimes.jsonl").exists()
    assert Spending(10**9, file=held).spent > 0


def sample(length: int, first_s: float, seconds: float, number: int = 0) -> Sample:
    return Sample("m", "d", length, number, length + 2, 5, first_s, seconds, 0)


def test_a_prompt_s_time_is_the_least_and_a_token_s_the_median() -> None:
    found = fitted(
        [sample(16, 0.3, 0.7), sample(16, 0.2, 1.0, 1), sample(64, 0.5, 0.98)]  # 0.1, 0.2, 0.12
    )
    assert found["m"].first == {18: 0.2, 66: 0.5}
    assert found["m"].each == pytest.approx(0.12)


def test_one_token_says_nothing_of_a_pace() -> None:
    assert fitted([replace(sample(16, 0.3, 0.3), completion=1)]) == {}


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runtimes.jsonl"
    path.write_text('{"model": "m"}\n')
    with pytest.raises(ValueError, match=r"runtimes.jsonl:1: is no sample of a runtime"):
        read(path)
