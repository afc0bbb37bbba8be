"""What is read of a profile once: ways that are alike are asked once, and told the same."""

from __future__ import annotations

import pytest

from app.budget import Meter
from app.catalog import Preset
from policies.planner import Planner
from policies.plans.courses import worst_usd
from policies.plans.fitted import Groups, fitted
from tests.policies.autos import engine, fleet
from tests.policies.measured import known, way
from tests.policies.scripts import call, usd


def test_a_group_is_asked_once() -> None:
    groups, asked = Groups.of(["a", "b", "a", "a"]), list[str]()

    def told(key: str) -> str:
        asked.append(key)
        return key.upper()

    assert groups.each(told) == ["A", "B", "A", "A"] and asked == ["a", "b"]
    assert [*groups.firsts] == [0, 1]


@pytest.mark.parametrize("choices", [1, 3])
async def test_what_a_way_costs_at_worst_is_by_its_own_dial(choices: int) -> None:
    votes = Preset(name="votes", policy="best_of_n", n=3, model="small")
    before = fleet()
    catalog = type(before)(before.models, {**before.presets, "votes": votes})
    dials = [f"economy;raise_at={n}.0" for n in (3, 4, 5)] + [f"votes;n={n}" for n in (2, 4, 5)]
    names = ("large", "economy", "votes", *dials)
    catalog = known(catalog, *(way(catalog, name, 0.5) for name in names))
    planner = Planner().fit(catalog, None)
    meter = Meter(engine(), catalog.prices(), limit=usd(5000))
    asked = call("", max_tokens=33, choices=choices)
    found = await planner._situation(asked, meter, meter.prices, True)
    all_of_it = fitted(catalog, (), False, None)
    options = all_of_it.forecast.options(found)
    one = {
        course.way.name: worst_usd(course, asked, (5, 33), meter, meter.prices)
        for course in all_of_it.courses
    }
    assert {option.name: option.worst for option in options} == pytest.approx(one)
    # Thresholds have no say in it, numbers of votes do.
    assert len(all_of_it.priced.keys) == 6 and len(set(one.values())) == 6
