"""Every way to answer that a calibration measures: models, presets, and presets by their dials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import policies
from app.bench.calibrate.observed import Point
from app.bench.ways import Way, value_of
from app.catalog import Catalog, Preset
from app.errors import BadRequest, ConfigError
from policies.base import Policy
from policies.entropy_switch import EntropySwitch
from policies.speculative import Speculative

_CHOOSERS = ("planner", "route")  # they choose among what is measured here
_Options: TypeAlias = Mapping[str, Any]
_Dial: TypeAlias = Callable[[Policy], Iterator[_Options]]


def _at(option: str, *values: float, **beside: Any) -> _Dial:
    """The option at these values, but for the preset's own, with others `beside` it."""

    def settings(policy: Policy) -> Iterator[_Options]:
        for value in values:
            if getattr(policy, option) != value:
                yield {**beside, option: value}

    return settings


def _raised(*levels: float) -> _Dial:
    """Entropy switching's thresholds, in the preset's own proportion."""

    def settings(policy: Policy) -> Iterator[_Options]:
        assert isinstance(policy, EntropySwitch)
        share = policy.lower_at / policy.raise_at if policy.raise_at else math.nan
        for level in levels:
            if level != policy.raise_at:
                lower = {"lower_at": round(level * share, 3)} if math.isfinite(share) else {}
                yield {"raise_at": level, **lower}

    return settings


_DIALS: Mapping[str, Sequence[_Dial]] = {
    "entropy_switch": (_raised(1.0, 2.0, 3.0, 5.0),),
    "speculative": (
        _at("longest", 4, 16),
        _at("lenience", 0.5, 0.1, acceptance="lenient"),
    ),
    "kv_prediction": (_at("relevant", 0.0, 0.2, 0.5),),
    "cascade": (_at("threshold", 0.2, 0.4, 0.6, 0.8),),
    "best_of_n": (_at("n", 2, 4, 8),),
    "refine": (_at("rounds", 1, 2),),
    "compress": (_at("ratio", 0.9, 0.65, 0.5),),
}
"""What of a policy is turned, and how far. `direct` has no dial, and that of `precision` decides
between equals."""


def points(catalog: Catalog, most: int | None = None) -> list[Point]:
    """Every model that writes and every preset that does not choose among others, the presets also
    at other settings of their dials: `most` of each dial. Raises BadRequest and UnknownModel for a
    preset that the fleet cannot serve.
    """
    found = [
        Point(
            name, name, "direct", {}, (name,), "exact", catalog.digest("direct", {}, (name,)), name
        )
        for name, card in catalog.models.items()
        if card.embeds != "only"
    ]
    for preset in catalog.presets.values():
        if preset.policy in _CHOOSERS:
            continue
        found.append(_point(catalog, preset, {}))
        own = policies.load(preset.policy, preset.options).fit(catalog, None)
        for dial in _DIALS.get(preset.policy, ()):
            for options in _spread([*dial(own)], most):
                found.append(_point(catalog, preset, options))
    return found


def chosen(catalog: Catalog, names: Sequence[str], most: int | None = None) -> list[Point]:
    """Those of the models and presets of these names, and single settings such as
    `careful;threshold=0.5`; all, where none is named. Raises ConfigError for a name that there is
    not, and as `points`."""
    found = points(catalog, most)
    known = dict.fromkeys(point.preset for point in found)
    single = list[Point]()
    for name in names:
        preset, *options = name.split(";")
        if preset not in known or (options and preset not in catalog.presets):
            raise ConfigError(f"--preset: there is no {name!r} to measure: {', '.join(known)}")
        if options:
            told = dict(_option(name, text) for text in options)
            single.append(_point(catalog, catalog.presets[preset], told))
    kept = [point for point in found if not names or point.preset in names]
    return list({point.name: point for point in (*kept, *single)}.values())


def _option(name: str, text: str) -> tuple[str, Any]:
    option, equals, value = text.partition("=")
    if not (option and equals):
        raise ConfigError(f"--preset {name}: {text!r} must look like option=value")
    return option, value_of(value)


def _spread(settings: list[_Options], most: int | None) -> list[_Options]:
    """So many of them, evenly spread."""
    if most is None or most >= len(settings):
        return settings
    ends = len(settings) - 1
    at = [ends // 2] if most == 1 else [round(n * ends / (most - 1)) for n in range(most)]
    return [settings[one] for one in at]


def best(catalog: Catalog, found: Sequence[Point]) -> Point:
    """The one whose answers the others' are compared with where nothing else tells what is right:
    the dearest model; without a model, the way with the dearest one. Raises ConfigError for
    nothing to choose from."""
    if not found:
        raise ConfigError("there is nothing to measure: no model that writes, and no preset")

    def worth(point: Point) -> tuple[bool, int]:
        return point.policy == "direct", max(catalog.model(m).price.output for m in point.models)

    return max(found, key=worth)


def way_of(point: Point) -> Way:
    """How it is asked for over HTTP."""
    policy = {"name": point.policy, **point.options} if point.options else {}
    return Way(point.name, point.preset, policy)


def probes(catalog: Catalog, found: Sequence[Point]) -> list[Point]:
    """For each model here that has a dearer one of its family: it writes, and tells the entropy of
    each token, as a router sees it. Named as the model is; what servers do not work token by token
    is left out."""
    made = []
    for point in found:
        large = catalog.family(point.models[0])[-1].name
        if point.policy != "direct" or large == point.preset:
            continue
        # More bits than any vocabulary has: it is never handed over.
        options = {"small": point.preset, "large": large, "raise_at": 64.0}
        with suppress(BadRequest):
            policy = policies.load("entropy_switch", options).fit(catalog, None)
            models = tuple(policy.worst_case("", 0, 0))
            digest = catalog.digest("entropy_switch", options, models)
            told = Point(
                point.name, large, "entropy_switch", options, models, policy.fidelity, digest
            )
            made.append(told)
    return made


def _point(catalog: Catalog, preset: Preset, options: _Options) -> Point:
    """Raises BadRequest, UnknownModel."""
    whole = {**preset.options, **options}
    policy = policies.load(preset.policy, whole).fit(catalog, None)
    models = tuple(policy.worst_case("", 0, 0))
    name = ";".join([preset.name, *(f"{option}={value}" for option, value in options.items())])
    digest = catalog.digest(preset.policy, whole, models)
    author = ""
    if isinstance(policy, Speculative) and policy.fidelity == "exact":
        author = policy.target
    return Point(name, preset.name, preset.policy, options, models, policy.fidelity, digest, author)
