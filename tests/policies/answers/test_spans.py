"""What of a text stays, whatever is left out of it."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.answers.cutting import Words
from policies.answers.spans import pieces, prose

PROSE = "Some words that anybody may leave out of this long text without much harm done. " * 6
MIDDLE = "without much harm done. Some words that anybody may leave out"
ASKED = "\n\nWhat is it?"


def kept(text: str) -> list[str]:
    return [piece.text for piece in pieces(text) if piece.kept]


@pytest.mark.parametrize(
    "span",
    [
        "`inline code`",
        "``with a ` tick``",
        '"what they said"',
        "“what they said”",
        "„was sie sagten“",
        "«ce qu'ils disent»",
        "»was sie sagten«",
        "‘what they’re saying’",
        "'what they're saying'",
        "「彼らの言葉」",
        "<b class='x y'>",
        "$$ a + b $$",
        "\\(a + b\\)",
        "<pre>a b\n\n c</pre>",
    ],
)
def test_a_span_amid_words_stays_as_it_is(span: str) -> None:
    assert span in kept(f"{PROSE}and {span} too. {PROSE}{ASKED}")


@pytest.mark.parametrize(
    "block",
    [
        "```python\ndef f(x):\n\n    return x\n```",
        "~~~\na b c\n```\n~~~",
        "```\nnever closed\n\nto the end",
        "def f(x):\n    return x",
        "# A heading of words",
        "| a cell | another cell |",
        "Some context:",
    ],
)
def test_a_block_between_paragraphs_stays_as_it_is(block: str) -> None:
    text = f"{PROSE}\n\n{block}\n\n{PROSE}{ASKED}"
    assert block in "".join(kept(text))


def test_an_open_quotation_goes_to_its_paragraph_s_end() -> None:
    text = f'{PROSE}\n\n"It goes on. {PROSE}\n\n"And ends." {PROSE}{ASKED}'
    assert kept(text)[0] == f'"It goes on. {PROSE}'


@pytest.mark.parametrize(
    "words", ['a 12" wide one and a 14" one', "don't and can't, the boys' toys"]
)
def test_inches_and_apostrophes_open_nothing(words: str) -> None:
    assert kept(f"{PROSE}{words}. {PROSE}{ASKED}") == [ASKED.strip()]


def test_marks_are_taken_out_and_what_is_between_them_stays() -> None:
    text = f"{PROSE}<keep>not a word of this</keep> {PROSE}{ASKED}"
    assert "not a word of this" in kept(text)
    assert "keep>" not in Words(text).text


@pytest.mark.parametrize("text", ["```\n<keep>a</keep>\n```", "`<keep>a</keep>`", "a <keep> b"])
def test_in_code_and_alone_they_are_text_like_any_other(text: str) -> None:
    assert Words(text).text == text


def test_marks_in_the_question_are_taken_out_too() -> None:
    assert Words(f"{PROSE}\n\nWhat is <keep>it</keep>?").text.endswith("\n\nWhat is it?")


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (f"{PROSE}\n\nSum it up in a line.", "Sum it up in a line."),
        (f"{PROSE}Who did it? Answer briefly.", "Who did it? Answer briefly."),
        (f"{PROSE}\nQuestion: who did it?\nAnswer:", "Question: who did it?\nAnswer:"),
        (f"Who did it?\n\n{PROSE}", "Who did it?"),
        (f"Sum it up: this is it.\n\n{PROSE}", "Sum it up: this is it."),
        (f"Sum it up. {PROSE}", "Sum it up. "),
        (f"{PROSE} 谁做的？", "谁做的？"),
    ],
)
def test_what_is_asked_stays(text: str, asked: str) -> None:
    assert asked in "".join(kept(text))
    assert MIDDLE not in "".join(kept(text))  # and not all else with it


@given(st.text(max_size=400))
@example("<keep></keep>")
@example("``` \n<keep>\n```</keep>")
@settings(max_examples=60, deadline=None)
def test_pieces_are_the_text(text: str) -> None:
    joined = "".join(piece.text for piece in pieces(text))
    assert joined == text or "<keep>" in text


@given(st.lists(st.sampled_from(["<keep>", "</keep>", "`", '"', "“", "'", "\n\n", "a ", "<", "?"])))
@settings(max_examples=60, deadline=None)
def test_whatever_is_opened_and_closed_nothing_but_marks_is_lost(parts: list[str]) -> None:
    text = "".join(parts)
    joined = "".join(piece.text for piece in pieces(text))
    lost = len(text) - len(joined)
    assert lost % len("<keep></keep>") == 0
    assert joined.replace("<keep>", "").replace("</keep>", "") == text.replace(
        "<keep>", ""
    ).replace("</keep>", "")


@pytest.mark.parametrize(
    "bad",
    ["<keep>", "`x", "'a ", '"a ', "<a ", "```\n", "$$ ", "? ", "\n \n", "~~~~ x\n", "(", "."],
)
def test_what_opens_and_never_closes_takes_no_time(bad: str) -> None:
    began = time.process_time()
    Words(bad * 20_000)
    assert time.process_time() - began < 5  # squared it would be minutes


def test_prose_is_told_from_what_else_tools_give_back() -> None:
    assert prose(PROSE)
    assert not prose('{"answer": "a text of several words in an object of JSON"}')
    assert not prose("name size\na.py 12\nb.py 14\n")
    assert not prose("")
