"""What may have been measured of the scripted models."""

from collections.abc import Mapping, Sequence

from app.profile import Profile, Way
from app.prompt_features import FEATURES, Classifier

BITS = (0.0, 1.0, 2.0, 3.0, 4.0)  # quantiles of the entropies of a model's first tokens
CHANCES = (0.1, 0.3, 0.5, 0.7, 0.9)  # and of the chances that a large model is needed


def classifier(classes: Sequence[str], weights: Mapping[str, float] | None = None) -> Classifier:
    """Of two classes; these weights speak for the second one. Without any both are as likely."""
    row = tuple((weights or {}).get(name, 0.0) for name in FEATURES)
    nothing = (0.0,) * len(FEATURES)
    return Classifier(
        features=FEATURES,
        classes=tuple(classes),
        mean=nothing,
        scale=(1.0,) * len(FEATURES),
        weights=(nothing, row),
        bias=(0.0, 0.0),
    )


def profile(
    *small: str, weights: Mapping[str, float] | None = None, ways: Sequence[Way] = ()
) -> Profile:
    """One that knows of these small models how hard prompts are for them."""
    return Profile(
        measured="2026-11-27T00:00:00Z farthing calibrate",
        best="large",
        ways=tuple(ways),
        kinds=classifier(("easy", "math")),
        difficulty=dict.fromkeys(small, classifier(("small", "large"), weights)),
        difficulties=dict.fromkeys(small, CHANCES),
        entropies=dict.fromkeys(small, BITS),
    )
