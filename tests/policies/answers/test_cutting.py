"""Texts without some of their words."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.answers.cutting import Words, cut

FREE = st.sampled_from(
    [
        *("the", "quick", "fox,", "jumped", "over.", "a", "(lazy", "dog)", "Münster", "naïve"),
        *("don't", "U.S.", "3.14", "2015", "x=1", "-", "—", "…", "e\u0301te\u0301"),
        *("שלום", "עולם!", "مرحبا", "بالعالم", "\u202babc\u202c", "हिन्दी", "भाषा"),
        *("我们今天去公园。", "👩\u200d🚀", "party🎉"),
    ]
)
KEPT = st.sampled_from(
    [
        "`code that  stays`",
        '"said in  quotes"',
        "“so wurde, es”",
        "<b>",
        "\n\n```py\na  =  1\n\nb\n```\n\n",
        "「引用 する」",
        "«À bientôt»",
    ]
)
MARKED = st.sampled_from(["a  b, c", "שלום", "1 2\n3"]).map(lambda text: f"<keep>{text}</keep>")
PARTS = st.lists(st.one_of(FREE, FREE, FREE, FREE, KEPT, MARKED, st.just("\n\n")), max_size=60)
ASKED = "\n\nAnd what,  exactly, is it (in a word)?"


def shown(part: str) -> str:
    return part.removeprefix("<keep>").removesuffix("</keep>") if "<keep>" in part else part


def follow(parts: list[str], text: str) -> bool:
    """Whether these are in the text, one behind the other."""
    at = 0
    for part in parts:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


@given(PARTS, st.randoms(use_true_random=False), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_what_must_stay_stays_and_the_rest_in_order(
    parts: list[str], drawn: random.Random, share: float
) -> None:
    words = Words(" ".join(parts) + ASKED)
    gone = set(drawn.sample(words.free, int(share * len(words.free))))
    left = words.without(sorted(gone))
    special = [shown(part).strip() for part in parts if part[0] in '`"“<\n「«' and part.strip()]
    assert follow([*special, ASKED.strip()], left)
    stays = [words[n] for n in words.free if n not in gone]
    assert follow([words.text[word.start : word.end] for word in stays], left)
    left.encode()  # no half characters
    if not gone:
        assert left == words.text


@given(PARTS, st.floats(0.3, 0.95))
@settings(max_examples=60, deadline=None)
def test_as_little_goes_as_meets_the_goal(parts: list[str], ratio: float) -> None:
    words = Words(" ".join(parts) + ASKED)
    goal = int(ratio * len(words.text))

    async def count(text: str) -> int:
        return len(text)

    found = asyncio.run(cut(words, words.free, goal, count))
    assert found.tokens == len(found.text)
    if found.words == len(words.free):
        return  # more may not go
    assert found.tokens <= goal or not found.words
    if found.words:
        less = words.without(words.free[: found.words - 1])
        assert len(less) > goal or len(found.text) >= goal - 1


@pytest.mark.parametrize(
    ("text", "gone", "left"),
    [
        ("One two three. Four five.", ["three"], "One two. Four five."),
        ("One two, three. Four.", ["three"], "One two. Four."),
        ("One two. Four five.", ["Four", "five"], "One two."),
        ("One (two three) four.", ["two"], "One (three) four."),
        ("One (two three) four.", ["two", "three"], "One four."),
        ("One two.\n\nFour five.", ["Four"], "One two.\n\nfive."),
        ("One two.\n\nFour.\n\nSix seven.", ["Four"], "One two.\n\nSix seven."),
        ("One, two, three", ["two"], "One, three"),
        ("Is it? Two three!", ["it"], "Is? Two three!"),
        ("我们去。", ["们"], "我去。"),
    ],
)
def test_sentences_and_paragraphs_still_end(text: str, gone: list[str], left: str) -> None:
    words = Words(f"{'x ' * 80}y\n\n{text}\n\n{'x ' * 80}y{ASKED}")
    numbers = [n for n in words.free if words.text[words[n].start : words[n].end] in gone]
    assert len(numbers) == len(gone)
    assert words.without(numbers) == words.text.replace(text, left)


@pytest.mark.parametrize(
    "word",
    ["2015", "COVID-19", "U.S.", "not", "isn't", "a@b.org", "f(x)", "https://x.y", "🎉", "ภาษาไทย"],
)
def test_numbers_addresses_symbols_and_denials_stay(word: str) -> None:
    words = Words(f"{'x ' * 80}{word} {'x ' * 80}{ASKED}")
    assert word in words.without(words.free)


def test_a_word_that_is_joined_to_what_stays_stays() -> None:
    words = Words(f"{'x ' * 80}pre<b>fix</b>ed {'x ' * 80}{ASKED}")
    assert "pre<b>fix</b>ed" in words.without(words.free)


def test_a_name_has_a_capital_amid_a_sentence() -> None:
    words = Words(f"{'x ' * 80}. Then Ada Lovelace went. Home again. {'x ' * 80}{ASKED}")
    names = [words.text[words[n].start : words[n].end] for n in words.free if words[n].name]
    assert names == ["Ada", "Lovelace"]
