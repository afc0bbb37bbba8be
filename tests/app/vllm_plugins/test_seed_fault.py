"""Seeded rows amid their prompts: what vLLM's runner does with their generators, and ours."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

NAME = "app.vllm_plugins.seed_fault"
Load = Callable[..., tuple[Any, Any]]


class Runner:
    """A batch with a generator a row, of which rows 0 and 2 are amid their prompts."""

    def __init__(self, unread: tuple[int, ...] = (0, 2)) -> None:
        self.generators = {row: torch.Generator().manual_seed(row) for row in (0, 1)}
        self.input_batch = SimpleNamespace(num_reqs=3, generators=self.generators)
        mask = np.zeros(5, dtype=bool)
        mask[[*unread, 4]] = True  # what an earlier, larger batch left behind
        self.discard_request_mask = SimpleNamespace(np=mask)

    def sample_tokens(self, grammar: Any) -> list[int | None]:
        """As vLLM does it: all rows draw, and the generators of some are turned back."""
        drawn = [self.draw(row) for row in range(3)]
        for row in np.nonzero(self.discard_request_mask.np[:3])[0]:
            generator = self.input_batch.generators.get(int(row))
            if generator is not None:
                generator.set_offset(generator.get_offset() - 4)
            drawn[row] = None
        return drawn

    def draw(self, row: int) -> int | None:
        generator = self.input_batch.generators.get(row)
        return int(torch.randint(2**31, (1,), generator=generator))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports the module anew, into this version of vLLM, with a runner class of its own."""

    def load(version: str = "0.32.0", there: bool = True) -> tuple[Any, Any]:
        runner = type("CPUModelRunner", (Runner,), {})
        names = ["vllm", "vllm.v1", "vllm.v1.worker", "vllm.v1.worker.cpu_model_runner"]
        modules = {name: ModuleType(name) for name in names}
        modules["vllm"].__dict__["__version__"] = version
        if there:
            modules[names[-1]].__dict__["CPUModelRunner"] = runner
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, NAME, raising=False)
        return import_module(NAME), runner

    yield load
    sys.modules.pop(NAME, None)


def first(seed: int) -> int:
    return int(torch.randint(2**31, (1,), generator=torch.Generator().manual_seed(seed)))


def test_a_row_amid_its_prompt_draws_nothing_of_its_seed(load: Load) -> None:
    fault, kind = load()
    with pytest.raises(RuntimeError, match="offset"):
        kind().sample_tokens(None)  # vLLM's own
    fault.mend(torch.device("cpu"))
    runner = kind()
    for _ in range(3):  # pieces
        assert runner.sample_tokens(None)[0] is None
    runner.discard_request_mask.np[:] = False
    assert runner.sample_tokens(None)[0] == first(0)


def test_other_rows_draw_as_ever(load: Load) -> None:
    fault, kind = load()
    fault.mend("cpu")
    runner = kind()
    given = dict(runner.generators)
    assert runner.sample_tokens(None)[1] == first(1)
    assert runner.input_batch.generators is runner.generators
    assert runner.generators == given
    alone = kind(unread=(0, 1, 2))
    alone.generators.clear()
    assert alone.sample_tokens(None) == [None] * 3


def test_a_step_that_fails_loses_no_generator(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, kind = load()
    fault.mend("cpu")
    runner = kind()
    monkeypatch.setattr(runner, "draw", lambda row: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        runner.sample_tokens(None)
    assert sorted(runner.generators) == [0, 1]


def test_it_is_mended_once(load: Load) -> None:
    fault, kind = load()
    fault.mend("cpu")
    mended = kind.sample_tokens
    fault.mend("cpu")
    assert kind.sample_tokens is mended


@pytest.mark.parametrize(("version", "device"), [("0.33.0", "cpu"), ("0.32.0", "cuda:0")])
def test_elsewhere_nothing_is_touched(load: Load, version: str, device: str) -> None:
    fault, kind = load(version)
    fault.mend(torch.device(device))
    assert kind.sample_tokens is Runner.sample_tokens


def test_a_vllm_that_is_not_what_we_know_is_left_to_itself(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    fault, _ = load(there=False)
    with caplog.at_level(logging.ERROR, "vllm.farthing"):
        fault.mend("cpu")
    assert "may end this server" in caplog.text
