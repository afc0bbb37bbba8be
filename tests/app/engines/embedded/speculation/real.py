"""The default model and its small one, and prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.catalog import read
from app.downloads import local_path
from app.engines.embedded.model import Decoder
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.speculation.guessing import DraftModel
from app.engines.embedded.tokenizer import tokenizer_from_metadata
from app.engines.embedded.weights import GGUFFile, load
from app.nets.acceptance_head import HEAD, AcceptanceHead
from app.prompt_files import read_prompts
from app.settings import DEFAULT_CONFIG, Settings
from tests.app.engines.embedded.rig import Rig
from tests.app.engines.embedded.speculation.duo import DRAFT, RULES, Duo, Precision
from tests.prompts import OWN

ASKED = [
    *(("model", rule) for rule in RULES),
    *(("both", rule) for rule in RULES),
    ("look-up", "fixed"),
]
"""Every drafter with every length rule."""


def real(gguf: Path, precision: Precision) -> Duo:
    """The model in this precision; the small one in int8, as it is served, with its head."""
    file = GGUFFile(gguf)
    target = Rig(Decoder(*load(file), precision), tokenizer_from_metadata(file.metadata), [])
    folder = local_path(read(DEFAULT_CONFIG).models["smollm2-tiny"], Settings().models_dir)
    decoder = Decoder(*load(folder, gguf), "int8")
    head = AcceptanceHead.load(folder / HEAD)
    return Duo(target, DraftModel(DRAFT, decoder, decoder.kv_memory(2**30, 0), head))


def chats(pair: Duo, prompts: Sequence[str]) -> list[list[int]]:
    """The ids of these prompts, each as a chat of one message."""
    return [pair.target.tokenizer.chat([{"role": "user", "content": text}]) for text in prompts]


def many(count: int) -> list[str]:
    """So many prompts of all categories of Spec-Bench; of our own where it is not there."""
    file = (Settings().data or Path()) / "spec_bench.jsonl"
    found = [prompt.asked for prompt in read_prompts(file)] if file.is_file() else list(OWN)
    count = min(count, len(found))
    return [found[number * len(found) // count] for number in range(count)]


def ids(sequences: Sequence[RunningSequence]) -> list[list[int]]:
    """What each has written."""
    return [sequence.tokens[sequence.prompt_length :] for sequence in sequences]
