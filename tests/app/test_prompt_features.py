"""What a prompt's text tells, and a classifier by it."""

import math

import pytest
from pydantic import ValidationError

from app.prompt_features import FEATURES, Classifier, features, features_of, text_of
from app.types import Call


def named(text, turns=1):
    return dict(zip(FEATURES, features(text, turns), strict=True))


def test_features_tell_kinds_of_prompts_apart():
    math_, code = (
        named("How many eggs are 3 + 4?"),
        named("```python\ndef f(x):\n    return x\n```"),
    )
    assert math_["numbers"] == math.log1p(2) and math_["ends_asking"] == 1.0
    assert math_["how_many"] and math_["operators"] and not math_["code"]
    assert code["code"] == math.log1p(4) and not code["how_many"]
    assert named("A. red\nB. blue")["options"] == math.log1p(2)


def test_a_long_text_is_seen_at_both_ends():
    long = "7 " + "word " * 10_000 + "how many?"
    assert named(long)["numbers"] == math.log1p(1) and named(long)["how_many"] == math.log1p(1)
    assert named(long)["length"] == pytest.approx(math.log1p(len(long)))


def test_a_call_is_read_by_its_text():
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {}}]
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": parts})
    assert text_of(chat) == "Be brief.\nWhat is this?"
    assert features_of(Call("m", chat)) == features("Be brief.\nWhat is this?", 2)
    assert features_of(Call("m", prompt="Say 3")) == features("Say 3")
    assert features_of(Call("m", prompt=(1, 2))) == features("")
    assert features_of(Call("m", ({"role": "user"},))) == features("")


def classifier(**changed):
    each = len(FEATURES)
    row = [0.0] * each
    row[FEATURES.index("code")] = 2.0
    whole = {
        "features": FEATURES,
        "classes": ("chat", "code"),
        "mean": [0.5] * each,
        "scale": [2.0] * each,
        "weights": ([0.0] * each, row),
        "bias": (0.25, -0.25),
    }
    return Classifier(**{**whole, **changed})


def test_probabilities_are_a_softmax():
    found = features("def f(): pass")
    chances = classifier().probabilities(found)
    code = found[FEATURES.index("code")]
    margin = 2.0 * (code - 0.5) / 2.0 - 0.5
    assert chances["code"] == pytest.approx(1 / (1 + math.exp(-margin)))
    assert sum(chances.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"features": ("length",)}, "calibrate anew"),
        ({"bias": (0.0,)}, "a row for each class"),
        ({"mean": (0.0,)}, "a value for each feature"),
        ({"scale": [0.0] * len(FEATURES)}, "must not be 0"),
        ({"bias": (0.0, math.inf)}, "finite"),
    ],
)
def test_what_is_no_classifier_of_this_version_is_refused(changed, said):
    with pytest.raises(ValidationError, match=said):
        classifier(**changed)
