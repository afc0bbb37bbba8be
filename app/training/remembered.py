"""The target's hidden states of texts, computed once and kept on disk: a CPU has better to do."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from app.training.inputs import Texts
from app.training.net import Net
from app.training.saving import replace_file

_AT_ONCE = 64  # texts in a file
_WIDE = 16  # texts in a pass


class Remembered:
    """`Known`: reads the states of one text at a time."""

    def __init__(self, files: list[Path], texts: Texts) -> None:
        self._texts = texts
        self._open: list[Any] = [safe_open(path, framework="pt") for path in files]

    def __call__(self, index: int) -> Tensor:
        number, starts = index // _AT_ONCE, self._texts.starts
        begin = int(starts[number * _AT_ONCE])
        rows = slice(int(starts[index]) - begin, int(starts[index + 1]) - begin)
        hidden: Tensor = self._open[number].get_slice("hidden")[rows]
        return hidden


def remember(
    folder: Path, name: str, texts: Texts, net: Net, going: Callable[[int, int], None]
) -> Remembered:
    """Compute what is not there yet; `going` hears how many texts are done, and may raise.

    Raises OSError where the disk has no room for all of it.
    """
    files = [folder / f"{name}-{n:04}.safetensors" for n in range(-(-len(texts) // _AT_ONCE))]
    said = {"texts": texts.digest, "dtype": str(net.embedding.dtype)}
    missing = [number for number, path in enumerate(files) if not _theirs(path, said)]
    item = net.embedding.element_size() * net.config.hidden
    needed = len(missing) * len(texts.ids) * item // max(1, len(files))
    free = shutil.disk_usage(folder).free
    if needed > free:
        why = f"the target's states take {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} are free"
        raise OSError(errno.ENOSPC, why, str(folder))
    for number in missing:
        going(number * _AT_ONCE, len(texts))
        some = range(number * _AT_ONCE, min(len(texts), (number + 1) * _AT_ONCE))
        hidden = torch.cat(_states(texts, some, net))
        replace_file(files[number], save({"hidden": hidden.cpu()}, said))
    going(len(texts), len(texts))
    return Remembered(files, texts)


def _theirs(path: Path, said: Mapping[str, str]) -> bool:
    """Whether the file is there and whole, and of these texts."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}) == said
    except (OSError, SafetensorError):
        return False


@torch.inference_mode()
def _states(texts: Texts, some: range, net: Net) -> list[Tensor]:
    """Hidden states `[length, hidden]` of these texts, in their order."""
    device = net.embedding.device
    order = sorted(some, key=lambda index: len(texts.text(index)))
    found: dict[int, Tensor] = {}
    for at in range(0, len(order), _WIDE):
        chosen = order[at : at + _WIDE]
        each = [texts.text(index) for index in chosen]
        ids = torch.nn.utils.rnn.pad_sequence(each, batch_first=True).to(device)
        for index, text, hidden in zip(chosen, each, net(ids), strict=True):
            found[index] = hidden[: len(text)]
    return [found[index] for index in some]
