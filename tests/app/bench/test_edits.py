"""The figures of `farthing bench edits`, on files and edits that are known."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from app.bench import edits
from app.bench.code_edits import KINDS, Function, Kind, draw, read_functions
from app.bench.edits import Plan, Prompts, answered, measure, prompts_of, read_once, similarity
from app.bench.reading import Measured, Weights
from app.cli import main
from app.engines.embedded.model import Decoder
from app.engines.embedded.weights import load
from app.errors import ConfigError
from tests.app.engines.embedded import reference
from tests.app.engines.embedded.tiny import VOCABULARY, write_model

FUNCTIONS = [
    Function(
        f'def f{n}(first, other{n}):\n    """Adds {n} and more."""\n',
        f"    found = first + {n}\n    if other{n}:\n        found += other{n}\n    return found\n",
    )
    for n in range(12)
]
QUIET = Console(quiet=True)
HEAD, TAIL = tuple(range(30)), tuple(range(60, 110))
EDITED = [
    Prompts("insert", (*HEAD, *TAIL), (*HEAD, 40, 41, 42, *TAIL)),
    Prompts("delete", (*HEAD, 40, 41, *TAIL), (*HEAD, *TAIL)),
    Prompts("replace", (*HEAD, 40, 41, *TAIL), (*HEAD, 50, 51, *TAIL)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"), context=2048)


@pytest.fixture(scope="module")
def model(folder: Path) -> Measured:
    return Measured.load(Weights("tiny", folder, None, "int8"))


@pytest.fixture(scope="module")
def shallow(model: Measured, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Of a single layer: there keys and values depend on a token and its place alone."""
    path = tmp_path_factory.mktemp("shallow")
    reference.llama(num_hidden_layers=1, vocab_size=VOCABULARY).save_pretrained(path)
    return replace(model, decoder=Decoder(*load(path), "fp32"))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    file = tmp_path / "code.jsonl"
    rows = [{"prompt": f.prompt, "canonical_solution": f.body} for f in FUNCTIONS]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_is_in_the_middle_of_code_that_parses(kind: Kind, model: Measured) -> None:
    for seed in range(20):
        edit = draw(FUNCTIONS, kind, model.tokenizer, 700, seed)
        assert edit.kind == kind
        assert edit.before != edit.after
        for text in (edit.before, edit.after):
            ast.parse(text)
            assert text.endswith(edit.last)
            assert text.splitlines()[0] == edit.before.splitlines()[0]
        assert 500 < len(model.tokenizer.encode(edit.before)) <= 700
        lines = [len(text.splitlines()) for text in (edit.before, edit.after)]
        grown = lines[1] - lines[0]
        assert {"insert": grown > 0, "delete": -3 <= grown < 0, "replace": grown == 0}[kind]


def test_edits_are_drawn_by_the_seed(model: Measured) -> None:
    first, again, other = (
        [draw(FUNCTIONS, kind, model.tokenizer, 700, seed) for kind in KINDS] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_files_that_cannot_be_made(model: Measured) -> None:
    with pytest.raises(ValueError, match="60 tokens hold no function beside"):
        draw(FUNCTIONS, "insert", model.tokenizer, 60, 0)
    with pytest.raises(ValueError, match="no edit of kind insert was found"):
        draw(FUNCTIONS[:2], "insert", model.tokenizer, 700, 0)  # all of them are there


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": "def f():\n    '''f'''\n"}, ":2: canonical_solution: is missing or empty"),
        ({"prompt": "def f(", "canonical_solution": "    pass\n"}, ":2: prompt: is no Python"),
    ],
)
def test_a_function_that_lacks_something(code: Path, line: object, said: str) -> None:
    code.write_text(f"{code.read_text().splitlines()[0]}\n{json.dumps(line)}\n")
    with pytest.raises(ValueError, match=said):
        read_functions(code)


def test_the_model_s_context_holds_file_and_answer(model: Measured) -> None:
    plan = Plan(None, tokens=700, edits=3, answer=1500)
    with pytest.raises(ValueError, match=r"an answer of 1500 do not fit a context of 2048"):
        prompts_of(model, FUNCTIONS, plan)
    found = prompts_of(model, FUNCTIONS, replace(plan, answer=8))
    assert [each.kind for each in found] == list(KINDS)


