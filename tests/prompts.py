"""Prompts for tests on real models: twenty of our own, and more where FARTHING_DATA has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.settings import Settings

OWN = (
    "Why is the sky blue?",
    "Write a limerick about a lighthouse keeper who is afraid of the dark.",
    "What is 17 times 23? Show your steps.",
    "Explain recursion to a ten-year-old.",
    "List five countries in South America and their capitals.",
    "Translate 'Where is the train station?' into French, German and Spanish.",
    "def fibonacci(n):\n    # finish this function\n",
    "Summarise in one sentence: The cat sat on the mat, looked at the bird, and fell asleep.",
    "What are three differences between a virus and a bacterium?",
    "Give me a recipe for pancakes without eggs.",
    "Who wrote 'Pride and Prejudice', and when was it published?",
    "Turn this into JSON: name is Ada, age is 36, languages are Python and C.",
    "Tell me a very short story that begins with 'The door was already open.'",
    "How does a bicycle stay upright?",
    "Write an SQL query that counts the orders of each customer.",
    "What should I see in Lisbon in two days?",
    "Complete the sequence and say why: 2, 6, 12, 20, 30, ...",
    "Is it ever right to lie? Argue both sides in a few sentences.",
    "Correct the grammar: 'She don't has no idea where them keys is.'",
    "What happens to water when it freezes? 🧊 Antworte bitte auf Deutsch.",
)


def further() -> list[str]:
    """First turns of the questions in FARTHING_DATA; the test is skipped without them."""
    file = (Settings().data or Path()) / "mt_bench.jsonl"
    if not file.exists():
        pytest.skip("FARTHING_DATA names no folder with mt_bench.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["turns"][0] for line in lines]
