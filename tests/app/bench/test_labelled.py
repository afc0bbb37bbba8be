"""What labelled samples tell of later ones."""

import random

import pytest

from app.bench.labelled import Item, estimate


def drawn(a, b, false_pass, samples, draw):
    p = draw.betavariate(a, b)
    right = sum(draw.random() < p for _ in range(samples))
    passing = sum(draw.random() < false_pass for _ in range(samples - right))
    return Item(samples, right, passing)


@pytest.mark.parametrize(("a", "b"), [(2.0, 3.0), (0.5, 0.5), (20.0, 10.0)])
@pytest.mark.parametrize("sizes", [(10, 10), (3, 20)])
def test_it_finds_what_the_samples_were_drawn_from(a, b, sizes):
    draw = random.Random(f"{a} {sizes}")
    found = estimate([drawn(a, b, 0.2, draw.randint(*sizes), draw) for _ in range(3000)])
    assert found.right == pytest.approx(a / (a + b), abs=0.03)
    assert found.spread == pytest.approx(1 / (a + b + 1), abs=0.04)
    assert found.false_pass == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    ("items", "right", "spread", "false_pass"),
    [
        ([Item(4, 2), Item(4, 2)], 0.5, 0.0, 0.0),  # less unlike than chance would have it
        ([Item(4, 4), Item(4, 0, 4)], 0.5, 0.99, 1.0),
        ([Item(1, 1), Item(1, 0)], 0.5, 0.0, 0.0),  # of one sample each, nobody can say
        ([Item(3, 3), Item(0, 0)], 1.0, 0.0, 0.0),
    ],
)
def test_the_edges(items, right, spread, false_pass):
    found = estimate(items)
    assert (found.right, found.false_pass) == (right, false_pass)
    assert found.spread == pytest.approx(spread)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        estimate([Item(0, 0)])
    with pytest.raises(ValueError, match="right and passing"):
        Item(2, 2, 1)
