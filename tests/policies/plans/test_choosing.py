"""Which way is taken, of several of which something is expected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.plans.choosing import (
    MOST_EXPLORED,
    NEARLY,
    Choice,
    Option,
    Wish,
    choose,
    fits,
    missed,
)

# The dear one is the best, the sure one nearly as good and known better.
DEAR = Option("dear", 1.0, 9e-3, 0.2, 3.0, 0.7, 18e-3, 0.4, 6.0, exact=True)
SURE = Option("sure", 0.9, 3e-3, 0.1, 1.0, 0.85, 4e-3, 0.2, 1.5, exact=False)
CHEAP = Option("cheap", 0.5, 1e-3, 0.05, 0.5, 0.4, 2e-3, 0.1, 0.9, exact=True)
WAYS = (DEAR, SURE, CHEAP)
BOLD = {"cautious": False}


def taken(wish, ways=WAYS):
    (one,) = choose(ways, wish)
    assert one.propensity == 1.0
    return one.option.name, one.missed


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        (Wish(), "sure"),  # what it is at least is more
        (Wish(**BOLD), "dear"),
        (Wish(exact=True), "dear"),
        (Wish(usd=3.5e-3), "sure"),  # it may cost more, but hardly does
        (Wish(usd=3.5e-3, sure=0.9), "cheap"),
        (Wish(usd=3.1e-3), "sure"),  # 0.59 of 0.85, and not 0.4
        (Wish(usd=2.9e-3), "cheap"),
        (Wish(usd=3.5e-3, **BOLD), "sure"),
        (Wish(usd=4e-3), "sure"),
        (Wish(latency=1.0), "sure"),
        (Wish(latency=1.0, sure=0.6), "cheap"),
        (Wish(latency=1.0, **BOLD), "sure"),
        (Wish(first_token=0.1), "sure"),
        (Wish(first_token=0.1, sure=0.6), "cheap"),
        (Wish(first_token=0.1, **BOLD), "sure"),
        (Wish(quality=0.4), "cheap"),
        (Wish(quality=0.5), "sure"),
        (Wish(quality=0.5, **BOLD), "cheap"),
        (Wish(quality=0.4, latency=0.6), "cheap"),  # in 0.73 of the cases, none in more
        (Wish(quality=0.4, latency=0.8), "cheap"),
        (Wish(quality=0.95, **BOLD), "dear"),
    ],
)
def test_the_best_that_fits_is_taken_or_the_cheapest_that_is_good_enough(wish, name):
    assert taken(wish) == (name, None)


@pytest.mark.parametrize(
    ("wish", "name", "missed"),
    [
        (Wish(usd=1e-4), "cheap", "usd"),
        (Wish(usd=1e-4, exact=True, latency=0.1, quality=1.0), "cheap", "usd"),
        (Wish(usd=18e-3, latency=0.1), "cheap", "latency"),
        (Wish(first_token=0.01), "cheap", "first_token"),
        (Wish(quality=0.9), "sure", "quality"),
        (Wish(quality=0.9, usd=2e-3), "cheap", "quality"),  # money goes before quality
        (Wish(quality=0.9, latency=0.9), "cheap", "quality"),  # and so does time
    ],
)
def test_where_nothing_fits_the_nearest_is_taken_and_what_it_misses_is_said(wish, name, missed):
    assert taken(wish) == (name, missed)


def test_what_is_at_least_as_good_may_cost_less_or_be_quicker():
    twin = DEAR._replace(name="twin", cost=8e-3, quality=1.0 + 1e-12)
    assert taken(Wish(**BOLD), (DEAR, twin)) == ("twin", None)
    quick = DEAR._replace(name="quick", latency=1.0)
    assert taken(Wish(**BOLD), (DEAR, quick)) == ("quick", None)
    # What is known as badly, but expected to be better, goes first.
    doubtful = SURE._replace(name="doubtful", quality=0.95, cost=5e-3)
    assert taken(Wish(), (SURE, doubtful)) == ("doubtful", None)


def test_money_may_be_another_in_each_way():
    assert taken(Wish(), (DEAR._replace(usd=1e-3), SURE._replace(usd=4e-3))) == ("sure", None)
    assert taken(Wish(usd=9e-4), (SURE._replace(usd=4e-3), CHEAP)) == ("cheap", "usd")


def test_where_nothing_may_be_cut_the_worst_case_must_fit():
    ways = (DEAR, SURE._replace(worst=0.1), CHEAP._replace(worst=0.001))
    assert taken(Wish(usd=0.05), ways) == ("sure", None)
    assert taken(Wish(usd=0.05, strict=True), ways) == ("dear", None)
    assert taken(Wish(usd=0.01, strict=True, sure=NEARLY), ways) == ("cheap", None)


def test_what_cannot_serve_is_taken_only_where_nothing_can():
    broken = SURE._replace(unable="large does not answer")
    assert taken(Wish(), (broken, CHEAP)) == ("cheap", None)
    assert taken(Wish(usd=1e-4), (broken, CHEAP)) == ("cheap", "usd")
    assert taken(Wish(), (broken,)) == ("sure", None)


def test_what_must_be_exact_is_never_anything_else():
    with pytest.raises(ValueError, match="no way"):
        choose((SURE,), Wish(exact=True))
    with pytest.raises(ValueError, match="no way"):
        choose((), Wish())
    assert not fits(SURE, Wish(exact=True)) and missed(SURE, Wish(exact=True)) == "exact"


@pytest.mark.parametrize(
    ("latency", "chance", "name"),
    [
        (6.0, 0.98, "dear"),  # as measured: 98 of 100 take no longer
        (3.0, 0.5, "sure"),  # in half of the cases, and half of the quality is less than 0.9
        (3.9, 0.782, "sure"),
        (4.4, 0.872, "dear"),
    ],
)
def test_quality_counts_times_the_chance_that_it_comes_in_time(latency, chance, name):
    better = DEAR._replace(quality_low=1.0)
    worse = SURE._replace(quality_low=0.85)
    wish = Wish(latency=latency)
    assert wish.chance(better) == pytest.approx(chance, abs=0.001)
    assert wish.chance(worse) > 0.99
    assert taken(wish, (better, worse)) == (name, None)


def test_it_is_as_likely_to_keep_to_all_as_to_the_least_likely():
    wish = Wish(usd=9e-3, latency=100.0, first_token=0.21)
    assert wish.chance_of(DEAR, "usd") == pytest.approx(0.5)
    assert wish.chance_of(DEAR, "latency") > 0.999
    assert 0.5 < wish.chance_of(DEAR, "first_token") < 0.6
    assert wish.chance(DEAR) == pytest.approx(0.5)
    assert Wish().chance(DEAR) == 1.0


@pytest.mark.parametrize(
    ("latency", "high", "most", "chance"),
    [
        *((1.0, None, 1.0, 1.0), (1.0, None, 0.9, 0.0)),  # nobody knows a worse value
        *((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 0.9, 0.0)),
        *((0.0, 2.0, 2.0, 1.0), (0.0, 2.0, 1.0, 0.0)),  # what usually is nothing
        *((1.0, float("inf"), 1e9, 0.0), (float("inf"), float("inf"), 5.0, 0.0)),
        *((1.0, 2.0, 0.0, 0.0), (1.0, 2.0, -3.0, 0.0)),  # the deadline has passed
    ],
)
def test_of_what_does_not_spread_it_is_known(latency, high, most, chance):
    option = CHEAP._replace(latency=latency, latency_high=high)
    assert Wish(latency=most).chance_of(option, "latency") == chance


def test_the_cheapest_that_is_good_enough_is_one_that_nearly_always_comes_in_time():
    dear = DEAR._replace(latency=0.4, latency_high=0.6)
    assert taken(Wish(quality=0.4, latency=0.7), (dear, SURE, CHEAP)) == ("dear", None)
    assert taken(Wish(quality=0.4, latency=0.9), (dear, SURE, CHEAP)) == ("cheap", None)
    slow = CHEAP._replace(latency=0.6, latency_high=0.95)  # none nearly always: the likeliest
    assert taken(Wish(quality=0.4, latency=0.7), (SURE, CHEAP, slow)) == ("cheap", None)


def test_what_may_well_not_fit_is_not_explored():
    wish = Wish(usd=3.5e-3)
    assert fits(SURE, wish) and taken(wish) == ("sure", None)
    found = choose(WAYS, Wish(usd=3.5e-3, sure=0.9), explore=0.1)
    assert found == [Choice(CHEAP, 1.0)]
    found = choose(WAYS, wish, explore=0.1)
    assert [choice.option.name for choice in found] == ["sure", "cheap"]  # which does fit
    slow = CHEAP._replace(cost_high=4e-3)
    assert choose((SURE, slow), wish, explore=0.1) == [Choice(SURE, 1.0)]


def test_what_fits_is_explored_evenly_and_nothing_else_is():
    found = choose(WAYS, Wish(usd=4e-3), explore=0.1)
    assert found == [Choice(SURE, 0.95), Choice(CHEAP, 0.05)]
    assert choose(WAYS, Wish(usd=1e-4), explore=0.1) == [Choice(CHEAP, 1.0, "usd")]
    # No more than is safe, whoever asks.
    assert choose(WAYS, Wish(), explore=1.0)[0].propensity == 1 - MOST_EXPLORED * 2 / 3


amounts = st.floats(0, 1)
some = st.none() | amounts
options = st.builds(
    Option,
    *(st.sampled_from("abc"), amounts, amounts, amounts, amounts),
    *(some, some, some, some, some, some),
    exact=st.booleans(),
    unable=st.sampled_from(["", "", "ill"]),
    delay=amounts,
)
wishes = st.builds(
    Wish,
    *(some, some, some, some),
    *(st.just(False), st.booleans(), st.booleans()),
    delay_price=st.just(0.0) | amounts,
)


@given(ways=st.lists(options, min_size=1, max_size=6), wish=wishes, explore=amounts)
def test_whatever_is_asked_propensities_sum_to_one_and_what_is_promised_holds(ways, wish, explore):
    found = choose(ways, wish, explore)
    assert sum(choice.propensity for choice in found) == pytest.approx(1)
    first = found[0]
    assert all(first.propensity >= choice.propensity for choice in found)
    able = [way for way in ways if not way.unable]
    fitting = [way for way in able if fits(way, wish)]
    if fitting:
        assert all(choice.missed is None and choice.option in fitting for choice in found)
        price = wish.delay_price
        worths = [wish.quality_of(way) * wish.chance(way) - price * way.delay for way in fitting]
        # Of those that nearly always keep to money and time, or as nearly as any does.
        nearly = min(NEARLY, max(map(wish.chance, fitting))) - 1e-8
        cheapest = min(way.cost for way in fitting if wish.chance(way) >= nearly)
        if wish.quality is None:
            worth = wish.quality_of(first.option) * wish.chance(first.option)
            worth -= price * first.option.delay
            assert worth >= max(worths) - 1e-8
        else:
            assert first.option.cost == cheapest
    elif able:
        assert first.missed == missed(first.option, wish) is not None


@pytest.mark.parametrize(
    ("price", "name"), [(0.0, "dear"), (0.02, "dear"), (0.04, "sure"), (0.3, "cheap")]
)
def test_the_best_is_taken_for_which_others_do_not_wait_too_long(price, name):
    """Five seconds for the dear one, two for the sure one: 0.1 and 0.4 of quality for 3 and 2."""
    ways = DEAR._replace(delay=5.0), SURE._replace(delay=2.0), CHEAP
    wish = Wish(cautious=False, delay_price=price)
    assert taken(wish, ways) == (name, None)
    low = [option._replace(quality_low=option.quality) for option in ways]
    assert taken(Wish(delay_price=price), low) == (name, None)
    # It is no bound, and where a quality is wished for that is one.
    assert all(fits(option, Wish(delay_price=price)) for option in ways)
    assert taken(Wish(cautious=False, delay_price=price, quality=0.95), ways) == ("dear", None)


@pytest.mark.parametrize(
    ("alike", "name"), [(0.0, "dear"), (0.9, "dear"), (1.1, "sure"), (4.0, "cheap")]
)
def test_what_is_not_known_to_be_worse_is_as_good_and_the_cheapest_of_it_is_taken(alike, name):
    ways = [
        option._replace(quality_low=option.quality - 0.2, doubt=0.1) for option in (CHEAP, SURE)
    ]
    best = DEAR._replace(quality_low=0.8, doubt=0.1)
    cheap = ways[0]._replace(quality=0.65, quality_low=0.45)
    for cautious in (True, False):
        wish = Wish(alike=alike, cautious=cautious)
        assert taken(wish, (best, ways[1], cheap)) == (name, None)
    # Where a quality is wished for, it is a bound as before.
    assert taken(Wish(alike=alike, quality=0.5), (best, ways[1], cheap)) == ("sure", None)


@given(
    expected=st.floats(0, allow_infinity=True),
    spread=st.none() | st.floats(0, 1e6),
    most=st.floats(allow_nan=False),
)
def test_a_chance_is_one_whatever_the_numbers(expected, spread, most):
    high = None if spread is None else expected + expected * spread
    option = CHEAP._replace(latency=expected, latency_high=high)
    assert 0 <= Wish(latency=most).chance_of(option, "latency") <= 1


def test_what_98_of_100_do_not_pass_is_nearly_sure():
    for seconds in (0.1, 0.3, 0.7, 1.1, 7.7):
        option = CHEAP._replace(latency=seconds, latency_high=seconds * 1.7)
        assert fits(option, Wish(latency=seconds * 1.7, sure=NEARLY))
        assert fits(option, Wish(latency=seconds))
