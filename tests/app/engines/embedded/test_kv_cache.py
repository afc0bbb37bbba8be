"""Memory for keys and values: never more than its bound, reuse of what was read, and no leak."""

from __future__ import annotations

import random
import time

import pytest
import torch

from app.engines.embedded.folding import ModelConfig
from app.engines.embedded.kv_cache import KVMemory, SequenceCache

CONFIG = ModelConfig(
    architecture="llama",
    layers=2,
    hidden=8,
    intermediate=8,
    heads=2,
    kv_heads=1,
    head_dim=4,
    vocabulary=100,
    context=10**6,
    norm_epsilon=1e-5,
)
TOKEN = 2 * 2 * 4 * 4  # bytes for one token of it


def memory(tokens: int, kept: int | None = None) -> KVMemory:
    return KVMemory(CONFIG, tokens * TOKEN, None if kept is None else kept * TOKEN)


def write(cache: SequenceCache, ids: list[int]) -> None:
    """What a model would do: keys and values that tell which token they are of."""
    new = torch.tensor(ids[cache.length :], dtype=torch.float32)
    cache.buffer[:, :, cache.length : len(ids)] = new[:, None]
    cache.length = len(ids)


def holds(cache: SequenceCache, ids: list[int]) -> bool:
    return bool((cache.buffer[:, :, : len(ids)] == torch.tensor(ids)[:, None]).all())


def run(kv: KVMemory, ids: list[int], capacity: int, keep: bool = True) -> int:
    """A whole life of a sequence; how many of its tokens were there already."""
    cache = kv.acquire(ids, capacity)
    assert cache is not None
    found = cache.length
    assert holds(cache, ids[:found])
    write(cache, ids)
    kv.release(cache, ids, keep=keep)
    return found


def test_an_ended_sequence_is_continued_in_its_own_buffer() -> None:
    kv = memory(100)
    first = kv.acquire([1, 2, 3], 20)
    assert first is not None
    assert (first.length, first.capacity) == (0, 20)
    write(first, [1, 2, 3, 4, 5])
    buffer = first.buffer
    kv.release(first, [1, 2, 3, 4, 5])
    assert (kv.running_bytes, kv.kept_bytes) == (0, 5 * TOKEN)
    second = kv.acquire([1, 2, 3, 4, 5, 6, 7], 20)
    assert second is not None
    assert second.buffer is buffer
    assert second.length == 5
    assert (kv.running_bytes, kv.kept_bytes) == (20 * TOKEN, 0)
    assert (kv.queried_tokens, kv.reused_tokens) == (10, 5)


def test_what_parts_earlier_is_copied_and_stays() -> None:
    kv = memory(100)
    run(kv, [1, 2, 3, 4, 5], 20)
    cache = kv.acquire([1, 2, 3, 9], 20)
    assert cache is not None
    assert cache.length == 3
    write(cache, [1, 2, 3, 9])
    assert kv.kept_bytes == 5 * TOKEN
    assert run(kv, [1, 2, 3, 4, 5, 6], 20) == 5  # not overwritten by the copy's owner


def test_one_token_is_always_left_to_compute() -> None:
    kv = memory(100)
    run(kv, [1, 2, 3, 4], 20)
    assert run(kv, [1, 2, 3, 4], 20) == 3
    assert run(kv, [1, 2], 20) == 1
    assert run(kv, [1], 20) == 0


def test_a_longer_capacity_than_the_kept_buffer_has_is_copied_into() -> None:
    kv = memory(100)
    run(kv, [1, 2, 3, 4], 4)
    assert run(kv, [1, 2, 3, 4, 5], 40) == 4


def test_the_longest_shared_prefix_is_found() -> None:
    kv = memory(1000)
    run(kv, [1, 2, 9], 10)
    run(kv, [1, 2, 3, 4, 9], 10)
    run(kv, [1, 2, 3, 8], 10)
    assert run(kv, [1, 2, 3, 4, 5, 6], 10, keep=False) == 4
    assert run(kv, [1, 2, 3, 8, 5, 6], 10, keep=False) == 4


def test_least_recently_used_gives_way_first() -> None:
    kv = memory(30)
    for start in (10, 20, 30):
        run(kv, list(range(start, start + 8)), 8)
    run(kv, [10, 11, 5], 3, keep=False)  # a use of the oldest, if of its beginning only
    run(kv, list(range(40, 52)), 12)
    assert run(kv, [20, 21, 1], 3, keep=False) == 0
    assert run(kv, [10, 11, 12, 1], 4, keep=False) == 3


def test_what_runs_is_never_evicted_and_what_does_not_fit_waits() -> None:
    kv = memory(20)
    assert kv.can_ever_fit(20)
    assert not kv.can_ever_fit(21)
    first = kv.acquire([1], 12)
    assert first is not None
    assert kv.acquire([2], 9) is None
    assert kv.queried_tokens == 1
    second = kv.acquire([2], 8)
    assert second is not None
    kv.release(first, [1])
    assert kv.acquire([2], 12) is not None


def test_refusal_evicts_nothing() -> None:
    kv = memory(20)
    run(kv, [1, 2, 3, 4], 5)
    running = kv.acquire([7], 10)
    assert running is not None
    assert kv.acquire([8], 11) is None
    assert kv.kept_bytes == 4 * TOKEN


