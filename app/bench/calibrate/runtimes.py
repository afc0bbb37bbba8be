"""The idealized runtime of every model: its prompt's time by length, and that of each token."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from app.bench.calibrate.asking import patiently
from app.bench.calibrate.keeping import append
from app.bench.calibrate.observed import Point
from app.bench.calibrate.spending import Spending, Spent
from app.bench.grading import Line, Messages, Question, Task
from app.bench.ways import Sampled, Way
from app.profile import Runtime
from app.prompt_files import read_objects

_WORDS = (
    "harbour lantern winter copper garden letter morning river market window engine basket "
    "paper silver orchard ladder station pocket summer bridge curtain village meadow candle"
)
_PER_WORD = 1.25  # tokens, about: how many they are the answer says


@dataclass(frozen=True)
class Grid:
    """What is asked of each model, alone."""

    lengths: tuple[int, ...] = (16, 64, 256, 1024, 2048)  # tokens of a prompt, about
    rounds: int = 3
    tokens: int = 16  # of an answer


QUICK = Grid(lengths=(16, 64, 256), rounds=1, tokens=8)


@dataclass(frozen=True)
class Sample:
    """One request."""

    model: str
    digest: str
    length: int  # of the grid
    round: int
    prompt: int  # tokens
    completion: int
    first_s: float
    seconds: float
    spent: int  # 1e-12 USD


def read(path: Path) -> list[Sample]:
    """What earlier runs have measured. Raises ValueError, naming file and line."""
    if not path.is_file() or not path.stat().st_size:
        return []
    found = []
    for number, line in read_objects(path):
        try:
            found.append(Sample(**line))
        except TypeError as error:
            raise ValueError(f"{path}:{number}: is no sample of a runtime: {error}") from error
    return found


async def measure(
    http: httpx.AsyncClient,
    points: Sequence[Point],
    grid: Grid,
    spending: Spending,
    file: Path,
    advance: Callable[[int], object],
) -> dict[str, Runtime]:
    """Of these models, each request alone, the models in turn; what an earlier run has measured
    counts. A length that a model refuses is left out, as is what the budget does not pay for.

    Raises httpx.ConnectError; OSError and ValueError of the file.
    """
    known = {(one.model, one.digest, one.length, one.round): one for one in read(file)}
    found = list[Sample]()
    refused = set[tuple[str, int]]()
    for number in range(grid.rounds):
        for length in grid.lengths:
            for point in points:
                sample = known.get((point.preset, point.digest, length, number))
                if sample is None and (point.preset, length) not in refused:
                    try:
                        sample = await _ask(http, point, grid, length, number, spending)
                    except Spent:
                        return fitted(found)
                    if sample is None:
                        refused.add((point.preset, length))
                    else:
                        append(file, asdict(sample))
                found += [] if sample is None else [sample]
                advance(1)
    return fitted(found)


def fitted(found: Sequence[Sample]) -> dict[str, Runtime]:
    """The least of each length, as nothing but the machine's other work makes it more; of tokens
    after the first the median of the answers' means."""
    runtimes = {}
    for model in dict.fromkeys(one.model for one in found):
        lengths: dict[int, list[Sample]] = defaultdict(list)
        for one in found:
            if one.model == model:
                lengths[one.length].append(one)
        first = {
            round(statistics.mean(one.prompt for one in of)): min(one.first_s for one in of)
            for _, of in sorted(lengths.items())
        }
        paces = [
            (one.seconds - one.first_s) / (one.completion - 1)
            for of in lengths.values()
            for one in of
            if one.completion > 1
        ]
        if paces:
            runtimes[model] = Runtime(first=first, each=max(statistics.median(paces), 0.0))
    return runtimes


async def _ask(
    http: httpx.AsyncClient,
    point: Point,
    grid: Grid,
    length: int,
    number: int,
    spending: Spending,
) -> Sample | None:
    """None: it was refused. Raises Spent."""
    words = random.Random(length).choices(_WORDS.split(), k=max(int(length / _PER_WORD) - 8, 1))
    text = " ".join([*words, "Count from 1 to 100."])
    task = Task("runtime", (), _said, _ungraded, grid.tokens, binary=False)
    question = Question(task, length, {"text": text})
    way, held = Way(f"{point.preset} alone", point.preset), spending.hold(point.preset)
    answer = await patiently(http, question, way, number, Sampled(), spending.headers(held))
    refused = answer.failed[:1] == "4"
    spent = spending.settle(point.preset, held, 0.0 if refused else answer.cost)
    scarce = answer.scarce and spending.most is not None
    if scarce or answer.failed or answer.first_s is None:
        spending.lose(spent)
    if scarce:
        raise Spent
    if answer.failed or answer.first_s is None or answer.seconds is None:
        return None
    times = answer.first_s, answer.seconds
    of = point.preset, point.digest, length, number
    return Sample(*of, answer.prompt, answer.completion, *times, spent)


def _said(line: Line) -> Messages:
    return ({"role": "user", "content": line["text"]},)


async def _ungraded(text: str, line: Line) -> float:
    return 0.0
