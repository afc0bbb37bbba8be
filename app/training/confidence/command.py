"""Calibrations of confidence from the command line."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from app.bench.grading import Question, questions
from app.bench.tasks import SQUAD, answers_of, contains
from app.confidence import Calibration, Feature, Score
from app.errors import ConfigError, FarthingError
from app.training.answers import Interrupted, Watch
from app.training.command import check_asked, reason, watching
from app.training.confidence.asking import Asking, Sample
from app.training.confidence.cautioning import caution, unseen
from app.training.confidence.fitting import LEAST, fit
from app.training.confidence.judging import judged, lines, promises
from app.training.saving import replace_file
from app.types import Engine

_RIGHT = 0.5  # the least worth of an answer, as of F1, that counts as right
_LOGPROBS: tuple[Feature, ...] = ("mean_logprob", "min_logprob")
_ENTROPIES: tuple[Feature, ...] = ("mean_entropy", "max_entropy")


@dataclass(frozen=True)
class ConfidenceRecipe:
    """All that decides what comes out, beside the model, the prompts and the machine."""

    number: int = 0  # of prompts of each file, drawn by the seed; 0: all
    held_out: float = 0.4  # share of the prompts that the calibration is judged by
    checkpoints: tuple[int, ...] = (8, 16, 32, 64)  # tokens of an answer
    self_check: bool = False  # the model is asked about each of its answers too
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the option."""
        if self.number < 0:
            raise ValueError(f"number must be at least 0, not {self.number}")
        if not 0.1 <= self.held_out <= 0.9:
            raise ValueError(f"held_out must be 0.1 to 0.9, not {self.held_out}")
        if any(at < 1 for at in self.checkpoints) or len(self.checkpoints) > 64:
            raise ValueError("checkpoints must be at least 1 token, and 64 of them at most")


@dataclass(frozen=True)
class ConfidenceChoices:
    """What the command was told."""

    model: str
    folder: Path
    prompts: tuple[tuple[str, Path], ...]  # a task, and its file
    recipe: Mapping[str, Any]  # those of its fields that were given
    together: int  # questions at once


@dataclass(frozen=True)
class Graded:
    """An answer, and whether it is right."""

    sample: Sample
    right: bool


async def run_confidence(choices: ConfidenceChoices, engine: Engine) -> None:
    """Ask, grade, fit and judge, or go on with that, in the folder. Raises ConfigError."""
    console = Console(stderr=True)
    try:
        choices.folder.mkdir(parents=True, exist_ok=True)
        recipe = _recipe(choices)
        asked = _drawn(choices, recipe)
        with watching(console) as watch:
            found = await _graded(choices, recipe, asked, engine, watch)
        learned, held = _split(found, recipe)
        known = _calibration(choices, recipe, asked, learned)
        report = _report(known, held, recipe.seed)
        known = known.model_copy(update={"held_out": _summary(report)})
        path = choices.folder / "confidence.json"
        replace_file(choices.folder / "report.json", _json(report))
        replace_file(path, _json(known.model_dump(mode="json")))
    except Interrupted as error:
        console.print(str(error), highlight=False)
        raise SystemExit(130) from error
    except FarthingError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(reason(error)) from error
    for name, told in report.items():
        for line in lines(name, told):
            console.print(line, highlight=False, soft_wrap=True)
    Console().print(str(path), highlight=False, soft_wrap=True)


def _recipe(choices: ConfidenceChoices) -> ConfidenceRecipe:
    """That of the folder, where there is one; else the one asked for, which is written there."""
    path = choices.folder / "confidence_recipe.json"
    inputs = {"model": choices.model, "prompts": _digest(choices.prompts)}
    if path.exists():
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["inputs"] != inputs:
            raise ConfigError(
                f"{path}: this run is of model {said['inputs']['model']} and prompts"
                f" {said['inputs']['prompts'][:12]}, not of {choices.model} and these"
                f" ({inputs['prompts'][:12]}); begin another in another folder"
            )
        fields = said["recipe"]
        recipe = ConfidenceRecipe(**fields | {"checkpoints": tuple(fields["checkpoints"])})
        check_asked(recipe, choices.recipe, path)
        return recipe
    recipe = ConfidenceRecipe(**choices.recipe)
    replace_file(path, _json({"inputs": inputs, "recipe": asdict(recipe)}))
    return recipe


