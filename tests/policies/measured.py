"""Profiles of scripted fleets: what was measured of their models and presets, as a test says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import policies
from app.catalog import PICO, Catalog
from app.profile import Interval, Law, Length, Way
from app.prompt_features import FEATURES, Classifier
from app.types import Usage
from tests.policies.profiles import profile

CHAT, CODE = "chat", "code"
# A prompt with some code in it is surely code, and any other one is not.
_WEIGHTS = [0.0] * len(FEATURES)
_WEIGHTS[FEATURES.index("code")] = 100.0
KINDS = Classifier(
    features=FEATURES,
    classes=(CHAT, CODE),
    mean=(0.0,) * len(FEATURES),
    scale=(1.0,) * len(FEATURES),
    weights=((0.0,) * len(FEATURES), tuple(_WEIGHTS)),
    bias=(20.0, -20.0),
)
_PROMPT, _ANSWER = 20, 40  # tokens of what was measured


def interval(mean: float, off: float = 0.0) -> Interval:
    return Interval(mean=mean, low=max(mean - off, 0.0), high=mean + off, questions=50)


def law(base: float = 0.0, prompt: float = 0.0, completion: float = 0.0, **more: float) -> Law:
    return Law(base=base, prompt=prompt, completion=completion, **more)


def way(
    catalog: Catalog,
    name: str,
    quality: Mapping[str, Interval] | float = 0.5,
    length: float = _ANSWER,
    **given: Any,
) -> Way:
    """Of a model, a preset or `preset;option=value`, priced by its worst case unless told."""
    preset, _, dial = name.partition(";")
    option, _, value = dial.partition("=")
    options = {option: float(value)} if dial else {}
    card, policy, own, model = catalog.presets.get(preset), "direct", {}, preset
    if card is not None:
        policy, own, model = card.policy, dict(card.options), ""
    fitted = policies.load(policy, {**own, **options}).fit(catalog, model or None)
    models = tuple(fitted.worst_case(model, 0, 0))
    one = interval(quality) if isinstance(quality, float) else quality
    known = {
        "name": name,
        "preset": preset,
        "policy": policy,
        "options": options,
        "models": models,
        "fidelity": fitted.fidelity,
        "digest": catalog.digest(policy, {**own, **options}, models),
        "quality": one if isinstance(one, Mapping) else {CHAT: one, CODE: one},
        "length": dict.fromkeys((CHAT, CODE), Length(mean=length, high=1.5 * length)),
        "cost": _priced(catalog, fitted.worst_case(model, _PROMPT, _ANSWER)),
        "first_token": law(0.1),
        "latency": law(0.1, 0.0, 0.01),
    }
    return Way(**{**known, **given})


def _priced(catalog: Catalog, worst: Mapping[str, Usage]) -> Law:
    prices = catalog.prices()
    reads = sum(prices[model].input * used.prompt for model, used in worst.items())
    writes = sum(prices[model].output * used.completion for model, used in worst.items())
    return law(0.0, reads / _PROMPT / PICO, writes / _ANSWER / PICO)


def measured(catalog: Catalog, **qualities: float) -> Catalog:
    """The catalog with these models and presets in its profile, the best one first."""
    return known(catalog, *(way(catalog, name, quality) for name, quality in qualities.items()))


def known(catalog: Catalog, *ways: Way) -> Catalog:
    """The catalog with these ways in its profile; the first one is the best."""
    found = catalog.profile or profile()
    more = {"best": ways[0].name, "ways": ways, "kinds": KINDS}
    return replace(catalog, profile=found.model_copy(update=more))
