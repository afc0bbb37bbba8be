"""What a calibration measures follows from the fleet alone."""

from __future__ import annotations

import pytest

from app.bench.calibrate.points import best, chosen, points, probes, way_of
from app.catalog import Catalog, ModelCard, Preset, read
from app.errors import BadRequest, ConfigError
from app.settings import DEFAULT_CONFIG
from tests.policies.scripts import card, fleet, price

DEFAULT = read(DEFAULT_CONFIG)


def with_presets(**presets: dict[str, object]) -> Catalog:
    made = {name: Preset(name=name, **options) for name, options in presets.items()}
    return Catalog(fleet().models, made)


def test_every_model_that_writes_and_every_preset() -> None:
    found = points(DEFAULT, 0)
    assert [point.name for point in found] == [*DEFAULT.models, *DEFAULT.presets]
    tiny, careful = found[2], next(point for point in found if point.name == "careful")
    assert (tiny.policy, tiny.models, tiny.fidelity) == ("direct", ("smollm2-tiny",), "exact")
    assert careful.models == ("smollm2-135m-int8", "smollm2-135m")
    assert (careful.policy, careful.fidelity, careful.options) == ("cascade", "approximate", {})


def test_a_model_that_only_embeds_is_none() -> None:
    models = {
        **fleet().models,
        "vectors": card("vectors", price(1, 1)).model_copy(update={"embeds": "only"}),
    }
    assert [point.name for point in points(Catalog(models, {}))] == ["small", "large"]


def test_what_chooses_among_ways_is_none() -> None:
    """It needs the profile that is being made."""
    routed = with_presets(routed={"policy": "route", "large": "large", "share": 0.3})
    assert [point.name for point in points(routed)] == ["small", "large"]


def test_dials_are_turned_but_not_to_where_they_are() -> None:
    names = [point.name for point in points(DEFAULT)]
    assert "careful;threshold=0.6" in names and "careful;threshold=0.4" not in names
    assert {"vote;n=2", "brief;ratio=0.5", "swift;longest=4"} <= set(names)
    assert "polished;rounds=2" in names and "polished;rounds=1" not in names
    assert len(set(names)) == len(names) > 20


def test_entropy_s_thresholds_keep_their_proportion() -> None:
    (found,) = [p for p in points(fleet()) if p.options.get("raise_at") == 3.0]
    assert found.name == "economy;raise_at=3.0;lower_at=0.75"
    assert found.options == {"raise_at": 3.0, "lower_at": 0.75}  # 0.5 of 2.0 in the file
    never = with_presets(
        never={"policy": "entropy_switch", "small": "small", "large": "large", "raise_at": "inf"}
    )
    assert {"raise_at": 3.0, "lower_at": 0.0} in [point.options for point in points(never)]


def test_lenience_is_a_way_of_its_own() -> None:
    (found,) = [p for p in points(DEFAULT) if p.options.get("lenience") == 0.5]
    assert found.name == "swift;acceptance=lenient;lenience=0.5"
    assert found.fidelity == "approximate"
    asked = way_of(found)
    assert (asked.name, asked.model) == (found.name, "swift")
    assert asked.policy == {"name": "speculative", "acceptance": "lenient", "lenience": 0.5}
    assert way_of(points(DEFAULT)[0]).policy == {}


def test_speculation_that_changes_nothing_writes_as_its_target() -> None:
    authors = {point.name: point.author for point in points(DEFAULT)}
    for way in ("smollm2-135m-int8", "swift", "swift;longest=4"):
        assert authors[way] == "smollm2-135m-int8"
    assert authors["smollm2-tiny"] == "smollm2-tiny"
    for way in ("swift;acceptance=lenient;lenience=0.5", "brisk", "brief", "economy", "careful"):
        assert authors[way] == ""


def test_what_has_changed_is_another_point() -> None:
    before = {point.name: point.digest for point in points(fleet())}
    after = {point.name: point.digest for point in points(fleet(small=price(1, 3, 0.1)))}
    assert before["large"] == after["large"]
    assert before["small"] != after["small"] and before["economy"] != after["economy"]
    assert len(set(before.values())) == len(before)


def test_digests_are_those_by_which_a_profile_is_read() -> None:
    for point in points(DEFAULT):
        preset = DEFAULT.presets.get(point.preset)
        options = {**(preset.options if preset else {}), **point.options}
        assert point.digest == DEFAULT.digest(point.policy, options, point.models)


def test_some_of_them() -> None:
    found = points(fleet())
    assert [p.name for p in chosen(fleet(), ["small"])] == ["small"]
    assert {p.preset for p in chosen(fleet(), ["small", "economy"])} == {"small", "economy"}
    assert chosen(fleet(), []) == found
    with pytest.raises(ConfigError, match="no 'auto' to measure: small, large, economy"):
        chosen(fleet(), ["auto"])


def test_single_settings_of_a_preset() -> None:
    """Whether its dial stops there or not; a setting that is measured anyway is the same point."""
    swept = next(p for p in points(fleet()) if p.options.get("raise_at") == 3.0)
    (found,) = chosen(fleet(), [swept.name])
    assert found == swept
    assert chosen(fleet(), []).count(swept) == chosen(fleet(), ["economy", swept.name]).count(swept)
    (other,) = chosen(fleet(), ["economy;raise_at=2.5;start=large"])
    assert other.options == {"raise_at": 2.5, "start": "large"} and other.preset == "economy"
    for name, why in [
        ("small;n=2", "there is no 'small;n=2' to measure"),
        ("economy;raise_at", "'raise_at' must look like option=value"),
    ]:
        with pytest.raises(ConfigError, match=why):
            chosen(fleet(), [name])
    with pytest.raises(BadRequest, match="raise"):
        chosen(fleet(), ["economy;raise=1"])


def test_fewer_settings_of_a_dial_are_spread_over_it() -> None:
    def levels(most: int | None) -> list[object]:
        found = chosen(fleet(), ["economy"], most)
        return [p.options["raise_at"] for p in found if p.options]

    whole = levels(None)
    assert len(whole) == 3 and levels(9) == whole  # of four the preset is at one
    assert levels(0) == []
    assert levels(1) == [whole[1]]
    assert levels(2) == [whole[0], whole[2]]


def test_the_best_is_the_dearest_model() -> None:
    found = points(fleet())
    assert best(fleet(), found).name == "large"
    assert best(fleet(), chosen(fleet(), ["economy"])).preset == "economy"
    with pytest.raises(ConfigError, match="nothing to measure"):
        best(fleet(), [])


def test_a_small_model_s_first_tokens_are_looked_at() -> None:
    (probe,) = probes(fleet(), points(fleet()))
    assert (probe.name, probe.preset, probe.models) == ("small", "large", ("small", "large"))
    assert way_of(probe).policy == {
        "name": "entropy_switch",
        "small": "small",
        "large": "large",
        "raise_at": 64.0,
    }
    assert [one.name for one in probes(DEFAULT, points(DEFAULT))] == [
        "smollm2-135m-int8",
        "smollm2-tiny",
    ]


def test_other_servers_do_not_work_token_by_token() -> None:
    far = {
        name: ModelCard(
            name=name,
            engine="openai",
            urls=("http://far:1",),
            context=100,
            family="far",
            price=price(1, output),
        )
        for name, output in (("little", 1), ("lot", 2))
    }
    assert probes(Catalog(far, {}), points(Catalog(far, {}))) == []
