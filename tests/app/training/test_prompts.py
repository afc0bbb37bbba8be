"""Files of prompts become chats of the target's, some of them held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.engines.embedded.tokenizer import Tokenizer, load_tokenizer
from app.prompt_files import Prompt, read_prompts
from app.training.prompts import prepare
from tests.app.engines.embedded.tiny import EOS


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return load_tokenizer(tiny_folder)


def written(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ({"prompt": "Why?"}, Prompt("Why?", None)),
        ({"prompt": "Why?", "completion": "So."}, Prompt("Why?", "So.")),
        ({"question": "2+2?", "answer": "4"}, Prompt("2+2?", "4")),
        (
            {"instruction": "Who?", "context": "Ada.", "response": "Ada"},
            Prompt("Who?\n\nAda.", "Ada"),
        ),
        ({"instruction": "Who?", "context": "", "response": "Ada"}, Prompt("Who?", "Ada")),
        ({"original_prompt": "Do it.", "prompt": "wrapped"}, Prompt("Do it.", None)),
        ({"turns": ["First.", "Second."]}, Prompt("First.", None)),
        (
            {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]},
            Prompt("U", None),
        ),
        (
            {"article": "News.", "highlights": "Short."},
            Prompt("Summarize the following article.\n\nNews.", "Short."),
        ),
    ],
)
def test_the_shapes_of_public_sets(tmp_path: Path, line: Any, found: Prompt) -> None:
    assert read_prompts(written(tmp_path / "p.jsonl", line)) == [found]


def test_other_ends_of_lines_are_text(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\r\n\n")
    assert read_prompts(tmp_path / "p.jsonl") == [Prompt(text, None)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "p.jsonl: is empty"),
        (b"\n\n", "p.jsonl: is empty"),
        (b'{"prompt": "a"}\n{', "p.jsonl:2: not readable JSON"),
        (b'{"prompt": "a"}\n[1]', "p.jsonl:2: must be a JSON object"),
        (b'{"text": "a"}', "p.jsonl:1: has none of the fields messages, turns"),
        (b'{"prompt": ""}', "p.jsonl:1: has none of the fields"),
        (b'{"turns": []}', "p.jsonl:1: has none of the fields"),
        (b'{"prompt": "\xff"}', "p.jsonl:1: not readable JSON"),
    ],
)
def test_a_bad_file_names_the_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_prompts(tmp_path / "p.jsonl")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="p.jsonl: no such file"):
        read_prompts(tmp_path / "p.jsonl")


def test_some_are_held_out_and_never_learned(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = [{"prompt": f"Question {n}", "answer": f"{n}"} for n in range(64)]
    found = prepare([written(tmp_path / "p.jsonl", *lines)], tokenizer, 100, EOS)
    learned = {tuple(prompt.tolist()) for prompt, _, _ in found.prompts.rows()}
    held = {tuple(prompt.tolist()) for prompt, _, _ in found.held.rows()}
    assert (len(learned), len(held)) == (60, 4)
    assert not learned & held
    assert {tuple(prompt.tolist()) for prompt, _, _ in found.fixed.rows()} == learned
    assert found.prompts.names == ("p",)


def test_a_prompt_is_the_chat(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = written(tmp_path / "p.jsonl", {"prompt": "Why?", "answer": "So."})
    found = prepare([path], tokenizer, 100, EOS)
    chat = tokenizer.chat([{"role": "user", "content": "Why?"}])
    assert found.prompts.prompt(0).tolist() == chat
    assert found.fixed.text(0).tolist() == [*chat, *b"So.", EOS]
    opening, closing = found.opening.tolist(), found.closing.tolist()
    assert [*opening, *b"Why?", *closing] == chat


def test_long_prompts_lose_their_end_and_not_the_template(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = written(tmp_path / "p.jsonl", {"article": "x" * 5000})
    found = prepare([path], tokenizer, 200, EOS)
    ids = found.prompts.prompt(0).tolist()
    assert 150 < len(ids) <= 200
    assert ids[-len(found.closing) :] == found.closing.tolist()


def test_files_are_groups(tmp_path: Path, tokenizer: Tokenizer) -> None:
    one = written(tmp_path / "one.jsonl", {"prompt": "a"})
    two = written(tmp_path / "two.jsonl", *[{"prompt": "b"}] * 3)
    found = prepare([one, two], tokenizer, 100, EOS)
    assert found.prompts.groups.tolist() == [0, 1, 1, 1]
    assert found.prompts.names == ("one", "two")
