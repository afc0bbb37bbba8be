"""The figures of `farthing bench speculation` and `lenience` on models whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.bench import lenience, speculation
from app.bench.oracle import plain_by_oracle
from app.bench.prompts import BY_CATEGORY
from app.bench.racing import Draft, Lap, Track, Way
from app.bench.reading import Measured, Weights
from app.bench.speculation import Plan, over, read_questions, run, ways
from app.cli import main
from app.engines.embedded.speculation.goodput import StepCost
from app.engines.embedded.weights import open_checkpoint
from app.errors import ConfigError
from app.training.net import read_net
from app.training.result import write_draft
from app.types import Speculation, Usage
from tests.app.engines.embedded.tiny import write_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = write_model(tmp_path_factory.mktemp("base"), context=2048)
    return Weights("base", folder, None, "int8")


@pytest.fixture(scope="module")
def draft(base: Weights, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder, found = tmp_path_factory.mktemp("draft"), open_checkpoint(base.path)
    write_draft(folder, read_net(found), found, "base", torch.arange(129), {})
    return Weights("draft", folder, base.path, "int8")


@pytest.fixture
def track(base: Weights, draft: Weights) -> Track:
    model = Measured.load(base)
    track = Track(model, {"draft": Draft(Measured.load(draft))}, threads=1, tokens=12)
    track.warm(PROMPTS)
    return track


PROMPTS = [tuple(range(3, 40)), tuple(range(50, 70))]


def test_a_lap_counts_what_is_written_after_the_first_token(track: Track) -> None:
    plain = track.lap(Way("plain"), PROMPTS[:1])
    assert plain.usage == Usage(completion=11)
    assert [len(answer) for answer in plain.answers] == [12]
    guessed = Way("guessed", Speculation(draft="draft", lookup=True, longest=4, adaptive=False))
    lap = track.lap(guessed, PROMPTS[:1])
    assert lap.answers == plain.answers
    assert lap.usage.completion == 11
    assert lap.usage.drafted >= lap.usage.accepted > 0
    assert lap.usage.accepted + lap.usage.passes in (11, 12)  # 12: it ended on a guess
    assert plain.seconds > 0


def test_several_prompts_are_answered_at_once(track: Track) -> None:
    alone = [track.lap(Way("plain"), [prompt]).answers[0] for prompt in PROMPTS]
    for way in ways("draft", headed=False, quick=True):
        assert track.lap(way, PROMPTS).answers == tuple(alone), way.name


def test_a_batch_stays_full_until_all_are_answered(
    track: Track, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one is done early its place is taken, and what is written there counts."""
    (answer,) = track.lap(Way("plain"), PROMPTS[:1]).answers
    ends = frozenset({answer[2]})  # the first is over with its third token
    monkeypatch.setattr(track.model.tokenizer, "eos_ids", ends)
    lap = track.lap(Way("plain"), PROMPTS)
    assert len(lap.answers[0]) == 3 < len(lap.answers[1])
    alone = sum(len(answer) - 1 for answer in lap.answers)
    assert lap.usage.completion > alone
    assert lap.answers[1] == track.lap(Way("plain"), PROMPTS[1:]).answers[0]


def test_what_was_not_read_beforehand_is_not_measured(track: Track) -> None:
    with pytest.raises(ValueError, match="a prompt that had been read was not found again"):
        track.lap(Way("plain"), [tuple(range(90, 130))])


def test_ways_that_adapt_learn_from_other_questions_first(
    base: Weights, draft: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[tuple[int, ...], ...]]] = {}
    lap = Track.lap

    def noted(track: Track, way: Way, prompts: list[tuple[int, ...]]) -> Lap:
        seen.setdefault(way.name, []).append(tuple(prompts))
        return lap(track, way, prompts)

    monkeypatch.setattr(Track, "lap", noted)
    file = tmp_path / "figures.json"
    run(base, draft, Plan(each=2, tokens=6, quick=True), threads=1, json_file=file)
    measured = set(seen["plain"])
    others = [prompts for prompts in seen["adaptive"] if prompts not in measured]
    assert len(others) == json.loads(file.read_text())["learned_from"] > 0
    assert seen["adaptive"][: len(others)] == others
    assert set(seen["both K=4"]) == measured


def test_ways_have_plain_first_a_grid_and_ours_last() -> None:
    names = [way.name for way in ways("draft", headed=True, quick=False)]
    assert (names[0], names[-1]) == ("plain", "adaptive")
    assert len(names) == len(set(names))
    assert {"look-up K=1", "model K=8", "both K=4", "model head", "model adaedl"} <= set(names)
    alone = [way.speculation for way in ways(None, headed=False, quick=False)[1:]]
    assert all(asked is not None and not asked.draft and asked.lookup for asked in alone)


def laps(times: dict[str, dict[str, list[float]]]) -> speculation.Laps:
    found: speculation.Laps = {}
    for way, by_category in times.items():
        found[way] = [
            (speculation.Heat(category, ()), Lap(seconds, Usage(completion=10), ()))
            for category, each in by_category.items()
            for seconds in each
        ]
    return found


def test_the_speedup_is_the_mean_over_categories() -> None:
    """Each category counts once, however many questions it has."""
    found = laps(
        {
            "plain": {"a": [2.0] * 30, "b": [3.0, 3.0]},
            "fast": {"a": [2.0] * 30, "b": [1.0, 1.0]},
        }
    )
    estimate = over(found, "plain", "fast")
    assert estimate.mean == pytest.approx(2.0)
    assert [estimate.low, estimate.high] == pytest.approx([2.0, 2.0])


