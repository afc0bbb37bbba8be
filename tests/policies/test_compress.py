"""Prompts with less in them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from app.catalog import Catalog, GpuSeconds
from app.engines.fake import Fake, Script
from app.errors import BadRequest, BudgetExceeded
from app.gateway import Answer, Gateway, Order
from app.types import Call, Decoding, Goals
from policies import load
from tests.policies.scripts import LENGTH, ask, card, fleet, price, read, text, usd

COMMON = [f"common{letter}" for letter in "abcdefghij"]
RARE = [f"rare{letter}" for letter in "abcdefghij"]
SURPRISALS = dict.fromkeys(COMMON, 0.1) | dict.fromkeys(RARE, 9.0)
CONTEXT = " ".join(itertools.chain.from_iterable(zip(COMMON, RARE, strict=True)))
LONG = " ".join([CONTEXT] * 20)  # 400 words
ASKED = "\n\nwhat is it ?"
PROMPT = LONG + ASKED
BEFORE = 400 + 4
# Scoring the words of the large model's prompts costs a hundredth.
CHEAP = fleet(small=price(0.1, 0.2))


def engine(**more: Any) -> Fake:
    small = Script([f"s{i}" for i in range(LENGTH)], surprisals=SURPRISALS)
    large = Script([f"l{i}" for i in range(LENGTH)])
    scripts = {"small": small, "large": large}
    return Fake({name: replace(one, **more.get(name, {})) for name, one in scripts.items()})


def call(*contents: str, **more: Any) -> Call:
    roles = itertools.cycle(("user", "assistant"))
    messages = [
        {"role": role, "content": said} for role, said in zip(roles, contents, strict=False)
    ]
    body = {"messages": [*messages]}
    return Call("large", tuple(messages), **{"body": body, "max_tokens": 8, **more})


async def answered(
    fake: Fake, asked: Call, catalog: Catalog = CHEAP, order: Any = None, **options: Any
) -> Answer:
    told = Order(asked, policy="compress", options={"ratio": 0.5, **options}, **(order or {}))
    answer = ask(Gateway(fake, catalog), told)
    chunks = await read(answer)
    assert text(chunks).split() == [f"l{i}" for i in range(8)] or any(c.raw for c in chunks)
    assert answer.spent <= answer.estimate and fake.open == 0
    return answer


def asked_of(fake: Fake, model: str) -> list[Call]:
    return [each for each in fake.calls if each.model == model]


def words(answered: Call) -> Sequence[str]:
    said: str = answered.messages[-1]["content"]
    return said.split()


def kinds(answer: Answer) -> list[str]:
    return [decision.kind for decision in answer.decisions]


def reason(answer: Answer) -> str:
    (decision,) = answer.decisions
    assert decision.kind == "plain"
    return decision.detail


async def test_what_was_expected_goes_first_and_the_ratio_is_met() -> None:
    fake = engine()
    answer = await answered(fake, call(PROMPT))
    (made,) = asked_of(fake, "large")
    left = words(made)
    assert 0.5 * BEFORE - 2 <= len(left) <= 0.5 * BEFORE
    assert set(left) - set(RARE) - {"what", "is", "it", "?"} <= {*COMMON[:1], COMMON[-1]}
    assert made.messages[-1]["content"].endswith(ASKED)
    (decision,) = answer.decisions
    assert (decision.kind, decision.model, decision.dropped) == (
        "compress",
        "large",
        BEFORE - len(left),
    )
    assert [one.max_tokens for one in asked_of(fake, "small")] == [0]
    assert made.decoding == Decoding() and made.max_tokens == 8


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("by", ["surprisal", "random", "end"])
async def test_each_way_leaves_as_many_tokens(by: str, ratio: float) -> None:
    fake = engine()
    await answered(fake, call(PROMPT), by=by, ratio=ratio)
    (made,) = asked_of(fake, "large")
    assert ratio * BEFORE - 2 <= len(words(made)) <= ratio * BEFORE
    assert bool(asked_of(fake, "small")) == (by == "surprisal")


async def test_the_end_goes_first_where_that_is_asked_for() -> None:
    fake = engine()
    await answered(fake, call(PROMPT), by="end")
    (made,) = asked_of(fake, "large")
    assert PROMPT.startswith(made.messages[-1]["content"].removesuffix(ASKED))


async def test_chance_is_seeded() -> None:
    prompts = []
    for seed in (1, 1, 2):
        fake = engine()
        await answered(fake, call(PROMPT), by="random", seed=seed)
        prompts.append(words(asked_of(fake, "large")[0]))
    assert prompts[0] == prompts[1] != prompts[2]


async def test_only_what_users_said_and_plain_text_of_tools_is_cut() -> None:
    numbers = json.dumps({"rows": [LONG]})
    messages = (
        {"role": "system", "content": PROMPT},
        {"role": "developer", "content": PROMPT},
        {
            "role": "user",
            "content": [{"type": "text", "text": PROMPT}, {"type": "text", "text": "a"}],
        },
        {"role": "assistant", "content": PROMPT},
        {"role": "tool", "tool_call_id": "1", "content": numbers},
        {"role": "tool", "tool_call_id": "2", "content": f"{LONG}.\n\nThat is all there is to it."},
        {"role": "user", "content": "short"},
    )
    fake = FlatFake(engine().scripts)
    asked = Call("large", messages, max_tokens=8, body={"messages": list(messages)})
    answer = await answered(fake, asked)
    made = asked_of(fake, "large")[0].messages
    cut = [
        number for number, (new, old) in enumerate(zip(made, messages, strict=True)) if new != old
    ]
    assert cut == [2, 5]
    assert made[2]["content"][1] == {"type": "text", "text": "a"}
    assert made[5]["tool_call_id"] == "2"
    assert answer.decisions[0].dropped == sum(
        len(flat(old).split()) - len(flat(new).split())
        for new, old in zip(made, messages, strict=True)
    )


def flat(message: Any) -> str:
    content = message["content"]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content)


class FlatFake(Fake):
    """Reads the parts of a message too."""

    def _prompt(self, call: Call) -> list[object]:
        said = tuple({"content": flat(message)} for message in call.messages)
        return super()._prompt(replace(call, messages=said))


async def test_earlier_turns_are_cut_as_they_were() -> None:
    first, later = engine(), engine()
    await answered(first, call(PROMPT))
    await answered(later, call(PROMPT, "An answer.", f"And now? {LONG}{ASKED}"))
    before, after = (asked_of(fake, "large")[0].messages for fake in (first, later))
    assert after[0] == before[0]
    assert after[1]["content"] == "An answer."
    assert len(after[2]["content"]) < len(LONG)


async def test_a_native_answer_is_asked_for_with_the_shorter_prompt_in_its_body() -> None:
    fake = engine(large={"native": True})
    tools = {"tools": [{"type": "function"}], "n": 3}
    asked = call(PROMPT, extra=tools, choices=3)
    asked = replace(
        asked, body={**asked.body, **tools, "messages": [{"x": 1, **m} for m in asked.messages]}
    )
    answer = await answered(fake, asked)
    (made,) = asked_of(fake, "large")
    assert made.decoding == Decoding(native=True) and made.choices == 3
    assert made.body["messages"] == [{"x": 1, **made.messages[0]}]
    assert made.body["tools"] == tools["tools"] and len(words(made)) == BEFORE // 2
    assert kinds(answer) == ["compress"] and len(asked_of(fake, "small")) == 1


async def test_each_choice_of_a_token_loop_reads_the_same() -> None:
    fake = engine()
    told = Order(call(PROMPT, choices=2), policy="compress", options={"ratio": 0.5})
    await read(ask(Gateway(fake, CHEAP), told))
    one, other = asked_of(fake, "large")
    assert one.messages == other.messages


@pytest.mark.parametrize("native", [False, True])
async def test_bare_prompts_are_cut_and_ids_are_left_alone(native: bool) -> None:
    fake = engine(large={"native": native})
    body = {"prompt": [PROMPT, PROMPT + " now"]}
    asked = Call(
        "large", prompt=PROMPT, beside=(PROMPT + " now",), choices=2, max_tokens=8, body=body
    )
    told = Order(asked, policy="compress", options={"ratio": 0.5})
    answer = ask(Gateway(fake, CHEAP), told)
    await read(answer)
    made = asked_of(fake, "large")
    prompts = [made[0].prompt, *made[0].beside] if native else [each.prompt for each in made]
    ends = [str(prompt).split()[-1] for prompt in prompts]
    assert (ends if native else sorted(ends)) == ["?", "now"]  # else side by side, in any order
    assert all(len(str(prompt).split()) < 210 for prompt in prompts)
    assert not native or made[0].body["prompt"] == prompts
    assert set(answer.notes.shortened) == ({0} if native else {0, 1})
    ids = tuple(map(fake.token_id, PROMPT.split()))
    told = Order(Call("large", prompt=ids, max_tokens=8), policy="compress", options={"ratio": 0.5})
    await read(ask(Gateway(fake, CHEAP), told))
    assert asked_of(fake, "large")[-1].prompt == ids


async def test_a_prompt_that_is_shown_is_left_as_it_is() -> None:
    fake = engine(large={"native": True})
    asked = Call("large", prompt=PROMPT, max_tokens=8, body={"prompt": PROMPT, "echo": True})
    answer = await answered(fake, asked)
    assert "shown" in reason(answer)
    assert asked_of(fake, "large")[0].body["prompt"] == PROMPT


async def test_short_texts_stay_and_their_marks_go() -> None:
    fake = engine()
    answer = await answered(fake, call("keep <keep>this</keep> too"))
    assert "256 tokens" in reason(answer)
    assert fake.calls[0].messages[0]["content"] == "keep this too"
    (way,) = answer.notes.considered[0]
    assert (way.kind, way.name, way.chosen) == ("reading", "whole", True)


async def test_what_costs_more_than_it_saves_is_not_read() -> None:
    answer = await answered(fake := engine(), call(PROMPT), fleet(small=price(6, 12)))
    assert "costs more than it saves" in reason(answer)
    assert not asked_of(fake, "small")


async def test_a_prompt_that_does_not_fit_is_cut_whatever_it_costs() -> None:
    fake = engine(large={"context": 300})
    answer = await answered(fake, call(PROMPT), fleet(small=price(6, 12)))
    assert kinds(answer) == ["compress"]


async def test_a_budget_that_pays_for_the_shorter_prompt_alone_suffices() -> None:
    fake = engine()
    money = usd(300 * 10 + 20 * 8)  # of the large one's 404 words and 8 more
    answer = await answered(fake, call(PROMPT), order={"usd": money})
    assert kinds(answer) == ["compress"] and answer.spent <= money


async def test_money_that_may_not_suffice_for_both_is_not_spent_on_reading() -> None:
    fake = engine()
    with pytest.raises(BudgetExceeded):
        await answered(fake, call(PROMPT), order={"usd": usd(202 * 10 + 40)})
    assert fake.calls == []


@pytest.mark.parametrize("words", range(0, 500, 23))
async def test_no_budget_is_overshot(words: int) -> None:
    fake, money = engine(), usd(10 * words)
    told = Order(call(PROMPT), policy="compress", options={"ratio": 0.5}, usd=money)
    answer = ask(Gateway(fake, CHEAP), told)
    try:
        await read(answer)
    except BudgetExceeded:
        assert fake.calls == []
    assert answer.spent <= money and fake.open == 0


@pytest.mark.parametrize("words", range(0, 900, 41))
async def test_accelerator_seconds_that_may_not_suffice_are_not_spent_on_reading(
    words: int,
) -> None:
    """Reading takes as much of them as writing, other than of money."""
    seconds = GpuSeconds(input=10, output=10)
    cards = {
        name: one.model_copy(update={"gpu_seconds": seconds}) for name, one in CHEAP.models.items()
    }
    fake, gpu = engine(), 10 * words * 10**6
    told = Order(call(PROMPT), policy="compress", options={"ratio": 0.5}, gpu=gpu)
    answer = ask(Gateway(fake, replace(CHEAP, models=cards)), told)
    try:
        await read(answer)
    except BudgetExceeded:
        assert fake.calls == []
    assert sum(line.gpu_us or 0 for line in answer.bill.lines) * 10**6 <= gpu


async def test_a_scorer_that_fails_is_done_without() -> None:
    fake = FailingFake(engine().scripts)
    answer = await answered(fake, call(PROMPT))
    assert "did not read it (EngineError)" in reason(answer)


class FailingFake(Fake):
    """Its scores are of other tokens."""

    async def generate(self, call: Call) -> Any:
        async for chunk in super().generate(call):
            yield replace(chunk, tokens=()) if call.decoding.scores else chunk


async def test_there_must_be_time_to_read_it() -> None:
    fake = engine(small={"reading": 1.0})
    late = Goals(deadline=time.monotonic() + 60)
    assert "would read it" in reason(await answered(fake, call(PROMPT, goals=late)))


async def test_a_long_text_is_read_in_windows() -> None:
    fake = engine(small={"context": 101})
    await answered(fake, call(PROMPT))
    read = asked_of(fake, "small")
    assert len(read) == 6 and {len(each.prompt or ()) for each in read[:-1]} == {100}
    assert set(words(asked_of(fake, "large")[0])) & set(COMMON) <= {*COMMON[:1], COMMON[-1]}


async def test_summaries_stand_where_the_parts_stood() -> None:
    fake = engine()
    paragraphs = f'{LONG}\n\n"{CONTEXT}" he said.\n\n{LONG}'
    answer = await answered(fake, call(f"{paragraphs}{ASKED}"), mode="summary")
    said = asked_of(fake, "large")[0].messages[0]["content"]
    summary = " ".join(f"s{i}" for i in range(LENGTH))
    assert said == f'{summary}\n\n"{CONTEXT}" he said.\n\n{summary}{ASKED}'
    assert kinds(answer) == ["compress"] and len(asked_of(fake, "small")) == 2


def test_what_cannot_score_is_refused_by_name() -> None:
    hosted = card("hosted", price(1, 2), family="hosted").model_copy(update={"engine": "openai"})
    catalog = Catalog({**CHEAP.models, "hosted": hosted}, {})
    alone = Catalog({"hosted": hosted}, {})
    assert load("compress", {}).fit(catalog, "hosted").scorer == "small"  # type: ignore[attr-defined]
    for options, where in (({"scorer": "hosted"}, catalog), ({}, alone)):
        with pytest.raises(BadRequest, match="scorer") as raised:
            load("compress", options).fit(where, "hosted")
        assert raised.value.param == "policy"
    load("compress", {"by": "random"}).fit(alone, "hosted")


@pytest.mark.parametrize("left", [1, 2, 3])
async def test_nothing_stays_open_when_the_client_leaves(left: int) -> None:
    fake = engine(small={"delay": 0.001}, large={"delay": 0.001})
    for options in ({}, {"mode": "summary"}):
        told = Order(call(PROMPT), policy="compress", options={"ratio": 0.5, **options})
        answer = ask(Gateway(fake, CHEAP), told)
        for _ in range(left):
            await anext(answer)
        await answer.aclose()
        assert fake.open == 0


async def test_a_name_outweighs_a_word_that_was_as_expected() -> None:
    fake = engine()
    await answered(fake, call(" ".join(["then", "Ada"] * 200) + ASKED))
    assert set(words(asked_of(fake, "large")[0])) <= {"then", "Ada", *ASKED.split()}
    assert words(asked_of(fake, "large")[0]).count("Ada") >= 197