def _digest(prompts: Sequence[tuple[str, Path]]) -> str:
    """SHA-256 of tasks and files, in the order in which they were named."""
    whole = hashlib.sha256()
    for task, path in prompts:
        whole.update(task.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _drawn(choices: ConfidenceChoices, recipe: ConfidenceRecipe) -> list[Question]:
    found: list[Question] = []
    for task, path in choices.prompts:
        each = questions(task, path)
        random.Random(recipe.seed).shuffle(each)
        found += each[: recipe.number or None]
    return found


async def _graded(
    choices: ConfidenceChoices,
    recipe: ConfidenceRecipe,
    asked: Sequence[Question],
    engine: Engine,
    watch: Watch,
) -> list[Graded]:
    asking = Asking(engine, choices.model, choices.together, watch)
    path = choices.folder / "samples.jsonl"
    samples = await asking.answers(asked, path, self_check=recipe.self_check)
    found = []
    for number, (question, sample) in enumerate(zip(asked, samples, strict=True), 1):
        found.append(Graded(sample, await _is_right(question, sample.text)))
        watch.progress("grades", number, len(asked))
    return found


async def _is_right(question: Question, text: str) -> bool:
    """Of questions whose answers are some words, also where these stand in a sentence."""
    if await question.grade(text) >= _RIGHT:
        return True
    spans = answers_of(question.line) if question.task.fields == SQUAD else []
    return any(contains(text, answer) for answer in spans)


def _split(found: Sequence[Graded], recipe: ConfidenceRecipe) -> tuple[list[Graded], list[Graded]]:
    """To fit on, and held out: drawn by the seed from each task alike."""
    learned, held = [], []
    for task in dict.fromkeys(one.sample.task for one in found):
        each = [one for one in found if one.sample.task == task]
        random.Random(recipe.seed + 1).shuffle(each)
        number = round(len(each) * recipe.held_out)
        held += each[:number]
        learned += each[number:]
    return learned, held


def _rows(found: Sequence[Graded], at: int | None) -> tuple[list[Any], NDArray[np.bool_]]:
    """The signals of answers that have as many tokens, and whether these are right."""
    pairs = [(one.sample.signals(at), one.right) for one in found]
    there = [(signals, right) for signals, right in pairs if signals is not None]
    return [signals for signals, _ in there], np.array([right for _, right in there], bool)


def _calibration(
    choices: ConfidenceChoices,
    recipe: ConfidenceRecipe,
    asked: Sequence[Question],
    learned: Sequence[Graded],
) -> Calibration:
    """Checkpoints that too few answers reach, right and wrong ones, are left out; all of them where
    no caution makes early decisions keep their promise."""
    entropy = all(one.sample.entropies or not one.sample.logprobs for one in learned)
    features = (*_LOGPROBS, *_ENTROPIES) if entropy else _LOGPROBS
    rows, right = _rows(learned, None)
    whole = fit(rows, right, (*features, "log_tokens"), recipe.seed)
    at = _early(learned, recipe.checkpoints, features, recipe.seed)
    level = _caution(learned, tuple(at), features, recipe.seed)
    checked = None
    judged_too = [one for one in learned if one.sample.approval is not None]
    rows, right = _rows(judged_too, None)
    if min(right.sum(), (~right).sum()) >= LEAST:
        checked = fit(rows, right, (*features, "log_tokens", "self_check"), recipe.seed)
    return Calibration(
        model=choices.model,
        tasks=tuple(task for task, _ in choices.prompts),
        prompts_sha256=_digest(choices.prompts),
        seed=recipe.seed,
        max_tokens=max(question.task.max_tokens for question in asked),
        whole=whole,
        at=at if level is not None else {},
        caution=level or 0.0,
        checked=checked,
    )


def _early(
    learned: Sequence[Graded], checkpoints: Sequence[int], features: Sequence[Feature], seed: int
) -> dict[int, Score]:
    """By checkpoint, but for those that too few answers reach."""
    at = dict[int, Score]()
    for tokens in checkpoints:
        early, were = _rows(learned, tokens)
        if min(were.sum(), (~were).sum()) >= LEAST:
            at[tokens] = fit(early, were, features, seed)
    return at


def _caution(
    learned: Sequence[Graded], checkpoints: Sequence[int], features: Sequence[Feature], seed: int
) -> float | None:
    """None: at no level of caution are early decisions as they promise."""

    def say(some: Sequence[Graded], of: Sequence[Graded]) -> NDArray[np.float64]:
        at = _early(some, checkpoints, features, seed)
        return np.array(
            [[_said(at.get(tokens), one, tokens) for tokens in checkpoints] for one in of]
        )

    right = np.array([one.right for one in learned], bool)
    return caution(unseen(learned, right, say, seed), right) if checkpoints else 0.0


def _said(score: Score | None, of: Graded, tokens: int) -> float:
    signals = of.sample.signals(tokens)
    return math.nan if score is None or signals is None else score.probability(signals)


def _report(known: Calibration, held: Sequence[Graded], seed: int) -> dict[str, Any]:
    """By what is known of an answer: its first tokens, the whole, and its model's own verdict."""
    ways: dict[str, tuple[Score, int | None]] = {
        **{f"after {tokens} tokens": (known.at[tokens], tokens) for tokens in known.checkpoints},
        "whole": (known.whole, None),
    }
    if known.checked is not None:
        ways["whole, with self-check"] = (known.checked, None)
    found = {}
    for name, (score, at) in ways.items():
        checked = "self_check" in score.features
        some = [one for one in held if one.sample.approval is not None] if checked else held
        rows, right = _rows(some, at)
        if len(rows) > 1:
            raw = np.array([row.raw for row in rows])
            said = np.array([score.probability(row) for row in rows])
            found[name] = judged(raw, said, right, seed)
            found[name]["score"] = {"objective": score.objective, "steps": len(score.steps)}
    rows, right = _rows(held, None)
    if known.checkpoints and len(rows) > 1:
        early = promises(_in_turn(known, held), right)
        found["decided as early as it can be"] = {"answers": len(rows), "promises": early}
    return found


def _in_turn(known: Calibration, held: Sequence[Graded]) -> NDArray[np.float64]:
    """What is said of each answer at each checkpoint, nan behind its end, and of the whole."""
    found = []
    for one in held:
        at = [(tokens, one.sample.signals(tokens)) for tokens in known.checkpoints]
        early = [math.nan if of is None else known.probability(of, tokens) for tokens, of in at]
        if (whole := one.sample.signals()) is not None:
            found.append([*early, known.whole.probability(whole)])
    return np.array(found)


def _summary(report: Mapping[str, Any]) -> dict[str, float]:
    whole = report.get("whole")
    if whole is None:
        return {}
    before, after = ((when, whole[when]) for when in ("before", "after"))
    figures = {
        f"{name}_{when}": of[name]["mean"]
        for when, of in (before, after)
        for name in ("ece", "brier")
    }
    return (
        {"answers": whole["answers"], "right": whole["right"]["mean"]}
        | figures
        | {"auroc": after[1]["auroc"]["mean"]}
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
