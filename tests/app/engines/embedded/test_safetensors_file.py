"""A file written tensor by tensor is the file that safetensors reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.engines.embedded.safetensors_file import SafetensorsFile

TENSORS = {
    "a.levels": torch.tensor([[-127, 3, 127]], dtype=torch.int8),
    "b.bf16": torch.tensor([1.5, -2.0, 1e30], dtype=torch.bfloat16),
    "c.fp32": torch.arange(12.0).view(4, 3).T,  # not contiguous
}
DECLARED = {name: (tensor.dtype, tensor.shape) for name, tensor in TENSORS.items()}


def test_tensors_of_all_widths_are_read_as_they_were_put(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with SafetensorsFile(path, DECLARED) as file:
        sizes = [file.put(name, tensor) for name, tensor in TENSORS.items()]
    assert sizes == [3, 6, 48]
    assert file.size == path.stat().st_size
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_each_tensor_begins_at_a_multiple_of_its_item(tmp_path: Path) -> None:
    """Our reader does not mind, but others map the file and take a tensor where it lies."""
    path = tmp_path / "model.safetensors"
    for count in range(1, 9):  # of characters in a name, so that headers of all lengths are met
        declared = {name * count: kind for name, kind in DECLARED.items()}
        with SafetensorsFile(path, declared) as file:
            for name, tensor in TENSORS.items():
                file.put(name * count, tensor)
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        for name, (dtype, _) in declared.items():
            assert (8 + length + header[name]["data_offsets"][0]) % dtype.itemsize == 0


def test_what_was_not_declared_is_refused(tmp_path: Path) -> None:
    with SafetensorsFile(tmp_path / "one", {"x": (torch.int8, torch.Size((2,)))}) as file:
        with pytest.raises(KeyError):
            file.put("y", torch.zeros(2))
        with pytest.raises(ValueError, match=r"'x' was declared as torch.int8 \[2\]"):
            file.put("x", torch.zeros(2))
        file.put("x", torch.zeros(2, dtype=torch.int8))


def test_a_tensor_that_nobody_put_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"nothing was put into tensor 'b.bf16'"),
        SafetensorsFile(tmp_path / "two", DECLARED) as file,
    ):
        file.put("a.levels", TENSORS["a.levels"])
        file.put("c.fp32", TENSORS["c.fp32"])
    with (  # an error of the writer's own is not hidden behind that
        pytest.raises(KeyboardInterrupt),
        SafetensorsFile(tmp_path / "three", DECLARED),
    ):
        raise KeyboardInterrupt
