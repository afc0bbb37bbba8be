"""The figures of `farthing bench ttft` on models and predictors that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.bench import ttft
from app.bench.prefill import Read, Way
from app.bench.reading import Measured, Weights
from app.bench.short import measure
from app.bench.ttft import Plan, run
from app.cli import main
from app.errors import ConfigError
from app.gateway import Gateway, Order
from tests.app.bench.predictors import true_predictor
from tests.app.engines.embedded.tiny import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def base(folder: Path) -> Weights:
    return Weights("tiny", folder, None, "fp32")


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    rows = [
        {"context": f"Town {n} has {n + 3} mills.", "question": "How many?", "answers": [f"{n}"]}
        for n in range(30)
    ]
    file = tmp_path / "squad.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def plan(squad: Path) -> Plan:
    return Plan(squad, lengths=(380, 470), questions=3, last=(1, 64), relevant=(0.0,), extracted=())


def report_of(file: Path) -> dict[tuple[str, int], dict[str, Any]]:
    points = json.loads(file.read_text())["points"]
    return {(point["predictor"], point["prompt_tokens"]): point for point in points}


def test_the_command_writes_all_of_it(
    folder: Path, squad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.measure._weights", lambda name: Weights(name, folder, None, "fp32"))
    true_predictor(folder).save(tmp_path / "true")
    file = tmp_path / "figures.json"
    options = [
        "--lengths",
        "380,470",
        "--last",
        "1,64",
        "--relevant",
        "0",
        "--extracted",
        "0.3",
        "--questions",
        "3",
        "--threads",
        "1",
        "--small",
        "other",
    ]
    asked = ["bench", "ttft", "tiny", "--predictor", str(tmp_path / "true"), "--squad", str(squad)]
    with pytest.raises(SystemExit) as ended:
        main([*asked, *options, "--json", str(file)])
    assert ended.value.code == 0
    found = report_of(file)
    names = ["exact", "layers-1, last 1", "layers-1, last 64", "other", "truncated to 0.5"]
    names.append("extracted 0.3")
    assert list(found) == [(name, length) for length in (380, 470) for name in names]
    for (name, length), point in found.items():
        assert point["k"] == (1 if name.startswith("layers") else None)
        assert point["questions"] == 3
        assert 0 < point["ttft_ratio"]["low"] <= point["ttft_ratio"]["high"]
        assert length - 20 <= point["mean_tokens"]["mean"] <= length
        assert set(point) >= {"quality_kept", "f1", "exact_match", "nats", "agreement"}
    assert found["exact", 380]["ttft_ratio"] == {"mean": 1, "low": 1, "high": 1}
    setup = json.loads(file.read_text())["setup"]
    assert setup["model"] == "tiny"
    assert setup["plan"]["lengths"] == [380, 470]
    assert setup["plan"]["squad"] == str(squad)


def test_a_true_predictor_and_the_model_itself_lose_nothing(
    base: Weights, plan: Plan, folder: Path, tmp_path: Path
) -> None:
    for name, noise in (("true", 0.0), ("false", 3.0)):
        true_predictor(folder, noise).save(tmp_path / name)
    files, out = [tmp_path / "true", tmp_path / "false"], tmp_path / "figures.json"
    run(base, replace(base, name="again"), files, plan, threads=1, json_file=out)
    found = report_of(out)
    exact = found["exact", 470]
    for name in ("layers-1, last 1", "layers-1, last 64", "again"):
        point = found[name, 470]
        assert point["agreement"]["mean"] >= 0.95, name  # but for ties, of other sums
        assert point["nats"]["mean"] == pytest.approx(exact["nats"]["mean"], abs=0.02)
    assert found["layers-1, last 1 #2", 470]["agreement"]["mean"] < 1
    assert found["truncated to 0.5", 470]["agreement"]["mean"] < 1


def test_what_is_computed_all_the_same_counts(
    base: Weights, plan: Plan, folder: Path, tmp_path: Path
) -> None:
    true_predictor(folder).save(tmp_path / "true")
    out = tmp_path / "figures.json"
    run(base, None, [tmp_path / "true"], plan, threads=1, json_file=out)
    found = report_of(out)
    share = true_predictor(folder).about.share
    for length in (380, 470):
        point = found["layers-1, last 64", length]
        assert (point["first"], point["last"]) == (4, 64)
        computed = 68 / length
        assert point["flops_share"] == pytest.approx(computed + (1 - computed) * share)
        assert found["truncated to 0.5", length]["flops_share"] == 0.5


def test_what_is_asked_about_is_computed_or_is_all_that_is_read(
    base: Weights, plan: Plan, folder: Path, tmp_path: Path
) -> None:
    true_predictor(folder, 3.0).save(tmp_path / "false")
    out, shares = tmp_path / "figures.json", (0.0, 0.4, 1.0)
    asked = replace(plan, lengths=(380,), last=(64,), relevant=shares, extracted=(0.4, 1.0))
    run(base, None, [tmp_path / "false"], asked, threads=1, json_file=out)
    found = report_of(out)
    shared = [found[name, 380] for name in ("layers-1, last 64, relevant 1", "extracted 1")]
    assert all(point["agreement"]["mean"] >= 0.95 for point in shared)
    assert shared[0]["flops_share"] == 1 and shared[0]["relevant"] == 1
    costs = [point["flops_share"] for (name, _), point in found.items() if "layers" in name]
    assert costs == sorted(costs) and len(set(costs)) == 3
    assert found["extracted 0.4", 380]["agreement"]["mean"] < 1


def test_the_parts_that_are_read_alone_stand_between_beginning_and_end(base: Weights) -> None:
    model = Measured.load(base)
    text = f"{'a ' * 30}\n\n{'b ' * 60}Everest {'c ' * 60}\n\nWho of all these was on Everest"
    ids = model.tokenizer.encode(text)
    way = Way("extracted", model, 0.2, None, 4, 6, 0.1)
    taken = b"".join(map(model.tokenizer.piece, way.taken(ids, 2))).decode()
    assert taken.startswith(text[:4]) and taken.endswith(text[-20:])
    assert "Everest" in taken[:-20] and len(taken) < len(text) / 2
    assert way.taken(ids[:8], 2) == ids[:8]


def test_the_exact_answer_is_what_others_are_compared_with(
    base: Weights, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each way's answer is scored by the question's own answers."""
    seen: list[tuple[str, Any]] = []

    def scripted(way: Way, ids: Any, reference: Any, exact: Any, *rest: Any) -> Read:
        seen.append((way.name, exact))
        said = "7" if way.name == "exact" else "no"
        answer = tuple(way.model.tokenizer.continued(said))
        return Read(2.0 if way.name == "exact" else 0.5, answer, 1.5, 0.75)

    monkeypatch.setattr(ttft, "read", scripted)
    (tmp_path / "one.jsonl").write_text(
        "\n".join(
            json.dumps({"context": f"c{n}", "question": "q", "answers": [right]})
            for n, right in enumerate(("6", "7"))
        )
    )
    out = tmp_path / "figures.json"
    asked = replace(plan, squad=tmp_path / "one.jsonl", lengths=(380,))
    run(base, None, [], asked, threads=1, json_file=out)
    exact = tuple(b"7")
    assert seen == [("exact", None), ("truncated to 0.5", exact)] * 3  # the first one warms up
    found = report_of(out)
    way = found["truncated to 0.5", 380]
    assert way["ttft_ratio"] == {"mean": 4, "low": 4, "high": 4}
    assert way["quality_kept"] == {"mean": 0, "low": 0, "high": 0}
    assert way["agreement"]["mean"] == 0.75
    assert found["exact", 380]["f1"]["mean"] == 0.5


