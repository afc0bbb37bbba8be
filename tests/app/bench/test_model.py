"""The figures of `farthing bench model` on models whose answers are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from app.bench.model import Plan, likelihood, run
from app.bench.reading import Measured, Weights
from app.bench.stand_in import compare
from app.bench.tasks import SQUAD, answers_of, multiple_choice, read_questions, squad
from app.cli import main
from app.engines.embedded.weights import open_checkpoint
from app.errors import ConfigError
from app.estimates import mean, ratio
from app.training.net import read_net
from app.training.result import write_draft
from app.types import Sampling
from tests.app.engines.embedded.tiny import VOCABULARY, write_model

PLAN = Plan(tokens=8, rounds=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def draft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layers of the base, in the int8 of the file, and a trimmed head of half the tokens."""
    folder, found = tmp_path_factory.mktemp("draft"), open_checkpoint(base)
    write_draft(folder, read_net(found), found, "base", torch.arange(129), {})
    return folder


def loaded(path: Path, base: Path | None = None) -> Measured:
    return Measured.load(Weights(path.name, path, base, "fp32"))


def test_a_model_accepts_itself(base: Path) -> None:
    model = loaded(base)
    report = run(model, model, None, PLAN)
    assert report["acceptance"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert report["acceptance_sampled"]["mean"] == pytest.approx(1.0, abs=1e-5)
    assert report["acceptance_positions"] > 20
    assert set(report["pace"]) >= {"tokens_per_second_ratio", "drafted_vs_large"}


def test_a_draft_is_accepted_less_and_with_half_a_head_still_less(base: Path, draft: Path) -> None:
    report = run(loaded(draft, base), loaded(base), None, PLAN)
    whole, half = report["acceptance_sampled"], report["acceptance_sampled_trimmed_head"]
    assert 0.5 < whole["mean"] < 0.9999
    assert half["mean"] < whole["mean"]
    assert whole["low"] < whole["mean"] < whole["high"]
    assert report["acceptance_trimmed_head"]["mean"] < report["acceptance"]["mean"]


def test_likelihood_is_the_log_of_what_the_model_says(base: Path) -> None:
    model = loaded(base)
    texts = [[72, 101, 108, 108, 111], [1, 2]]
    found = likelihood(model, texts)
    sums = 0.0
    for ids in texts:
        log_p = torch.log_softmax(model.decoder.logits(model.hidden(ids)), -1)
        sums -= sum(float(log_p[at, id]) for at, id in enumerate(ids[1:]))
    assert found["mean"] == pytest.approx(sums / 5, rel=1e-5)


class Scripted:
    """Stands for a model in the tasks: says what it is told to."""

    def __init__(self, base: Path, said: list[str]) -> None:
        self.tokenizer = loaded(base).tokenizer
        self.decoder, self._said = self, said

    def chat(self, text: str) -> list[int]:
        return self.tokenizer.chat([{"role": "user", "content": text}])

    def write(self, prompts: Any, tokens: int, sampling: Any) -> list[list[int]]:
        return [self.tokenizer.continued(said) for said in self._said]

    def hidden(self, ids: list[int]) -> torch.Tensor:
        return torch.zeros(1, 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(1, 258)
        scores[0, ord(self._said.pop(0))] = 1
        scores[0, ord("Z")] = 2  # which no question offers
        return scores


def test_squad_scores_as_squad_does(base: Path) -> None:
    said = ["The Denver Broncos!", "in Denver", "Carolina"]
    questions = [{"context": "", "question": "", "answers": ["Denver Broncos", "Broncos"]}] * 3
    found: Any = squad(Scripted(base, said), questions)  # type: ignore[arg-type]  # all it uses
    assert found["exact_match"]["mean"] == pytest.approx(1 / 3)
    assert found["f1"]["mean"] == pytest.approx((1 + 0.5 + 0) / 3)


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (["a", "b"], ["a", "b"]),
        ([{"text": "a", "answer_start": 3}], ["a"]),
        ({"text": ["a", "b"], "answer_start": [3, 4]}, ["a", "b"]),  # as on Hugging Face
    ],
)
def test_the_forms_of_squads_answers(answers: Any, found: list[str]) -> None:
    assert answers_of({"answers": answers}) == found


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question": "q", "answers": ["a"]}, ":2: context: is missing or empty"),
        ({"context": "c", "question": "q", "answers": []}, ":2: answers: is missing or empty"),
        ({"context": "c", "question": "q", "answers": [7]}, ":2: answers: holds no text"),
    ],
)
def test_a_question_that_lacks_something(tmp_path: Path, line: Any, said: str) -> None:
    whole = {"context": "c", "question": "q", "answers": ["a"]}
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(whole)}\n{json.dumps(line)}\n")
    with pytest.raises(ValueError, match=said):
        read_questions(tmp_path / "q.jsonl", SQUAD)