def test_its_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    drawn, held = np.random.default_rng(1), 0
    for _ in range(60):
        plain = drawn.lognormal(0, 0.2, 25)
        fast = plain / 1.5 * drawn.lognormal(0, 0.1, 25) / np.exp(0.005)
        estimate = over(
            laps({"plain": {"a": plain.tolist()}, "fast": {"a": fast.tolist()}}), "plain", "fast"
        )
        held += estimate.low <= 1.5 <= estimate.high
    assert held >= 48  # of 60; 57 are expected


def test_categories_of_mt_bench_are_one(tmp_path: Path, base: Weights) -> None:
    file = tmp_path / "questions.jsonl"
    lines = [("writing", "a"), ("math", "b"), ("humanities", "c"), ("rag", "d"), (None, "e")]
    rows = [{"category": category, "turns": [text]} for category, text in lines]
    file.write_text("\n".join(map(json.dumps, rows)))
    model = Measured.load(base)
    found = read_questions(model, Plan(prompts=file, each=9))
    assert sorted(q.category for q in found) == ["all", *["conversation"] * 3, "rag"]
    assert len(read_questions(model, Plan(prompts=file, each=2))) == 4
    ours = read_questions(model, Plan(each=2))
    assert {question.category for question in ours} == set(BY_CATEGORY)
    assert read_questions(model, Plan(longest=3)) == []


def test_the_oracle_takes_what_is_right_and_nothing_else(track: Track) -> None:
    track.cost = StepCost(1.0, 0.1, 0.1)
    answer = [7, 8, 9] * 4
    plain, best = plain_by_oracle(track, None, [1, 2, 3], answer, look=False)
    assert plain == best == pytest.approx(11.0)
    # From its second round on the answer repeats itself: one pass guesses all that is left but
    # one, which the pass writes itself.
    _, looked = plain_by_oracle(track, None, [1, 2, 3], answer, look=True)
    assert looked == pytest.approx(3 * 1.0 + (1.0 + 0.1 * 7))
    lap = track.lap(Way("plain"), [PROMPTS[0]])
    model = track.drafts["draft"].model
    _, modelled = plain_by_oracle(track, model, PROMPTS[0], lap.answers[0], look=False)
    assert modelled < 11.0


def test_all_of_it_is_measured_and_written(
    base: Weights, draft: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    plan = Plan(each=3, tokens=8, quick=True)
    run(base, draft, plan, threads=1, json_file=file)
    report = json.loads(file.read_text())
    assert report["speedup"] == report["ways"]["adaptive"]["speedup"]["mean"] > 0
    assert set(report["ways"]["plain"]["categories"]) == set(BY_CATEGORY)
    assert report["ways"]["plain"]["speedup"]["mean"] == 1.0
    assert report["best_fixed"] in report["ways"]
    assert not any(report["different"].values())
    assert set(report["oracle"]) == {"look-up", "model", "both"}
    row = report["ways"]["model K=4"]
    assert row["verification_rate"] == pytest.approx(1 / row["block_efficiency"])
    shown = capsys.readouterr().out
    assert "adaptive over the best fixed" in shown


def test_the_dial_of_lenience(base: Weights, draft: Weights, tmp_path: Path) -> None:
    squad = tmp_path / "squad.jsonl"
    squad.write_text(json.dumps({"context": "c", "question": "q", "answers": ["a"]}))
    asked = Plan(each=1, tokens=8)
    plan = lenience.Plan(asked, degrees=(1.0, 0.1), squad=squad)
    file = tmp_path / "figures.json"
    lenience.run(base, draft, plan, threads=1, json_file=file)
    found = json.loads(file.read_text())["ways"]
    assert set(found) == {"plain", "1", "0.1"}
    assert found["1"]["f1_lost"]["mean"] == 0
    assert found["0.1"]["agreement"]["mean"] < found["1"]["agreement"]["mean"]
    assert found["1"]["agreement"]["mean"] == found["plain"]["agreement"]["mean"]
    assert found["1"]["same_as_plain"]["mean"] == 1 > found["0.1"]["same_as_plain"]["mean"]


def test_an_interval_needs_two_of_each_category(base: Weights, draft: Weights) -> None:
    with pytest.raises(ConfigError, match="conversation has 3 questions: .* --batch 2 4;"):
        run(base, draft, Plan(each=3, tokens=8, batch=2, quick=True), threads=1)


def test_another_vocabulary_is_refused(base: Weights, tmp_path: Path) -> None:
    other = Weights("other", write_model(tmp_path / "other", vocabulary=300), None, "int8")
    with pytest.raises(ConfigError, match="other has 300 tokens, and base 258"):
        run(base, other, Plan(each=1), threads=1)


@pytest.mark.parametrize("command", ["speculation", "lenience"])
def test_the_command_refuses_what_is_not_embedded(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", command, "nobody"])
    assert "nobody" in capsys.readouterr().err


def test_drawing_is_by_the_seed(base: Weights) -> None:
    model = Measured.load(base)
    plans = [replace(Plan(each=1), seed=seed) for seed in (0, 0, 1, 2)]
    first, again, *others = [read_questions(model, plan) for plan in plans]
    assert first == again
    assert any(first != other for other in others)
