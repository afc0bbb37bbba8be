"""Whose part of an answer's time was whose."""

from types import SimpleNamespace

import pytest

from app import shown
from app.shown import Turns


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(shown, "time", clock)
    return clock


def read(clock, *turns):
    """`turns`: seconds that a chunk takes to make, and then its reader."""
    made = Turns()
    for ours, theirs in turns:
        with made:
            clock.now += ours
        clock.now += theirs
    return made


def test_before_the_first_chunk_all_is_ours(clock):
    clock.now += 3
    assert Turns().took(100.0) == (3.0, 3.0)


def test_what_readers_take_between_chunks_is_what_is_not_known(clock):
    clock.now += 1  # until it was asked for
    assert read(clock, (4.0, 8.0), (2.0, 16.0), (0.5, 0.0)).took(100.0) == (7.5, 31.5)


def test_behind_the_last_chunk_nothing_counts(clock):
    made = read(clock, (4.0, 8.0), (2.0, 64.0))
    assert made.took(100.0) == (6.0, 14.0)
    with pytest.raises(StopAsyncIteration), made:
        clock.now += 32  # it is settled
        assert made.took(100.0) == (6.0, 14.0)  # which is when it is told
        raise StopAsyncIteration
    assert made.took(100.0) == (6.0, 14.0)
    assert made.busy == 38.0