def test_a_prefix_that_leaves_no_room_for_a_copy_is_taken_over() -> None:
    """It would have to go in any case, so its shared part is saved."""
    kv = memory(20)
    run(kv, list(range(15)), 20)
    cache = kv.acquire([0, 1, 2, 3, 50, 51], 20)
    assert cache is not None
    assert cache.length == 4
    assert holds(cache, [0, 1, 2, 3])
    assert (kv.running_bytes, kv.kept_bytes) == (20 * TOKEN, 0)


def test_prefixes_of_one_another_are_kept_once() -> None:
    kv = memory(100)
    run(kv, [1, 2, 3], 10)
    cache = kv.acquire([1, 2, 3, 4, 5], 20)
    other = kv.acquire([1, 2], 10)
    assert cache is not None
    assert other is not None
    write(other, [1, 2])
    kv.release(other, [1, 2])
    write(cache, [1, 2, 3, 4, 5])
    kv.release(cache, [1, 2, 3, 4, 5])
    assert kv.kept_bytes == 5 * TOKEN
    run(kv, [1, 2], 10)
    assert kv.kept_bytes == 5 * TOKEN
    cache = kv.acquire([9], 10)
    assert cache is not None
    kv.release(cache, [9])  # nothing was computed, so there is nothing to keep
    assert kv.kept_bytes == 5 * TOKEN


def test_only_what_was_computed_is_kept() -> None:
    kv = memory(100)
    cache = kv.acquire([1, 2, 3], 20)
    assert cache is not None
    write(cache, [1, 2, 3, 4, 5])
    cache.truncate(4)
    kv.release(cache, [1, 2, 3, 4, 6, 7, 8])
    assert kv.kept_bytes == 4 * TOKEN
    assert run(kv, [1, 2, 3, 4, 6, 7], 20) == 4


@pytest.mark.parametrize("asked", [True, False])
def test_nothing_is_kept_unasked_or_beyond_its_bound(asked: bool) -> None:
    kv = memory(100, kept=2 if asked else 100)
    run(kv, [1, 2, 3], 20, keep=asked)
    assert kv.kept_bytes == 0
    assert run(kv, [1, 2, 3, 4], 20, keep=False) == 0


def test_misuse_is_refused() -> None:
    kv = memory(100)
    cache = kv.acquire([1, 2], 10)
    assert cache is not None
    write(cache, [1, 2, 3])
    for length in (-1, 4):
        with pytest.raises(ValueError, match="cannot truncate 3 cached tokens"):
            cache.truncate(length)
    with pytest.raises(ValueError, match="3 cached tokens, but only 2 ids"):
        kv.release(cache, [1, 2])
    kv.release(cache, [1, 2, 3])
    with pytest.raises(ValueError, match="not running here, or was released before"):
        kv.release(cache, [1, 2, 3])
    assert (cache.length, cache.capacity) == (0, 0)  # so that a model refuses it too
    for tokens in ([], [1] * 11):
        with pytest.raises(ValueError, match="do not fit a capacity of 10"):
            kv.acquire(tokens, 10)


def test_over_any_history_the_bound_holds_and_reuse_is_right() -> None:
    """Random lives of up to four sequences at a time over few ids, so that prefixes are shared."""
    chance = random.Random(0)
    kv = memory(60)
    running: list[tuple[SequenceCache, list[int]]] = []
    refused = 0
    for _ in range(3000):
        if running and chance.random() < 0.5:
            cache, ids = running.pop(chance.randrange(len(running)))
            assert holds(cache, ids)
            cache.truncate(chance.randint(0, cache.length))
            kv.release(cache, ids, keep=chance.random() < 0.9)
        elif len(running) < 4:
            ids = [chance.randrange(2) for _ in range(chance.randint(1, 15))]
            before = kv.running_bytes
            fresh = kv.acquire(ids, len(ids) + chance.randint(0, 10))
            if fresh is None:
                refused += 1
                assert kv.running_bytes == before
                continue
            assert fresh.length < len(ids)
            assert holds(fresh, ids[: fresh.length])
            write(fresh, ids)
            running.append((fresh, ids))
        assert kv.running_bytes + kv.kept_bytes <= kv.bound
        assert all(holds(cache, ids) for cache, ids in running)  # nobody writes over another
    assert refused > 0
    assert kv.reused_tokens > kv.queried_tokens / 10
    for cache, ids in running:
        kv.release(cache, ids)
    kv.clear()
    assert (kv.running_bytes, kv.kept_bytes) == (0, 0)


def test_a_search_is_quick() -> None:
    """Among 50 prefixes of 4000 ids it takes well under the time of one token (some ms)."""
    kv = memory(10**6)
    ids = [7] * 4000
    for last in range(50):
        run(kv, [*ids, last], 4001)
    assert kv.kept_bytes == 50 * 4001 * TOKEN
    took = []
    for _ in range(5):
        began = time.perf_counter()
        cache = kv.acquire([*ids, 99], 4001)
        took.append(time.perf_counter() - began)
        assert cache is not None
        assert cache.length == 4000
        kv.release(cache, ids, keep=False)
    assert min(took) < 0.02  # of which most is the copy
