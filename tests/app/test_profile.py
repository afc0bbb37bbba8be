"""The file by which `auto` goes: its laws, and where it is named."""

import json

import pytest

from app import catalog
from app.errors import ConfigError
from app.profile import Law
from app.settings import DEFAULT_CONFIG
from tests.app.test_prompt_features import classifier

INTERVAL = {"mean": 0.5, "low": 0.4, "high": 0.6, "questions": 20}
LENGTH = {"mean": 40.0, "high": 90.0}
BUNDLED = "bundled:smollm2-135m/profile.json"
LAW = {"base": 1.0, "prompt": 0.01, "completion": 0.1, "load": 0.5, "high": 1.3, "error": 0.1}


def profile(**changed):
    """A small one, as JSON."""
    way = {
        "name": "swift", "preset": "swift", "policy": "speculative", "options": {},
        "models": ["smollm2-135m-int8"], "fidelity": "exact", "digest": "0" * 16,
        "quality": {"math": INTERVAL}, "length": {"math": LENGTH},
        "cost": {**LAW, "load": 0.0}, "first_token": LAW, "latency": LAW,
    }  # fmt: skip
    whole = {
        "measured": "2026-11-27T00:00:00Z, farthing calibrate",
        "best": "swift",
        "ways": [way],
        "kinds": classifier().model_dump(),
        "runtimes": {"smollm2-135m-int8": {"first": {"1": 0.02, "64": 0.1}, "each": 0.02}},
    }
    return json.dumps({**whole, **changed})


def test_a_law_grows_with_tokens_and_with_calls():
    law = Law(**LAW)
    assert law.at(100, 20) == pytest.approx(1.0 + 1.0 + 2.0)
    assert law.at(100, 20, calls=2) == pytest.approx(2 * 4.0)


@pytest.fixture
def fleet(tmp_path):
    def written(text):
        (tmp_path / "profile.json").write_text(text)
        ours, found = DEFAULT_CONFIG.read_text("utf-8"), tmp_path / "profile.json"
        (tmp_path / "farthing.toml").write_text(ours.replace(BUNDLED, str(found)))
        return catalog.read(tmp_path / "farthing.toml")

    return written


def test_a_fleet_names_its_profile(fleet):
    found = fleet(profile()).profile
    assert found is not None and found.ways[0].quality["math"].low == 0.4
    assert found.runtimes["smollm2-135m-int8"].first[64] == 0.1


@pytest.mark.parametrize(
    "text", ["", "{}", profile(version=2), profile(best=3), profile(ways=[{}]), profile(odd=1)]
)
def test_another_file_is_refused_in_words(fleet, text):
    with pytest.raises(ConfigError, match=r"\[planner\]: profile: .*`farthing calibrate`"):
        fleet(text)


def test_a_digest_is_of_all_that_decides_what_a_way_is():
    fleet = catalog.read(DEFAULT_CONFIG)
    same = fleet.digest("cascade", {"a": 1, "b": 2}, ["smollm2-tiny", "smollm2-135m"])
    assert same == fleet.digest("cascade", {"b": 2, "a": 1}, ["smollm2-135m", "smollm2-tiny"])
    others = [
        fleet.digest("direct", {"a": 1, "b": 2}, ["smollm2-tiny", "smollm2-135m"]),
        fleet.digest("cascade", {"a": 1, "b": 3}, ["smollm2-tiny", "smollm2-135m"]),
        fleet.digest("cascade", {"a": 1, "b": 2}, ["smollm2-tiny"]),
    ]
    assert len({same, *others}) == 4
