"""The presets of the default fleet: each is one, and says in a line what it is for."""

import pytest

import policies
from app.catalog import read
from app.settings import DEFAULT_CONFIG

FLEET = read(DEFAULT_CONFIG)


@pytest.mark.parametrize("name", FLEET.presets)
def test_it_fits_the_fleet_and_is_described(name):
    preset = FLEET.presets[name]
    fitted = policies.load(preset.policy, preset.options).fit(FLEET, None)
    assert set(fitted.best_first("")) <= set(FLEET.models)
    assert 0 < len(preset.description) <= 100 and "\n" not in preset.description