def test_more_prompts_than_a_server_would_let_wait(base: Path) -> None:
    written = loaded(base).write([[65, number % 250] for number in range(300)], 1, Sampling())
    assert [len(ids) for ids in written] == [1] * 300


def test_multiple_choice_takes_the_likeliest_letter_offered(base: Path) -> None:
    question = {"system": "One letter.", "prompt": "Which?\n\nA. This.\nB. That.\nC. Neither."}
    questions = [{**question, "answer": letter} for letter in "BBC"]
    model: Any = Scripted(base, ["B", "A", "C"])
    found = multiple_choice(model, questions)
    assert found["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert found["chance"] == pytest.approx(1 / 3)


def test_the_command_writes_all_of_it(base: Path, draft: Path, tmp_path: Path) -> None:
    def written(name: str, *lines: Any) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    question = {"context": "Ada wrote it.", "question": "Who?", "answers": ["Ada"]}
    choice = {"system": "S", "prompt": "Q\n\nA. a\nB. b", "answer": "A"}
    plan = Plan(
        prompts=written("p.jsonl", {"prompt": "Why?"}, {"prompt": "How?"}),
        text=written("t.jsonl", question, question),
        squad=tmp_path / "t.jsonl",
        truthful=written("c.jsonl", choice),
        tokens=6,
        rounds=1,
    )
    small = Weights("small", draft, base, "fp32")
    compare(small, Weights("large", base, None, "fp32"), plan, threads=1, json_file=tmp_path / "j")
    report = json.loads((tmp_path / "j").read_text())
    assert set(report) >= {"acceptance", "pace", "nll", "squad", "truthful_qa_mc", "setup"}
    assert "drafted_vs_int8" in report["pace"]
    assert report["setup"]["plan"]["tokens"] == 6


def test_different_tokenizers_are_refused(base: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="small and large have different tokenizers"):
        compare(Weights("small", other, None, "fp32"), Weights("large", base, None, "fp32"), PLAN)


def test_heads_of_two_widths_are_refused(base: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", vocabulary=VOCABULARY + 6)
    shutil.copy(base / "tokenizer.json", other)
    small, large = Weights("small", other, None, "fp32"), Weights("large", base, None, "fp32")
    with pytest.raises(ConfigError, match=f"small has {VOCABULARY + 6} tokens, and large"):
        compare(small, large, PLAN)


def test_where_the_figures_cannot_be_kept(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "model", "a", "b", "--json", str(tmp_path / "none" / "f.json")])
    assert "none is no folder" in capsys.readouterr().err


def test_a_missing_file_is_named(base: Path, tmp_path: Path) -> None:
    weights = Weights("tiny", base, None, "fp32")
    with pytest.raises(ConfigError, match="none.jsonl: no such file"):
        compare(weights, weights, Plan(prompts=tmp_path / "none.jsonl"))


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    seeded = torch.Generator().manual_seed(0)
    held = 0
    for number in range(200):
        drawn = torch.rand(60, generator=seeded).tolist()
        found = mean(drawn, seed=number)
        held += found.low <= 0.5 <= found.high
    assert 180 <= held <= 199


def test_a_ratio_weighs_by_what_is_under_it() -> None:
    assert ratio([1, 9], [2, 10]).mean == pytest.approx(10 / 12)
    with pytest.raises(ValueError, match="nothing"):
        ratio([], [])


def test_draws_without_a_ratio_are_left_out() -> None:
    found = ratio([0.5, 1.0], [0.0, 1.0])
    assert (found.mean, found.low) == (1.5, 1.0)
    assert found.high == pytest.approx(1.5)
    with pytest.raises(ValueError, match="nothing to divide by"):
        ratio([1.0], [0.0])
