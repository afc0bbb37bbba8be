"""Writes a safetensors file one tensor at a time, so that a model need not fit into memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}


class SafetensorsFile:
    """A file whose tensors are declared first, and then put into it in any order."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, torch.Size]]) -> None:
        """Write the header of these tensors, each a dtype and a shape."""
        # Readers want each tensor at a multiple of its item's size: the wide ones go first.
        names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._left: dict[str, tuple[int, torch.dtype, torch.Size]] = {}
        end = 0
        for name in names:
            dtype, shape = tensors[name]
            start, end = end, end + dtype.itemsize * shape.numel()
            header[name] = {
                "dtype": _DTYPES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
            self._left[name] = start, dtype, shape
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.size = 8 + len(text) + end
        self._data = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None and self._left:
            raise ValueError(f"nothing was put into tensor {min(self._left)!r}")

    def put(self, name: str, tensor: Tensor) -> int:
        """Write a tensor that was declared, once; returns how many bytes it takes."""
        start, dtype, shape = self._left[name]
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            raise ValueError(f"tensor {name!r} was declared as {dtype} {list(shape)}")
        del self._left[name]
        # As bytes, for numpy knows no bf16.
        self._file.seek(self._data + start)
        return self._file.write(tensor.contiguous().view(torch.uint8).numpy().data)
