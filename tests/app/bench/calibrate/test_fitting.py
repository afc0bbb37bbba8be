"""From answers to a profile, of answers whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from app.bench.calibrate import kinds
from app.bench.calibrate.fitting import fit, samples
from app.errors import ConfigError
from app.estimates import Estimate
from app.profile import Law, Profile, Runtime
from app.prompt_features import features
from tests.app.bench.calibrate.made import KINDS, Made, answers, points, texts

SMALL = Made("small", 0.3, entropy=3.0)
LARGE = Made("large", 0.8, cost=Law(base=0, prompt=4e-8, completion=2e-7))
BROKEN = Made("broken", fails=1.0)


@pytest.fixture(scope="module")
def profile():
    found = answers(SMALL, LARGE, BROKEN)
    runtimes = {"small": Runtime(first={1: 0.01}, each=0.02)}
    return fit(found, points(SMALL, LARGE, BROKEN), texts(), runtimes, 0)


def test_every_way_that_answered_is_in_it(profile):
    assert [way.name for way in profile.ways] == ["small", "large"]
    assert profile.best == "large"
    assert profile.runtimes["small"].each == 0.02
    assert Profile.model_validate_json(profile.model_dump_json()) == profile


def test_its_laws_are_those_that_answers_were_made_by(profile):
    for way, made in zip(profile.ways, (SMALL, LARGE), strict=True):
        for law, truth in ((way.cost, made.cost), (way.latency, made.seconds)):
            assert law.at(150, 50, 3) == pytest.approx(truth.at(150, 50, 3), rel=0.05)
        assert way.latency.load == pytest.approx(0.3, rel=0.1)
        assert way.cost.load == 0
        assert way.first_token.at(150, 50) == pytest.approx(0.25, rel=0.1)
        assert 1.0 < way.latency.high < 1.2


def test_qualities_are_means_over_kinds_each_alike(profile):
    for way in profile.ways:
        assert set(way.quality) == set(way.length) == {*KINDS, "all"}
        each = [way.quality[kind].mean for kind in KINDS]
        assert way.quality["all"].mean == pytest.approx(sum(each) / 3)
        assert way.quality["all"].questions == 60
    lopsided = [e for e in answers(LARGE, hard=None) if e.kind != "math" or e.question == "math/1"]
    spoilt = [replace(e, worth=float(e.kind == "math")) for e in lopsided]
    (way,) = fit(spoilt, points(LARGE), texts(), {}, 0).ways
    assert way.quality["all"].mean == pytest.approx(1 / 3)


def test_a_failure_is_worth_nothing(profile):
    half = Made("half", 1.0, fails=0.5)
    found = [replace(each, worth=1.0) for each in answers(half)]  # whatever is said of its worth
    (way,) = fit(found, points(half), texts(), {}, 0).ways
    assert way.quality["all"].mean == pytest.approx(0.5, abs=0.1)
    assert way.latency.at(150, 50) == pytest.approx(half.seconds.at(150, 50), rel=0.1)


def test_intervals_cover_the_truth():
    """19 of 20 ways; of 120 drawn, 105 at least (fewer come once in ten thousand)."""
    covered = 0
    for random in range(120):
        rng = np.random.default_rng(random)
        chances = rng.beta(2, 3, (3, 25))  # of each question, each kind alike
        right = rng.random((3, 25, 2)) < chances[..., None]  # two answers to each
        estimates = [kinds.bounded(row.mean(1).tolist(), seed=random) for row in right]
        whole = kinds.over(estimates)
        covered += whole.low <= 0.4 <= whole.high
    assert covered >= 105


def test_one_question_of_a_kind_is_known_to_say_little():
    found = answers(LARGE, questions=1, seeds=(1,), levels=(1,))
    (way,) = fit(found, points(LARGE), texts(1), {}, 0).ways
    for kind in KINDS:
        quality = way.quality[kind]
        assert quality.questions == 1
        assert quality.high - quality.low > 0.7
    assert way.quality["all"].high - way.quality["all"].low > 0.35


def test_mean_over_kinds_is_narrower_than_each():
    one = Estimate(0.5, 0.4, 0.6)
    assert kinds.over([one] * 4).low == pytest.approx(0.45)
    with pytest.raises(ValueError, match="nothing"):
        kinds.over([])


def test_kinds_are_told_apart(profile):
    assert profile.kinds.classes == KINDS
    assert profile.kinds.accuracy == 1.0
    assert profile.kinds.usual == pytest.approx(1 / 3)
    for question, text in texts().items():
        said = profile.kinds.probabilities(features(text))
        assert max(said, key=said.get) == question.partition("/")[0]


def test_the_difficulty_of_a_prompt_is_learnt_from_its_words():
    """Odd questions are hard, and long: the small model gets none of them right."""
    small, large = Made("small", 0.0), Made("large", 1.0)
    asked = {
        question: text + " of these 12 34 56" * (10 * (int(question.rpartition("/")[2]) % 2))
        for question, text in texts().items()
    }
    found = answers(small, large, hard=lambda number: number % 2)
    profile = fit(found, points(small, large), asked, {}, 0)
    assert set(profile.difficulty) == {"small"}
    hard = profile.difficulty["small"]
    assert hard.accuracy > 0.9 and hard.usual == 0.5
    assert hard.probabilities(features(asked["math/1"]))["large"] > 0.8
    assert hard.probabilities(features(asked["math/2"]))["large"] < 0.2
    quantiles = profile.difficulties["small"]
    assert len(quantiles) == 21 and list(quantiles) == sorted(quantiles)
    assert quantiles[5] < 0.2 < 0.8 < quantiles[15]


def test_a_model_is_set_beside_the_best_of_those_that_are_dearer():
    """The middle one is the best of all, and yet a large one may be asked in its stead."""
    prices = {"tiny": 1e-9, "middle": 1e-8, "large": 4e-8}
    right = {"tiny": 0.0, "middle": 1.0, "large": 0.9}
    ways = [
        Made(name, right[name], cost=Law(base=0, prompt=price, completion=price))
        for name, price in prices.items()
    ]
    found = fit(answers(*ways), points(*ways), texts(), {}, 0).difficulty
    assert set(found) == {"tiny", "middle"}
    assert found["tiny"].probabilities(features("any"))["large"] > 0.9
    assert found["middle"].probabilities(features("any"))["large"] < 0.1


def test_where_a_larger_model_never_helps_difficulty_says_so():
    small, large = Made("small", 1.0), Made("large", 1.0)
    profile = fit(answers(small, large), points(small, large), texts(), {}, 0)
    (hard,) = profile.difficulty.values()
    assert hard.probabilities(features("anything"))["large"] < 0.02


def test_entropies_are_of_models_that_tell_them(profile):
    assert set(profile.entropies) == {"small"}
    quantiles = profile.entropies["small"]
    assert quantiles[10] == pytest.approx(3.0, abs=0.05)
    assert quantiles[0] < quantiles[10] < quantiles[20]


def test_costs_that_nobody_tells_are_none():
    free = Made("free", cost=None)
    (way,) = fit(answers(free), points(free), texts(), {}, 0).ways
    assert way.cost.at(1000, 1000) == 0
    assert way.latency.at(150, 50) > 0


def test_answers_of_ways_that_are_gone_do_not_count():
    found = answers(SMALL, LARGE)
    assert [way.name for way in fit(found, points(SMALL), texts(), {}, 0).ways] == ["small"]


def test_prompts_that_were_not_asked_help_to_tell_kinds():
    found = answers(LARGE, questions=1, seeds=(1,), levels=(1,))
    assert fit(found, points(LARGE), texts(1), {}, 0).kinds.accuracy is None
    profile = fit(found, points(LARGE), texts(20) | {"other/1": "no"}, {}, 0)
    assert profile.kinds.accuracy == 1.0 and profile.kinds.classes == KINDS


def test_without_texts_every_kind_is_as_likely():
    profile = fit(answers(LARGE, questions=2), points(LARGE), {}, {}, 0)
    said = profile.kinds.probabilities(features("how many?"))
    assert said == pytest.approx(dict.fromkeys(KINDS, 1 / 3))


def test_without_any_answer_there_is_no_profile():
    with pytest.raises(ConfigError, match="503: no engine"):
        fit(answers(BROKEN), points(BROKEN), texts(), {}, 0)
    with pytest.raises(ConfigError, match="no way to answer"):
        fit([], points(LARGE), texts(), {}, 0)


def test_nine_of_ten_answers_of_a_kind_are_no_longer_however_few_were_seen():
    """Of three kinds whose lengths spread alike; the longest of four is not what nine of ten do not
    pass."""
    rng, kept = np.random.default_rng(0), []
    usual = dict(zip(KINDS, (10, 40, 160), strict=True))
    for _ in range(6):
        found = [
            replace(each, completion=int(usual[each.kind] * rng.lognormal(0, 0.6)) + 1)
            for each in answers(LARGE, questions=4, seeds=(1,), levels=(1,))
        ]
        (way,) = fit(found, points(LARGE), texts(), {}, 0).ways
        kept += [
            float(np.mean(usual[kind] * rng.lognormal(0, 0.6, 400) <= way.length[kind].high))
            for kind in KINDS
        ]
    assert 0.86 < float(np.mean(kept)) < 0.97


def test_first_words_go_by_what_ran_when_they_were_asked_for():
    """As the planner knows it; the whole answer by what ran meanwhile."""
    found = [replace(each, met=7, beside=2.5) for each in answers(Made("a"), questions=3)]
    assert {each.calls for each in samples(found, "first_s")} == {7}
    assert {each.calls for each in samples(found, "seconds")} == {2.5}
