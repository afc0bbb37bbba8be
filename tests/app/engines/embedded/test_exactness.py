"""The real model in fp32 writes what transformers' writes; in int8, what it writes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.engines.embedded.linear import Precision
from app.engines.embedded.model import Decoder
from app.engines.embedded.scheduler import Scheduler
from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.tokenizer import tokenizer_from_metadata
from app.engines.embedded.weights import GGUFFile, load
from app.settings import Settings
from app.types import Call, Sampling
from tests.prompts import OWN, further

pytestmark = pytest.mark.model
TOKENS = 64
TIE = 1e-4  # where the two best logits are this close, rounding decides


class Ours:
    """The default model in one precision, driven through its scheduler."""

    def __init__(self, path: Path, precisions: Sequence[Precision]) -> None:
        file = GGUFFile(path)
        self.tokenizer = tokenizer_from_metadata(file.metadata)
        config, weights = load(file)
        self.decoders = {each: Decoder(config, weights, each) for each in precisions}

    def ids(self, prompt: str) -> list[int]:
        return self.tokenizer.chat([{"role": "user", "content": prompt}])

    def answers(
        self, precision: Precision, prompts: Sequence[str], together: int, prefixes: bool = False
    ) -> list[RunningSequence]:
        """Greedy answers of TOKENS tokens, `together` at a time, through one scheduler."""
        decoder = self.decoders[precision]
        memory = decoder.kv_memory(2**30, 2**30 if prefixes else 0)
        scheduler = Scheduler(decoder, memory, max_running=together)
        sampling = Sampling(temperature=0, ignore_eos=True, logprobs=0)
        call = Call("model", sampling=sampling)
        sequences = []
        for prompt in prompts:
            sequences.append(RunningSequence(call, self.ids(prompt), TOKENS, self.tokenizer))
            scheduler.submit(sequences[-1])
        while not all(sequence.finished for sequence in sequences):
            assert scheduler.step()
        return sequences


def written(sequence: RunningSequence) -> list[int]:
    return sequence.tokens[sequence.prompt_length :]


def logprobs(sequence: RunningSequence) -> list[float | None]:
    return [token.logprob for chunk in sequence.outbox for token in chunk.tokens]


@pytest.fixture(scope="module")
def ours(smollm2_gguf: Path) -> Ours:
    return Ours(smollm2_gguf, ("fp32", "int8"))


@pytest.fixture(scope="module")
def reference(smollm2_gguf: Path) -> Iterator[Any]:
    yield AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    )


def differences(reference: Any, sequence: RunningSequence) -> tuple[int, int]:
    """How many tokens differ from the reference's greedy choice after the same tokens: where its
    two best logits tie, and elsewhere."""
    with torch.inference_mode():
        logits = reference(torch.tensor([sequence.tokens])).logits[0]
    ties = others = 0
    for at in range(sequence.prompt_length, len(sequence.tokens)):
        best = logits[at - 1].topk(2)
        if int(best.indices[0]) != sequence.tokens[at]:
            tie = float(best.values[0] - best.values[1]) <= TIE
            ties, others = ties + tie, others + (not tie)
    return ties, others


@pytest.mark.parametrize(
    ("count", "together", "prefixes"),
    [
        pytest.param(20, 1, False, id="alone", marks=pytest.mark.slow),  # the others say it too
        pytest.param(6, 1, True, id="prefixes"),
        pytest.param(20, 1, True, id="more prefixes", marks=pytest.mark.slow),
        pytest.param(8, 8, False, id="8"),
        pytest.param(20, 8, False, id="more, 8", marks=pytest.mark.slow),
    ],
)
def test_greedy_fp32_is_that_of_transformers(
    ours: Ours, reference: Any, count: int, together: int, prefixes: bool, record_property: Any
) -> None:
    """On so many prompts of 64 tokens, alone, with prefixes reused, and with 7 others beside it."""
    again = OWN[: count // 5 if prefixes else 0]  # to be found whole
    prompts = [*OWN[:count], *again]
    sequences = ours.answers("fp32", prompts, together, prefixes)
    found = [differences(reference, sequence) for sequence in sequences]
    record_property("ties", sum(ties for ties, _ in found))
    assert sum(others for _, others in found) == 0
    if prefixes:
        assert all(sequence.outbox[0].usage.cached > 0 for sequence in sequences[1:])


def test_greedy_fp32_is_what_transformers_generate_writes(ours: Ours, reference: Any) -> None:
    """Token for token as its own loop writes, with its own cache."""
    (sequence,) = ours.answers("fp32", OWN[:1], 1)
    ids = torch.tensor([ours.ids(OWN[0])])
    generated = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=TOKENS,
        max_new_tokens=TOKENS,
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()
    assert generated == written(sequence)


@pytest.mark.parametrize("count", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_int8_is_bitwise_the_same_alone_and_with_seven_others(ours: Ours, count: int) -> None:
    alone = ours.answers("int8", OWN[:count], 1)
    batch = ours.answers("int8", OWN[:count], 8)
    for one, other in zip(alone, batch, strict=True):
        assert written(one) == written(other)
        assert logprobs(one) == logprobs(other)


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 8])
def test_greedy_fp32_is_that_of_transformers_on_further_prompts(
    ours: Ours, reference: Any, together: int
) -> None:
    sequences = ours.answers("fp32", further(), together)
    assert sum(differences(reference, sequence)[1] for sequence in sequences) == 0


@pytest.mark.slow
def test_a_real_qwen2_writes_what_transformers_does() -> None:
    """For a hand that put qwen2*0.5b*.gguf (Qwen2.5-Coder-0.5B-Instruct) into FARTHING_DATA."""
    folder = Settings().data
    found = list(folder.glob("qwen2*0.5b*.gguf")) if folder is not None else []
    if not found:
        pytest.skip("there is no qwen2*0.5b*.gguf in FARTHING_DATA")
    qwen = Ours(found[0], ("fp32",))
    reference = AutoModelForCausalLM.from_pretrained(
        found[0].parent, gguf_file=found[0].name, dtype=torch.float32
    )
    for together in (1, 8):
        sequences = qwen.answers("fp32", OWN[:8], together)
        assert sum(differences(reference, sequence)[1] for sequence in sequences) == 0
