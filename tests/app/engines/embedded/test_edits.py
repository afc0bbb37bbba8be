"""Edited prompts: what follows the edit is moved, and of a single layer it is what a pass makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.engines.embedded.edits import LEAST, Moved, moved
from app.engines.embedded.model import Decoder
from app.engines.embedded.scheduler import Scheduler
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.tokenizer import load_tokenizer
from app.engines.embedded.weights import load
from app.types import Call, Decoding, Usage
from tests.app.engines.embedded import reference
from tests.app.engines.embedded.rig import GREEDY, Rig
from tests.app.engines.embedded.tiny import write_model

HEAD, TAIL = list(range(30)), list(range(60, 95))
KEPT = np.array([*HEAD, 40, 41, *TAIL, 7, 8, 9])  # an answer behind it


@pytest.mark.parametrize("middle", [[40, 41], [50], [50, 51, 52, 53], [], [40, 41, 50]])
def test_what_follows_an_edit_is_found(middle: list[int]) -> None:
    tokens = [*HEAD, *middle, *TAIL]
    read = next((n for n in range(len(tokens)) if tokens[n] != KEPT[n]), len(tokens))
    found = moved(KEPT, tokens, read)
    if middle == [40, 41]:  # all of it is there already
        assert found is None
        return
    assert found is not None
    at = found.at
    assert at + found.count == len(tokens) - 1  # the last one is computed
    assert at >= read
    assert KEPT[found.start : found.start + found.count].tolist() == tokens[at:-1]
    assert found.count >= len(TAIL) - 1


def test_little_is_not_worth_moving() -> None:
    tokens = [*HEAD, 50, *TAIL[-LEAST:]]
    assert moved(KEPT, tokens, 30) is None
    assert moved(KEPT, [*HEAD, 50, *TAIL[-LEAST - 1 :]], 30) == Moved(50, 31, LEAST)
    assert moved(KEPT, [*HEAD, *range(96, 150)], 30) is None


def test_of_several_places_the_longest_run_counts() -> None:
    kept = np.array([*HEAD, *TAIL[-20:], 40, *TAIL, 41])
    found = moved(kept, [*HEAD, 50, *TAIL], 30)
    assert found == Moved(51, 31, 34)


def scheduler_of(folder: Path, layers: int) -> tuple[Rig, Scheduler]:
    model = reference.llama(num_hidden_layers=layers)
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(write_model(folder / "tokenizer"))
    rig = Rig(Decoder(*load(folder), "fp32"), tokenizer, [])
    return rig, rig.scheduler(prefill_chunk=16)


def answer(
    scheduler: Scheduler, rig: Rig, prompt: list[int], edited: str | None = None
) -> tuple[list[int], Usage]:
    call = Call("m", sampling=GREEDY, decoding=Decoding(edited=edited))
    sequence = RunningSequence(call, prompt, 8, rig.tokenizer)
    scheduler.submit(sequence)
    while scheduler.step():
        pass
    assert sequence.error is None
    used = sum((chunk.usage for chunk in sequence.outbox), Usage())
    return sequence.tokens[len(prompt) :], used


EDITS = {"insert": [50, 51, 52, 53, 54], "delete": [40], "replace": [50, 51]}


@pytest.mark.parametrize("edit", EDITS)
def test_of_one_layer_moved_keys_are_those_of_a_pass(edit: str, tmp_path: Path) -> None:
    """There a token's keys and values depend on itself and its place, and on nothing else."""
    rig, scheduler = scheduler_of(tmp_path, layers=1)
    prompt = [*HEAD, *EDITS[edit], *TAIL]
    plain, _ = answer(rig.scheduler(), rig, prompt)
    answer(scheduler, rig, [*HEAD, 40, 41, *TAIL])
    computed = sum(sum(counts) for counts in rig.passes)
    found, used = answer(scheduler, rig, prompt, edited="")
    assert found == plain
    assert used.cached >= len(HEAD) + len(TAIL) - 1
    assert sum(sum(counts) for counts in rig.passes) - computed <= len(prompt) - used.cached + 8


def test_it_is_for_those_who_ask_and_stays_with_them(tmp_path: Path) -> None:
    rig, scheduler = scheduler_of(tmp_path, layers=3)
    first, second = [*HEAD, 40, 41, *TAIL], [*HEAD, *EDITS["insert"], *TAIL]
    alone = rig.scheduler(prefill_chunk=16)
    plain = [answer(alone, rig, prompt) for prompt in (first, second, second)]
    assert answer(scheduler, rig, first) == plain[0]
    _, used = answer(scheduler, rig, second, edited="me")
    assert used.cached > 60
    assert answer(scheduler, rig, second) == plain[1]  # what was moved is not seen
    _, again = answer(scheduler, rig, second, edited="me")
    assert again.cached == len(second) - 1
    assert answer(scheduler, rig, second) == plain[2]


def test_where_nothing_was_read_before_all_is_read(tmp_path: Path) -> None:
    rig, scheduler = scheduler_of(tmp_path, layers=3)
    prompt = [*HEAD, 40, 41, *TAIL]
    assert answer(scheduler, rig, prompt, edited="x") == answer(rig.scheduler(), rig, prompt)
    other = [*range(70, 97), *HEAD]
    found = answer(scheduler, rig, other, edited="x")
    assert found == answer(rig.scheduler(), rig, other)


def test_decoding_is_no_edit_unless_it_is_said() -> None:
    assert Decoding().edited is None
    assert replace(Decoding(), edited="").edited == ""
