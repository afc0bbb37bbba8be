"""Which policies can be evaluated on a log, and what they would have taken."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import ConfigError
from app.replay.decisions import Decided, of_documents
from app.replay.targets import logged, parse
from tests.app.replay.logs import document, way

SMALL = way("small", 0.9, chosen=True, usd=1.0, latency_s=1.0, quality=0.7)
CAREFUL = way("careful;threshold=0.5", 0.1, usd=2.0, latency_s=3.0, quality=0.9)
LARGE = way("large", 0.0, usd=4.0, latency_s=2.0, first_token_s=0.5, quality=1.0)


def one(*ways: dict[str, Any], **more: Any) -> Decided:
    return of_documents([document("a", ways or (SMALL, CAREFUL, LARGE), **more)]).decided[0]


def taken(text: str, decided: Decided) -> dict[str, float]:
    return dict(parse(text, [decided]).choose(decided))


def test_always_one_way_is_by_its_name_dial_and_all() -> None:
    assert taken("careful;threshold=0.5", one()) == {"careful;threshold=0.5": 1.0}
    assert not parse("large", [one()]).plans


def test_as_logged_is_as_likely_as_it_was() -> None:
    likely = logged().choose(one())
    assert likely == {"small": 0.9, "careful;threshold=0.5": 0.1, "large": 0.0}


def test_the_planner_chooses_anew_with_other_options() -> None:
    asked = one()
    assert taken("auto", asked) == {"large": 1.0}  # nothing bounds it
    assert taken("auto;quality=0.85", asked) == {"careful;threshold=0.5": 1.0}
    assert taken("planner;quality=0.5", asked) == {"small": 1.0}
    assert taken("auto;usd=2.5", asked) == {"careful;threshold=0.5": 1.0}
    assert taken("auto;latency=2.5;usd=3", asked) == {"small": 1.0}
    assert taken("auto;first_token=0.2", asked) == {"careful;threshold=0.5": 1.0}
    assert taken("auto;ways=small, careful", asked) == {"careful;threshold=0.5": 1.0}
    drawn = taken("auto;explore=0.15", asked)
    assert drawn == pytest.approx({"large": 0.9, "small": 0.05, "careful;threshold=0.5": 0.05})


def test_what_the_request_asked_holds_unless_an_option_says_otherwise() -> None:
    bounded = one(estimate={"budget_usd": 2.5})
    assert taken("auto", bounded) == {"careful;threshold=0.5": 1.0}
    assert taken("auto;usd=9", bounded) == {"large": 1.0}
    assert taken("auto", one(request={"deadline_s": 1.5})) == {"small": 1.0}
    assert taken("auto", one(request={"quality": 0.6})) == {"small": 1.0}
    assert taken("auto", one(plan={"options": {"quality": 0.85}})) != {"large": 1.0}


def test_what_was_kept_out_by_what_is_not_in_the_log_stays_out() -> None:
    down = LARGE | {"fits": False}
    assert taken("auto", one(SMALL, CAREFUL, down)) == {"careful;threshold=0.5": 1.0}
    # By its budget the log knows why, and so what another one would have changed.
    poor = one(SMALL, CAREFUL, down, estimate={"budget_usd": 3.0})
    assert taken("auto;usd=5", poor) == {"large": 1.0}


def sure(way: dict[str, Any], **more: Any) -> dict[str, Any]:
    return way | {"able": True} | more


def test_where_the_log_holds_how_sure_it_was_that_decides_as_it_did() -> None:
    doubtful = sure(LARGE, low_quality=0.6, high_usd=9.0, high_latency_s=8.0, worst_usd=20.0)
    asked = one(sure(SMALL), sure(CAREFUL), doubtful)
    assert asked.bounded and not one().bounded
    assert taken("auto", asked) == {"careful;threshold=0.5": 1.0}
    assert taken("auto;cautious=0", asked) == {"large": 1.0}
    bold = one(sure(SMALL), sure(CAREFUL), doubtful, plan={"options": {"cautious": False}})
    assert taken("auto", bold) == {"large": 1.0}
    costly = sure(LARGE, worst_usd=20.0)
    bounded = {"estimate": {"budget_usd": 10.0}}
    assert taken("auto", one(sure(SMALL), sure(CAREFUL), costly, **bounded)) == {"large": 1.0}
    strict = bounded | {"request": {"fallback": "strict"}}
    assert taken("auto", one(sure(SMALL), sure(CAREFUL), costly, **strict)) == {
        "careful;threshold=0.5": 1.0
    }


def test_where_the_log_holds_doubt_what_is_as_good_is_so_again() -> None:
    doubtful = sure(LARGE, low_quality=0.9, quality_doubt=0.15)
    careful = sure(CAREFUL, low_quality=0.8, quality_doubt=0.15)
    asked = one(sure(SMALL), careful, doubtful)
    assert taken("auto", asked) == {"large": 1.0}
    assert taken("auto;alike=1", asked) == {"careful;threshold=0.5": 1.0}
    thrifty = one(sure(SMALL), careful, doubtful, plan={"options": {"alike": 1}})
    assert taken("auto", thrifty) == {"careful;threshold=0.5": 1.0}
    assert taken("auto;alike=0", thrifty) == {"large": 1.0}


def test_how_sure_it_was_to_be_counts_as_it_did() -> None:
    """`large` takes no more than 10 s in four of five cases, `small` never does."""
    slow = sure(LARGE, latency_s=8.0, high_latency_s=14.0)
    within = {"request": {"deadline_s": 10.0}}
    small = sure(SMALL, propensity=1.0)
    asked = one(small, slow, **within)
    assert taken("auto", asked) == {"large": 1.0}
    assert taken("auto;sure=0.9", asked) == {"small": 1.0}
    surely = one(small, slow, plan={"options": {"sure": 0.9}}, **within)
    assert taken("auto", surely) == {"small": 1.0}
    assert taken("auto;sure=0.5", surely) == {"large": 1.0}
    # Where nothing is to be cut it has to be nearly sure, whatever was set.
    strict = one(small, slow, request={"deadline_s": 10.0, "fallback": "strict"})
    assert taken("auto", strict) == {"small": 1.0}


def test_what_others_waited_counts_as_it_did() -> None:
    slow = sure(LARGE, others_later_s=9.0)
    asked = one(sure(SMALL), sure(CAREFUL), slow)
    assert taken("auto", asked) == {"large": 1.0}
    assert taken("auto;delay_price=0.1", asked) == {"careful;threshold=0.5": 1.0}
    priced = one(sure(SMALL), sure(CAREFUL), slow, plan={"options": {"delay_price": 0.1}})
    assert taken("auto", priced) == {"careful;threshold=0.5": 1.0}
    assert taken("auto;delay_price=0", priced) == {"large": 1.0}


def test_who_could_not_serve_it_cannot_now_either() -> None:
    unable = sure(LARGE, able=False, fits=False)
    poor = one(sure(SMALL), sure(CAREFUL), unable, estimate={"budget_usd": 3.0})
    assert taken("auto;usd=5", poor) == {"careful;threshold=0.5": 1.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("careful", "no request of the log weighed it; there are: small, careful;threshold=0.5"),
        ("auto;exact=1", "no 'exact'"),
        ("auto;cautious=2", "cautious: must be a number from 0 to 1"),
        ("auto;quality=1.1", "quality: must be a number from 0 to 1"),
        ("auto;explore=0.5", "explore: must be a number from 0 to 0.2"),
        ("auto;usd=inf", "usd: must be a number of 0 or more"),
        ("auto;latency=soon", "latency: must be"),
        ("auto;ways=other", "weighed none of the ways other"),
    ],
)
def test_what_the_log_does_not_know_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        taken(text, one())
    assert said in caught.value.message