def test_questions_longer_than_a_length_are_left_out(
    base: Weights, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"context": "x" * length, "question": "q", "answers": ["a"]} for length in (10, 100, 300)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "figures.json"
    asked = replace(plan, squad=tmp_path / "q.jsonl", lengths=(50, 380, 470))
    run(base, None, [], asked, threads=1, json_file=out)
    counts = {length: point["questions"] for (_, length), point in report_of(out).items()}
    assert counts == {380: 2, 470: 2}
    assert report_of(out)["exact", 380]["quality_kept"] is None  # nothing was right
    assert "no question fits 50 tokens" in capsys.readouterr().err


def test_articles_are_summed_up(base: Weights, plan: Plan, tmp_path: Path) -> None:
    file, out = tmp_path / "articles.jsonl", tmp_path / "figures.json"
    rows = [{"article": f"It rained on day {n}.", "highlights": "Rain."} for n in range(4)]
    rows.append({"article": "long " * 200, "summary": "Long."})  # which does not fit
    file.write_text("\n".join(map(json.dumps, rows)))
    asked = replace(plan, articles=file, lengths=(380,), questions=9)
    run(base, None, [], asked, threads=1, json_file=out)
    found = json.loads(out.read_text())["summaries"]
    assert set(found) == {"exact", "truncated to 0.5"}
    assert found["exact"]["ttft_ratio"]["mean"] == 1
    assert found["exact"]["nats"]["mean"] > 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"highlights": "h"}, ":1: article: is missing or empty"),
        ({"article": "a"}, ":1: highlights: is missing or empty"),
    ],
)
def test_an_article_that_lacks_something(
    base: Weights, plan: Plan, tmp_path: Path, line: object, said: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    with pytest.raises(ConfigError, match=said):
        run(base, None, [], replace(plan, articles=tmp_path / "a.jsonl"), threads=1)


def test_what_cannot_be_measured_is_said_before(
    base: Weights, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ttft, "read", lambda *_: pytest.fail("it was measured"))
    for asked, said in (
        (
            replace(plan, lengths=(200, 500)),
            "500 tokens and an answer of 24 do not fit the context",
        ),
        (replace(plan, truncated=(0.5, 1.5)), "--truncated between 0 and 1"),
        (replace(plan, squad=None), "--squad: names no file"),
        (replace(plan, squad=tmp_path / "none.jsonl"), "none.jsonl: no such file"),
    ):
        with pytest.raises(ConfigError, match=said):
            run(base, None, [], asked, threads=1)
    short = Weights("short", write_model(tmp_path / "short", context=300), None, "fp32")
    with pytest.raises(ConfigError, match="context of short, 300"):
        run(base, short, [], plan, threads=1)


def test_the_last_token_is_always_computed(
    base: Weights, plan: Plan, folder: Path, tmp_path: Path
) -> None:
    true_predictor(folder).save(tmp_path / "true")
    with pytest.raises(ConfigError, match="--last must be 1 or more"):
        run(base, None, [tmp_path / "true"], replace(plan, last=(0,)), threads=1)


def test_a_small_model_reads_the_same_tokens(base: Weights, plan: Plan, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="other and tiny have different tokenizers"):
        run(base, Weights("other", other, None, "fp32"), [], plan, threads=1)


def test_a_file_that_is_no_predictor_is_named(base: Weights, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"odd")
    with pytest.raises(ConfigError, match="odd: is no KV predictor"):
        run(base, None, [tmp_path / "odd"], plan, threads=1)


def test_it_breaks_even_where_all_longer_prompts_gain() -> None:
    def point(way: str, tokens: int, low: float) -> dict[str, Any]:
        return {"predictor": way, "prompt_tokens": tokens, "ttft_ratio": {"low": low}}

    lows = {64: 1.2, 128: 0.99, 256: 1.01, 512: 1.4}
    points = [point("a", tokens, low) for tokens, low in lows.items()]
    points += [point("b", tokens, 1.0) for tokens in lows]
    points += [point("c", tokens, 1.1) for tokens in lows]
    assert ttft._break_even(points) == {"a": 256, "b": None, "c": 64}


def test_prompts_that_are_too_short_are_read_exactly_in_both_ways(
    base: Weights, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_predictor(folder).save(tmp_path / "true")
    asked: list[tuple[str | None, int]] = []
    openings: set[str] = set()
    answer = Gateway.answer

    def watched(self: Gateway, order: Order, account: Any) -> Any:
        (message,) = order.call.messages
        asked.append((order.policy, len(message["content"])))
        openings.add(message["content"][:12])
        return answer(self, order, account)

    monkeypatch.setattr(Gateway, "answer", watched)
    texts = [f"Town {n} has {n + 3} mills." for n in range(60)]
    found = measure(base, [tmp_path / "true"], texts, (90, 200), 3, "wall", 0, 1)
    assert list(found) == [90, 200]
    for figures in found.values():
        assert 0 < figures["ttft_ratio"]["low"] <= figures["ttft_ratio"]["high"]
    assert {policy for policy, _ in asked} == {"direct", "kv_prediction"}
    assert len(asked) == len(openings) == 16  # none finds anything of another's
    for pair in zip(asked[::2], asked[1::2], strict=True):
        assert len({policy for policy, _ in pair}) == 2
        assert abs(pair[0][1] - pair[1][1]) < 12  # characters, which are tokens here
    assert asked[0][1] < 90 < asked[-1][1] < 200
