"""Questions padded to a length, and ROUGE-L of what is known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.bench.padded import Padded, padded, rouge_l, template_opening
from app.bench.reading import Measured, Weights
from tests.app.engines.embedded.tiny import write_model

OWN = "The bridge was built by Ada Quill in 1804."
QUESTION = {"context": OWN, "question": "Who built it?", "answers": ["Ada Quill", "Quill"]}
OTHERS = [f"Paragraph {n} tells of a river, a mill and {n} boats." for n in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = write_model(tmp_path_factory.mktemp("tiny"))
    return Measured.load(Weights("tiny", folder, None, "fp32"))


def text(model: Measured, found: Padded) -> str:
    return b"".join(map(model.tokenizer.piece, found.ids)).decode()


@pytest.mark.parametrize("tokens", [330, 400, 500, 1500])
def test_a_prompt_is_of_about_the_length_and_never_longer(model: Measured, tokens: int) -> None:
    for seed in range(8):
        found = padded(model, QUESTION, [*OTHERS, OWN], tokens, seed)
        assert tokens - 20 <= len(found.ids) <= tokens  # a word or two, and a twentieth
        said = text(model, found)
        assert said.count(OWN) == 1
        assert "Question: Who built it?\n" in said
        assert found.right == ("Ada Quill", "Quill")
        assert found.reference == tuple(model.tokenizer.encode(" Ada Quill"))


def test_where_the_context_stands_is_drawn_by_the_seed(model: Measured) -> None:
    def places(seeds: Sequence[int]) -> list[int]:
        return [text(model, padded(model, QUESTION, OTHERS, 1000, s)).index(OWN) for s in seeds]

    assert places(range(8)) == places(range(8))
    assert min(places(range(8))) < 250 < 500 < max(places(range(8)))


def test_a_question_alone_may_be_too_long(model: Measured) -> None:
    with pytest.raises(ValueError, match=r"a question of \d+ tokens does not fit 100"):
        padded(model, QUESTION, OTHERS, 100, 0)


def test_others_that_hold_too_little_leave_it_shorter(model: Measured) -> None:
    found = padded(model, QUESTION, [*OTHERS[:2], OWN], 1000, 0)
    assert len(found.ids) < 400
    assert all(other in text(model, found) for other in OTHERS[:2])


def test_the_template_before_what_is_said(model: Measured) -> None:
    opening = template_opening(model)
    assert model.chat("Hello")[:opening] == model.tokenizer.continued("<|im_start|>user\n")


@pytest.mark.parametrize(
    ("said", "reference", "score"),
    [
        ("police kill the gunman", "police killed the gunman", 3 / 4),  # Lin's own example
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("the cat", "the cat sat on the mat", 2 * 2 / 8),
        ("The Cat, sat.", "the cat sat", 1),
        ("a b c", "c b a", 1 / 3),
        ("dog", "cat", 0),
        ("", "cat", 0),
    ],
)
def test_rouge_l(said: str, reference: str, score: float) -> None:
    assert rouge_l(said, reference) == pytest.approx(score)
