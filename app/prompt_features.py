"""Light features of a prompt's text, and a classifier by them: microseconds, without a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator

from app.types import Call, Message

_MOST = 2000  # characters that are looked at: half from the beginning, half from the end
_NUMBER = re.compile(r"\d[\d,.]*")
_OPTION = re.compile(r"^\s*[A-H][.)] ", re.MULTILINE)
# Stems, as they begin words of a text in small letters whose lines are one: to count them costs a
# tenth of what a regular expression does.
_STEMS: Mapping[str, tuple[str, ...]] = {
    "asks": ("?",),
    "how_many": (
        *(" how many", " how much", " how long", " how far", " how old", " total", " each"),
    ),
    "writes": (" write", " compose", " draft", " story", " poem", " essay", " email", " letter"),
    "explains": (" explain", " why", " how does ", " describe", " compare"),
    "shortens": (" summar", " short", " in one sentence"),
    "text": (" passage", " context", " paragraph", " article", " text above"),
    "forms": (" json", " yaml", " table", " list", " bullet"),
    "steps": (" step by step", " show your work", " show your steps", " prove"),
}
_CODE = (" def ", " class ", " return ", " import ")
_SIGNS = "=+*/^%$<>"
FEATURES = (
    *("length", "words", "lines", "turns", "ends_asking"),
    *("numbers", "operators", "code", "options"),
    *_STEMS,
)
"""Their names, in order. Counts are log(1 + n)."""


def features(text: str, turns: int = 1) -> tuple[float, ...]:
    """Of this text, in the order of FEATURES. `turns`: messages of the chat."""
    seen = text if len(text) <= _MOST else text[: _MOST // 2] + text[-_MOST // 2 :]
    line = f" {seen.lower()} ".replace("\n", " ")
    code = seen.count("```") + seen.count(";\n") + seen.count("{\n") + sum(map(line.count, _CODE))
    counts = (
        *(len(text), seen.count(" ") + 1, seen.count("\n"), turns - 1),
        len(_NUMBER.findall(seen)),
        sum(map(seen.count, _SIGNS)),
        code,
        len(_OPTION.findall(seen)),
        *(sum(map(line.count, stems)) for stems in _STEMS.values()),
    )
    found = list(map(math.log1p, counts))
    found.insert(4, float(seen.rstrip().endswith("?")))
    return tuple(found)


def text_of(messages: Sequence[Message]) -> str:
    """What the messages say: their text parts, one below the other."""
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, Sequence):
            parts = (part.get("text") for part in content if isinstance(part, Mapping))
            texts += [part for part in parts if isinstance(part, str)]
    return "\n".join(texts)


def features_of(call: Call) -> tuple[float, ...]:
    """Of what this call asks; a prompt of token ids counts as one without text."""
    if call.prompt is None:
        return features(text_of(call.messages), len(call.messages))
    return features(call.prompt if isinstance(call.prompt, str) else "")


class Classifier(BaseModel):
    """Multinomial logistic regression: softmax of bias + weights * (features - mean) / scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: tuple[str, ...]
    classes: tuple[str, ...]
    mean: tuple[FiniteFloat, ...]  # of each feature
    scale: tuple[FiniteFloat, ...]  # of each feature; none is 0
    weights: tuple[tuple[FiniteFloat, ...], ...]  # of each class, of each feature
    bias: tuple[FiniteFloat, ...]  # of each class
    accuracy: FiniteFloat | None = None  # on prompts that it was not fitted to; None: not known
    usual: FiniteFloat | None = None  # of who always says the class that is most of them

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.features != FEATURES:
            raise ValueError("it is by other features than this version's: calibrate anew")
        many, each = len(self.classes), len(self.features)
        shapes = (len(self.mean), len(self.scale), *map(len, self.weights))
        if many < 1 or len(self.weights) != many or len(self.bias) != many:
            raise ValueError("weights and bias must have a row for each class")
        if any(shape != each for shape in shapes):
            raise ValueError("mean, scale and weights must have a value for each feature")
        if not all(self.scale):
            raise ValueError("scale must not be 0")
        return self

    def probabilities(self, found: Sequence[float]) -> dict[str, float]:
        """How likely each class is, by features in the order of FEATURES; they sum to 1."""
        pairs = zip(found, self.mean, self.scale, strict=True)
        plain = [(value - mean) / scale for value, mean, scale in pairs]
        logits = [
            bias + sum(map(float.__mul__, row, plain))
            for bias, row in zip(self.bias, self.weights, strict=True)
        ]
        top = max(logits)
        raised = [math.exp(logit - top) for logit in logits]
        total = sum(raised)
        return {name: one / total for name, one in zip(self.classes, raised, strict=True)}
