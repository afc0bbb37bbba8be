"""A server is broken after faults in a row, and is asked again ever more rarely."""

from random import Random

from app.engines.breaker import Backoff, Breaker


def test_it_opens_at_the_limit_and_counts_in_a_row_only() -> None:
    breaker = Breaker(3)
    assert [breaker.fault(), breaker.fault()] == [False, False]
    breaker.reset()
    assert [breaker.fault() for _ in range(4)] == [False, False, True, True]


def test_delays_double_up_to_the_longest_with_jitter_below() -> None:
    backoff = Backoff(1.0, 30.0, Random(0))
    delays = [backoff.delay() for _ in range(8)]
    for delay, whole in zip(delays, (1, 2, 4, 8, 16, 30, 30, 30), strict=True):
        assert whole / 2 <= delay <= whole
    assert len({delay / whole for delay, whole in zip(delays[5:], (30,) * 3, strict=True)}) == 3
    backoff.reset()
    assert backoff.delay() <= 1.0
