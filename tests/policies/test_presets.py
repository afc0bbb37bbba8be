"""The presets of the default fleet: each is one, says what it is for, and has been measured."""

import pytest

import policies
from app.catalog import read
from app.settings import DEFAULT_CONFIG
from policies.plans.courses import courses

FLEET = read(DEFAULT_CONFIG)


@pytest.mark.parametrize("name", FLEET.presets)
def test_it_fits_the_fleet_and_is_described(name):
    preset = FLEET.presets[name]
    fitted = policies.load(preset.policy, preset.options).fit(FLEET, None)
    assert set(fitted.best_first("")) <= set(FLEET.models)
    assert 0 < len(preset.description) <= 100 and "\n" not in preset.description


ANEW = (
    "app/weights/smollm2-135m/profile.json is not of this farthing.toml: `auto` takes no way that"
    " has changed or is new. Run `farthing calibrate --limit 6 --levels 1,4,16 --dials 1` and copy"
    " its profile.json there, or take back what has changed of models, presets and prices"
)


def test_the_bundled_profile_is_of_this_fleet():
    assert FLEET.profile is not None
    found, stale = courses(FLEET.profile, FLEET)
    assert not stale, f"{ANEW}: {stale}"
    measured = {course.way.preset for course in found}
    assert measured == {*FLEET.models, *FLEET.presets}, ANEW
    assert FLEET.profile.best in {course.way.name for course in found}


@pytest.mark.parametrize("by", ["features", "entropy"])
@pytest.mark.parametrize("small", ["smollm2-tiny", "smollm2-135m-int8"])
def test_the_bundled_profile_tells_easy_from_hard_requests(small, by):
    route = policies.load(
        "route", {"small": small, "large": "smollm2-135m", "by": by, "share": 0.3}
    )
    assert route.fit(FLEET, None).best_first("") == ("smollm2-135m", small)
