"""Choices of one request read their prompt once, and write what they would have written alone."""

from __future__ import annotations

import random

import pytest

from app.engines.embedded.sequence import RunningSequence
from app.types import Sampling, Usage
from tests.app.engines.embedded.rig import Rig
from tests.app.engines.embedded.test_scheduler import finish, written

SAMPLED = [Sampling(ignore_eos=True, seed=seed) for seed in range(4)]


def used(sequence: RunningSequence) -> Usage:
    return sum((chunk.usage for chunk in sequence.outbox), Usage())


@pytest.mark.parametrize("limit", [1, 6])
def test_one_reads_and_the_others_copy(fp32: Rig, limit: int) -> None:
    scheduler = fp32.scheduler(prefill_chunk=16)
    prompt = [random.randrange(256) for _ in range(40)]
    several = [fp32.sequence(prompt, limit, one, id="a") for one in SAMPLED]
    for sequence in several:
        scheduler.submit(sequence)
    finish(scheduler, *several)
    assert [used(one).prompt for one in several] == [40] * 4
    assert [used(one).cached for one in several] == [0, 39, 39, 39]
    assert sum(map(sum, fp32.passes)) == 40 + 3 + 4 * (limit - 1)
    assert scheduler.memory.running_bytes == 0


def test_in_int8_they_write_what_each_writes_alone(int8: Rig) -> None:
    prompt = [random.randrange(256) for _ in range(45)]
    together = int8.scheduler(prefill_chunk=16)
    several = [int8.sequence(prompt, 12, one, id="a") for one in SAMPLED]
    for sequence in several:
        together.submit(sequence)
    finish(together, *several)
    for sequence, sampling in zip(several, SAMPLED, strict=True):
        scheduler = int8.scheduler(prefill_chunk=16)
        alone = int8.sequence(prompt, 12, sampling, id="b")
        scheduler.submit(alone)
        finish(scheduler, alone)
        assert written(sequence) == written(alone)


@pytest.mark.parametrize("ids", [("a", "b"), ("", "")])
def test_other_requests_read_for_themselves(fp32: Rig, ids: tuple[str, str]) -> None:
    """What is computed together shall depend on nobody else's requests."""
    scheduler = fp32.scheduler(prefill_chunk=16)
    prompt = [random.randrange(256) for _ in range(40)]
    several = [fp32.sequence(prompt, id=id) for id in ids]
    for sequence in several:
        scheduler.submit(sequence)
    finish(scheduler, *several)
    assert [used(one).cached for one in several] == [0, 0]


def test_who_waited_for_one_that_is_gone_goes_on_from_what_it_left(fp32: Rig) -> None:
    scheduler = fp32.scheduler(prefill_chunk=16)
    prompt = [random.randrange(256) for _ in range(40)]
    one, two = (fp32.sequence(prompt, id="a") for _ in range(2))
    scheduler.submit(one)
    scheduler.submit(two)
    for _ in range(2):
        scheduler.step()
    scheduler.cancel(one)
    finish(scheduler, two)
    assert used(two) == Usage(prompt=40, cached=32, completion=5)
    assert fp32.passes[:3] == [[16], [16], [8]]


def test_prompts_that_part_are_read_apart(fp32: Rig) -> None:
    scheduler = fp32.scheduler(prefill_chunk=16)
    shared = [random.randrange(256) for _ in range(30)]
    several = [fp32.sequence([*shared, end], id="a") for end in (1, 2)]
    for sequence in several:
        scheduler.submit(sequence)
    finish(scheduler, *several)
    assert [used(one).cached for one in several] == [0, 0]
