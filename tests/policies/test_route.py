"""Which of two models answers a request: by its prompt, or by the small one's first tokens."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from app.catalog import Catalog, Preset
from app.engines.fake import Fake, Script
from app.errors import BadRequest, DeadlineExceeded, EngineError
from app.gateway import Answer, Gateway, Order
from app.types import Goals
from policies.route import Route, quantile
from tests.policies.cascades import FOREIGN
from tests.policies.profiles import profile
from tests.policies.scripts import LENGTH, ask, call, card, engine, fleet, price, read, text, usd

PROMPT = 5  # tokens
ENTROPY = {"by": "entropy"}
ASKS = {"ends_asking": 4.0}  # how a classifier tells hard prompts


def asked(fake: Fake, options: dict[str, Any] | None = None, **more: Any) -> Answer:
    catalog = more.pop("catalog", None) or fleet()
    of_order = {name: more.pop(name) for name in ("usd",) if name in more}
    return ask(
        Gateway(fake, catalog),
        Order(call("large", **more), policy="route", options=options or {}, **of_order),
    )


def models(fake: Fake) -> list[str]:
    return [made.model for made in fake.calls]


def said(chunks: Any) -> set[str]:
    return {word[0] for word in text(chunks).split()}


def asking(ends: str) -> dict[str, Any]:
    return {"messages": ({"role": "user", "content": f"why is the sky blue{ends}"},)}


@pytest.mark.parametrize(("ends", "writer", "chance"), [("?", "large", 0.982), ("", "small", 0.5)])
async def test_the_classifier_says_who_answers(ends: str, writer: str, chance: float) -> None:
    catalog = replace(fleet(), profile=profile("small", weights=ASKS))
    fake = engine()
    order = Order(replace(call("large"), **asking(ends)), policy="route", options={"share": 0.2})
    answer = ask(Gateway(fake, catalog), order)
    chunks = await read(answer)
    assert models(fake) == [writer] and said(chunks) == {writer[0]}
    (decision,) = answer.decisions
    assert (decision.kind, decision.model, decision.token) == ("route", writer, 0)
    assert decision.confidence == pytest.approx(chance, abs=0.001)
    assert decision.threshold == pytest.approx(0.74)  # a fifth of the chances are above it
    assert answer.fidelity == "approximate" and not decision.steered
    weighed = {way.name: way.chosen for way in answer.notes.considered[0]}
    assert weighed == {"small": writer == "small", "large": writer == "large"}


@pytest.mark.parametrize(
    ("bits", "writer", "made"), [(2.1, "large", ["small", "large"]), (1.9, "small", ["small"])]
)
async def test_the_first_tokens_entropy_says_who_answers(
    bits: float, writer: str, made: list[str]
) -> None:
    fake = engine(small=[bits] * LENGTH)
    answer = asked(fake, ENTROPY)
    chunks = await read(answer)
    assert models(fake) == made and said(chunks) == {writer[0]}
    assert len(text(chunks).split()) == LENGTH
    (decision,) = answer.decisions
    assert (decision.model, decision.threshold) == (writer, 2.0)
    assert decision.entropy == pytest.approx(bits)
    assert fake.produced["small"] == (8 if writer == "large" else LENGTH)


async def test_only_the_first_tokens_are_looked_at_and_they_are_held_back_until_then() -> None:
    fake = engine(small=[0.0, 1.0, 2.0] + [9.0] * LENGTH)
    answer = asked(fake, {**ENTROPY, "tokens": 3})
    first = await anext(answer)
    assert first.decision is not None and first.decision.entropy == pytest.approx(1.0)
    assert fake.produced == {"small": 3}
    assert said([first, *await read(answer)]) == {"s"}


async def test_an_answer_shorter_than_that_is_judged_by_what_there_is() -> None:
    fake = engine(small=[3.0] * 2, length=2)
    answer = asked(fake, ENTROPY)
    assert said(await read(answer)) == {"l"}
    assert "first 2 tokens" in answer.decisions[0].detail


@pytest.mark.parametrize(("share", "made"), [(0.0, ["small"]), (1.0, ["large"])])
@pytest.mark.parametrize("by", ["features", "entropy"])
async def test_all_or_nothing_needs_no_profile(share: float, made: list[str], by: str) -> None:
    fake = engine(small=[9.0] * LENGTH)
    catalog = replace(fleet(), profile=None)
    answer = asked(fake, {"share": share, "by": by}, catalog=catalog)
    await read(answer)
    assert models(fake) == made and answer.decisions[0].threshold is None


def test_the_share_is_that_of_the_scores_that_were_seen() -> None:
    seen = (0.1, 0.3, 0.5, 0.7, 0.9)
    assert [quantile(seen, share) for share in (0, 0.25, 1)] == [0.1, 0.3, 0.9]
    assert quantile(seen, 0.3) == pytest.approx(0.34)
    assert quantile((0.4,), 0.7) == 0.4


@pytest.mark.parametrize(
    ("options", "known", "what"),
    [
        ({}, None, "which prompts it answers"),
        ({"threshold": 0.5}, None, "which prompts it answers"),
        (ENTROPY, None, "the entropy of its answers"),
        ({}, profile("other"), "which prompts it answers"),
        ({}, profile("small").model_copy(update={"difficulties": {}}), "how hard prompts are"),
    ],
)
def test_what_was_not_measured_is_said_with_what_to_do(
    options: dict[str, Any], known: Any, what: str
) -> None:
    catalog = replace(fleet(), profile=known)
    with pytest.raises(BadRequest, match=f"for small {what}.*`farthing calibrate`") as caught:
        Route(**options).fit(catalog, "large")
    assert caught.value.param == "policy"


async def test_a_threshold_of_entropy_needs_no_profile() -> None:
    fake = engine(small=[3.0] * LENGTH)
    catalog = replace(fleet(), profile=None)
    answer = asked(fake, {**ENTROPY, "threshold": 3.5}, catalog=catalog)
    assert said(await read(answer)) == {"s"}


@pytest.mark.parametrize(
    ("options", "model", "match"),
    [
        ({}, None, "`large` is missing"),
        ({}, "small", "cheapest of its family"),
        ({"small": "large"}, "small", "exchange"),
        ({"small": "theirs", "by": "entropy"}, "large", "`by` features"),
    ],
)
def test_models_between_which_nothing_can_be_routed_are_refused(
    options: dict[str, Any], model: str | None, match: str
) -> None:
    known = fleet()
    options = {"large": "small", **options} if options == {"small": "large"} else options
    theirs = card("theirs", price(1, 2)).model_copy(update=FOREIGN)
    catalog = replace(known, models={**known.models, "theirs": theirs})
    with pytest.raises(BadRequest, match=match):
        Route(**options).fit(catalog, model)


async def test_a_preset_names_both() -> None:
    preset = Preset(name="sorted", policy="route", small="small", large="large")
    catalog = replace(fleet(), presets={"sorted": preset})
    answer = ask(Gateway(engine(), catalog), Order(call("sorted")))
    assert said(await read(answer)) == {"l"}


LARGE = usd(PROMPT * 10 + 20 * LENGTH)  # a whole answer of it
SMALL = usd(PROMPT + 2 * 8)  # what it takes to see the small one's first tokens


@pytest.mark.parametrize(
    ("options", "budget", "writer"),
    [
        ({}, LARGE, "l"),
        ({}, LARGE - usd(20), "s"),
        (ENTROPY, LARGE + SMALL, "l"),
        (ENTROPY, LARGE + SMALL - usd(20), "s"),
        (ENTROPY, LARGE - usd(20), "s"),
    ],
)
async def test_where_the_large_one_cannot_be_paid_the_small_one_answers(
    options: dict[str, Any], budget: int, writer: str
) -> None:
    fake = engine(small=[3.0] * LENGTH)
    answer = asked(fake, options, usd=budget, max_tokens=LENGTH)
    chunks = await read(answer)
    assert said(chunks) == {writer} and len(text(chunks).split()) == LENGTH
    assert answer.outcome == ("kept" if writer == "l" else "steered")
    if writer == "s":
        assert "the budget does not pay for large" in answer.decisions[0].detail
        ways = {way.name: way.fits for way in answer.notes.considered[0]}
        assert ways["large"] is False


async def test_where_it_certainly_cannot_be_paid_nothing_is_held_back() -> None:
    fake = engine(small=[3.0] * LENGTH)
    answer = asked(fake, ENTROPY, usd=LARGE - usd(20), max_tokens=LENGTH)
    await anext(answer)
    assert fake.produced == {"small": 1}
    await answer.aclose()
    assert fake.open == 0


def broken(fake: Fake, model: str, after: int = 0, **more: Any) -> Fake:
    script = fake.scripts[model]
    fake.scripts = {**fake.scripts, model: replace(script, fails_after=after, **more)}
    return fake


@pytest.mark.parametrize("options", [{}, ENTROPY])
async def test_where_the_large_one_fails_the_small_one_s_answer_is_given(
    options: dict[str, Any],
) -> None:
    fake = broken(engine(small=[3.0] * LENGTH), "large")
    answer = asked(fake, options)
    chunks = await read(answer)
    assert text(chunks).split() == [f"s{i}" for i in range(LENGTH)]
    assert "large failed" in answer.decisions[0].detail and answer.outcome == "kept"
    assert fake.open == 0 and answer.spent <= answer.estimate


@pytest.mark.parametrize("choices", [1, 3])
async def test_an_answer_that_was_held_back_whole_is_given_as_it_is(choices: int) -> None:
    fake = broken(engine(small=[3.0] * LENGTH), "large")
    answer = asked(fake, ENTROPY, max_tokens=8, choices=choices)
    chunks = await read(answer)
    assert said(chunks) == {"s"} and len(text(chunks).split()) == 8 * choices
    assert [chunk.finish for chunk in chunks if chunk.finish] == ["length"] * choices
    assert set(models(fake)) == {"small", "large"} and len(fake.calls) == 2 * choices


@pytest.mark.parametrize("after", [0, 4])
async def test_where_the_small_one_fails_before_it_is_shown_the_large_one_answers(
    after: int,
) -> None:
    fake = broken(engine(), "small", after)
    answer = asked(fake, ENTROPY)
    assert said(await read(answer)) == {"l"}
    assert answer.decisions[0].detail.startswith("small failed (EngineError)")


async def test_one_that_fails_while_it_is_shown_ends_the_answer() -> None:
    fake = broken(engine(), "small", 20)
    with pytest.raises(EngineError):
        await read(asked(fake, ENTROPY))
    assert models(fake) == ["small"] and fake.open == 0


async def test_where_both_fail_it_is_said() -> None:
    fake = broken(broken(engine(), "small", 2), "large")
    with pytest.raises(EngineError):
        await read(asked(fake, ENTROPY))
    assert models(fake) == ["small", "large"] and fake.open == 0


@pytest.mark.parametrize("slow", ["small", "large"])
async def test_at_the_deadline_what_was_held_back_is_given(slow: str) -> None:
    fake = engine(small=[3.0] * LENGTH)
    delays = {"small": [0.01, 5.0][slow == "small"], "large": 5.0}
    scripts = {name: replace(each, delay=delays[name]) for name, each in fake.scripts.items()}
    if slow == "small":  # two words come, the third never does
        scripts["small"] = replace(scripts["small"], delay=0.12)
    fake.scripts = scripts
    answer = asked(fake, ENTROPY, goals=Goals(deadline=time.monotonic() + 0.4))
    chunks = await read(answer)
    assert said(chunks) == {"s"} and chunks[-1].reason == "deadline"
    assert answer.outcome == "deadline" and fake.open == 0
    assert answer.decisions[0].detail.startswith("the deadline came")


async def test_where_nothing_came_in_time_it_is_refused() -> None:
    fake = engine()
    fake.scripts = {name: replace(each, delay=5.0) for name, each in fake.scripts.items()}
    with pytest.raises(DeadlineExceeded):
        await read(asked(fake, ENTROPY, goals=Goals(deadline=time.monotonic() + 0.05)))
    assert fake.open == 0


async def test_each_of_several_choices_is_judged_by_its_own_first_tokens() -> None:
    fake = engine()
    hard, easy = ([bits] * LENGTH for bits in (3.0, 1.0))
    words = fake.scripts["small"].words
    fake.scripts = {
        **fake.scripts,
        "small": Script(words, variants=[Script(words, hard), Script(words, easy)]),
    }
    answer = asked(fake, ENTROPY, choices=2)
    await read(answer)
    assert {(each.choice, each.model) for each in answer.decisions} == {(0, "large"), (1, "small")}


async def test_servers_answer_in_their_own_words_tools_and_all() -> None:
    fake = engine(native=True)
    answer = asked(fake, {"threshold": 0.6}, choices=3, extra={"tools": [{"type": "function"}]})
    chunks = await read(answer)
    assert [(made.model, made.choices) for made in fake.calls] == [("small", 3)]
    assert b"s39" in b"".join(chunk.raw for chunk in chunks)


async def test_the_hardest_of_several_prompts_decides_for_all() -> None:
    catalog = replace(fleet(), profile=profile("small", weights=ASKS))
    for beside, writer in ((("why",), "small"), (("why?",), "large")):
        fake = engine(native=True)
        asks = replace(call("large"), messages=(), prompt="so", beside=beside, choices=2)
        order = Order(asks, policy="route", options={"threshold": 0.6})
        await read(ask(Gateway(fake, catalog), order))
        assert models(fake) == [writer]


async def test_choices_of_another_server_are_all_made_by_the_large_model() -> None:
    known = fleet()
    theirs = known.models["large"].model_copy(update=FOREIGN)
    catalog = Catalog({**known.models, "large": theirs}, {}, profile=known.profile)
    fake = engine()
    fake.scripts = {**fake.scripts, "large": replace(fake.scripts["large"], native=True)}
    answer = asked(fake, {"share": 0.0}, catalog=catalog, choices=2)
    await read(answer)
    assert models(fake) == ["large"]
    assert [(each.kind, each.model) for each in answer.decisions] == [("whole", "large")]


async def test_a_form_that_would_not_last_is_left_to_one_model_from_the_start() -> None:
    fake = engine(small=[9.0] * LENGTH, native=True)
    answer = asked(fake, ENTROPY, extra={"response_format": {"type": "json_object"}})
    await read(answer)
    assert [(each.kind, each.model) for each in answer.decisions] == [("whole", "large")]


async def test_strict_admits_by_the_dearer_one_and_not_by_both() -> None:
    order = Order(replace(call("large"), max_tokens=LENGTH), policy="route", usd=LARGE, strict=True)
    assert said(await read(ask(Gateway(engine(), fleet()), order))) == {"l"}
