"""What a Hugging Face model folder holds: config.json, and safetensors in one file or in shards."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


class SafetensorsFolder:
    """An open model folder. Tensor data stays on disk until `tensor` asks for it."""

    def __init__(self, path: str | Path) -> None:
        """Read config.json and the tensors' names.

        Raises FileNotFoundError, and ValueError where a file is not what its name says.
        """
        self.path = Path(path)
        config = self.path / "config.json"
        try:
            self.config: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{config}: not readable JSON: {error}") from error
        files = sorted(self.path.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{self.path}: no *.safetensors file")
        # The names are asked of the shards themselves; the index file says nothing more.
        self._file_of = {name: file for file in files for name in _names(file)}

    @property
    def names(self) -> Iterable[str]:
        return self._file_of.keys()

    def tensor(self, name: str) -> Tensor:
        """The named tensor as fp32 in memory of its own. Raises KeyError for an unknown name."""
        with safe_open(self._file_of[name], framework="pt") as file:
            stored: Tensor = file.get_tensor(name)
        return stored.to(torch.float32)


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise ValueError(f"{file}: not a readable safetensors file: {error}") from error