@pytest.mark.parametrize("edit", EDITED, ids=lambda edit: edit.kind)
def test_how_much_each_way_computes(edit: Prompts, model: Measured) -> None:
    old = read_once(model, edit.old)
    computed = {}
    for way in edits.ways_of(model.decoder):
        found = answered(way, model, old, edit, 4)
        computed[way.name] = found.computed
        assert len(found.answer) == 4 or found.answer[-1] in model.tokenizer.eos_ids
        assert found.seconds > 0
    changed = len(edit.new) - len(HEAD) - len(TAIL)
    assert computed == {
        "recomputed": len(edit.new),
        "prefix cache": len(edit.new) - len(HEAD),
        "moved (PIE)": changed + 1,  # and the prompt's last token
        "moved, not turned": changed + 1,
    }


def test_of_one_layer_moving_costs_nothing_and_not_turning_does(shallow: Measured) -> None:
    plan = Plan(None, answer=12)
    found = measure(shallow, EDITED, plan, QUIET)
    assert [kind for kind, _ in found] == list(KINDS)
    for _, points in found:
        full, moved = points["recomputed"], points["moved (PIE)"]
        assert (
            (moved.same, moved.similarity, moved.agreed)
            == (1, 1, 1)
            == (
                full.same,
                full.similarity,
                full.agreed,
            )
        )
        assert moved.nats == pytest.approx(full.nats, abs=1e-4)
    for kind, points in found:
        difference = abs(points["moved, not turned"].nats - points["recomputed"].nats)
        assert (difference > 0.01) == (kind != "replace")  # there nothing changes its place


def test_of_more_layers_moving_is_seen(model: Measured) -> None:
    """What follows the edit has not seen it."""
    for _, points in measure(model, EDITED, Plan(None, answer=24), QUIET):
        assert points["recomputed"].same == points["recomputed"].agreed == 1
        assert points["moved (PIE)"].nats != pytest.approx(points["recomputed"].nats, abs=1e-3)


def test_the_answer_s_likelihood_is_the_model_s_own(shallow: Measured) -> None:
    points = measure(shallow, EDITED[:1], Plan(None, answer=30), QUIET)[0][1]
    full = edits.ways_of(shallow.decoder)[0]
    old = read_once(shallow, EDITED[0].old)
    answer = answered(full, shallow, old, EDITED[0], 30).answer
    prompt = EDITED[0].new
    logs = shallow.log_probabilities([*prompt, *answer], len(prompt))
    own = -float(logs.gather(1, torch.tensor(answer)[:, None]).mean())
    assert points["recomputed"].nats == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("kitten", "sitting", 1 - 3 / 7),
        ("flaw", "lawn", 0.5),
        ("", "abc", 0),
        ("", "", 1),
        ("same", "same", 1),
    ],
)
def test_edit_similarity(one: str, other: str, found: float) -> None:
    assert similarity(one, other) == similarity(other, one) == pytest.approx(found)


def test_the_command_writes_all_of_it(
    folder: Path, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.measure._weights", lambda name: Weights(name, folder, None, "int8"))
    file = tmp_path / "figures.json"
    options = ["--tokens", "500", "--edits", "6", "--answer", "6", "--threads", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "edits", "tiny", "--code", str(code), *options, "--json", str(file)])
    assert ended.value.code == 0
    report = json.loads(file.read_text())
    assert report["setup"]["plan"]["tokens"] == 500
    points = {(point["kind"], point["way"]): point for point in report["points"]}
    assert len(points) == 4 * 4
    assert {kind: points[kind, "recomputed"]["edits"] for kind in ("all", *KINDS)} == {
        "all": 6,
        "insert": 2,
        "delete": 2,
        "replace": 2,
    }
    whole, moved = points["all", "recomputed"], points["all", "moved (PIE)"]
    assert whole["computed_share"]["mean"] == whole["exact_match"]["mean"] == 1
    assert whole["nats_added"] == {"mean": 0, "low": 0, "high": 0}
    assert moved["computed_share"]["mean"] < points["all", "prefix cache"]["computed_share"]["mean"]
    assert 0 <= moved["exact_match"]["mean"] <= moved["similarity"]["mean"] <= 1


def test_a_file_of_functions_must_be_named(folder: Path, tmp_path: Path) -> None:
    weights = Weights("tiny", folder, None, "int8")
    with pytest.raises(ConfigError, match="--code: names no file of functions"):
        edits.run(weights, Plan(None), threads=1)
    with pytest.raises(ConfigError, match=r"none.jsonl: no such file"):
        edits.run(weights, Plan(tmp_path / "none.jsonl"), threads=1)
