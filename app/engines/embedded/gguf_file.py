"""What a GGUF file holds: metadata as plain Python values, tensors dequantised one at a time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor


def read_gguf_metadata(path: str | Path) -> dict[str, Any]:
    """Every key of the file's header; arrays are lists, strings are str; no tensor is loaded.

    Raises FileNotFoundError, and ValueError where the file is no GGUF.
    """
    return GGUFFile(path).metadata


class GGUFFile:
    """An open GGUF file. Tensor data stays on disk (memory-mapped) until `tensor` asks for it."""

    def __init__(self, path: str | Path) -> None:
        """Read the header. Raises FileNotFoundError, and ValueError where the file is no GGUF."""
        self.path = Path(path)
        reader = _open(self.path)
        self.metadata: dict[str, Any] = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")  # the reader's own: version and counts
        }
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    @property
    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def tensor(self, name: str) -> Tensor:
        """The named tensor as fp32 `[out, in]` or `[n]`, in memory of its own.

        Raises KeyError for an unknown name, ValueError for a quantisation gguf cannot undo.
        """
        stored = self._tensors[name]
        try:
            values = gguf.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError as error:
            kind = stored.tensor_type.name
            raise ValueError(f"{self.path}: tensor {name!r} has type {kind}: {error}") from error
        # A copy: an unquantised tensor would otherwise be a read-only view of the file.
        return torch.from_numpy(np.array(values, dtype=np.float32))


def _open(path: Path) -> gguf.GGUFReader:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        # What the reader raises on foreign, truncated or corrupt bytes is not one type.
        raise ValueError(f"{path}: not a readable GGUF file: {error}") from error
