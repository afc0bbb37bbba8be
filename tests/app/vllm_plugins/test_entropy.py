"""The processor as vLLM sees it, with a vLLM of straw around it."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from app import vllm_plugins as plugins
from app.vllm_plugins import asks
from app.vllm_plugins.channel import Receiver
from tests.app.vllm_plugins.test_rows import STOP, VOCABULARY, Change, sure

Load = Callable[..., Any]
STOPPING = {
    asks.CALL: "c", asks.LEVEL: 4.0, asks.RISING: 1, asks.WINDOW: 1, asks.STOP_ID: STOP,
}  # fmt: skip


class Runner:
    """As much of vLLM's model runner as is replaced where requests have seeds."""

    def sample_tokens(self, grammar: Any) -> Any:
        """Draws nothing."""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Imports app.vllm_plugins.entropy anew, into this version of vLLM."""

    def load(version: str = "0.32.0", v2: bool = True) -> Any:
        packages = ["vllm", "vllm.v1", "vllm.v1.sample", "vllm.v1.worker", "vllm.v1.worker.gpu"]
        packages.append("vllm.v1.worker.gpu.sample")
        modules = {name: ModuleType(name) for name in packages}
        for name in ("vllm.v1.sample.logits_processor", f"{packages[-1]}.logits_processor"):
            modules[name] = ModuleType(name)
            modules[name].__dict__.update(LogitsProcessor=type("LogitsProcessor", (), {}))
        modules["vllm.v1.sample.logits_processor"].__dict__["BatchUpdate"] = Change
        modules["vllm"].__dict__.update(__version__=version, SamplingParams=SimpleNamespace)
        runner = ModuleType("vllm.v1.worker.cpu_model_runner")
        runner.__dict__["CPUModelRunner"] = type("Runner", (Runner,), {})
        modules[runner.__name__] = runner
        if not v2:
            modules[f"{packages[-1]}.logits_processor"].__dict__.clear()
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        for name in ("app.vllm_plugins.seed_fault", "app.vllm_plugins.entropy"):
            monkeypatch.delitem(sys.modules, name, raising=False)
            monkeypatch.delattr(plugins, name.rpartition(".")[2], raising=False)
        return import_module("app.vllm_plugins.entropy")

    return load


@pytest.fixture(autouse=True)
def _unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(asks.SOCKET_VARIABLE, raising=False)
    yield
    for name in ("app.vllm_plugins.seed_fault", "app.vllm_plugins.entropy"):
        sys.modules.pop(name, None)


def params(extra: Any = None, **keys: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"extra_args": extra, "n": 1, "stop_token_ids": [STOP], "structured_outputs": None} | keys
    )


def processor(entropy: Any, config: Any = None, device: Any = torch.device("cpu")) -> Any:  # noqa: B008
    return entropy.EntropyProcessor(config or SimpleNamespace(), device, False)


def add(made: Any, extra: Any, answer: list[int] | None = None, row: int = 0) -> None:
    made.update_state(Change(added=[(row, params(extra), None, [] if answer is None else answer)]))


def refusal(entropy: Any, given: SimpleNamespace) -> str:
    with pytest.raises(ValueError) as refused:
        entropy.EntropyProcessor.validate_params(given)
    return str(refused.value)


class InputProcessor:
    """What asks a processor to validate, in vLLM's API server."""

    def __init__(self, **config: Any) -> None:
        self.vllm_config = SimpleNamespace(
            **{"speculative_config": None, "use_v2_model_runner": False} | config
        )

    def validate(self, entropy: Any, given: SimpleNamespace) -> str:
        return refusal(entropy, given)


def test_a_hello_is_answered_with_the_marker(load: Load) -> None:
    expected = f"{asks.MARKER} vllm=0.32.7"
    entropy = load("0.32.7")
    assert refusal(entropy, params({asks.HELLO: 1})) == expected
    assert InputProcessor().validate(entropy, params({asks.HELLO: ""} | STOPPING)) == expected


@pytest.mark.parametrize(
    ("version", "config", "why"),
    [
        ("0.33.0", {}, "it knows vLLM 0.32, and this is vLLM 0.33.0"),
        ("0.3.20", {}, "it knows vLLM 0.32"),
        ("0.32.0", {"speculative_config": SimpleNamespace()}, "speculative decoding is on"),
        ("0.32.0", {"use_v2_model_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
    ],
)
def test_where_asks_are_not_honoured_they_are_refused(
    load: Load, version: str, config: dict[str, Any], why: str
) -> None:
    entropy = load(version)
    server = InputProcessor(**config)
    for given in (STOPPING, {asks.CALL: "c"}, {asks.HELLO: 1}):
        message = server.validate(entropy, params(given))
        assert message.startswith("farthing's entropy plugin is off: ")
        assert why in message
        assert asks.MARKER not in message
    entropy.EntropyProcessor.validate_params(params(None))


@pytest.mark.parametrize("given", [None, {}, {"other": 1}, STOPPING, {asks.CALL: "c"}])
def test_what_can_be_done_is_let_pass(load: Load, given: dict[str, Any] | None) -> None:
    load().EntropyProcessor.validate_params(params(given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (params(STOPPING | {asks.WINDOW: 0}), asks.WINDOW),
        (params(STOPPING, stop_token_ids=[1]), "is not among the stop_token_ids"),
        (params(STOPPING, stop_token_ids=None), "is not among the stop_token_ids"),
        (params(STOPPING, n=2), "n = 1"),
        (params(STOPPING, structured_outputs=object()), "structured outputs"),
    ],
)
def test_what_cannot_be_done_is_refused(load: Load, given: Any, message: str) -> None:
    assert message in refusal(load(), given)


def test_it_stops_and_reports(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "socket")
        monkeypatch.setenv(asks.SOCKET_VARIABLE, path)
        receiver = Receiver(path)
        made = processor(load())
        add(made, STOPPING, answer := [])
        for bits, token in ((3, 0), (5, STOP)):
            table = made.apply(sure(bits))
            assert table.argmax(-1).tolist() == [token]
            answer.append(token)
        assert [(s.call, s.token, round(s.bits, 3)) for s in receiver.drain()] == [
            ("c", 0, 3.0), ("c", 1, 5.0),
        ]  # fmt: skip
        receiver.close()
        made.apply(sure(5))  # the reader is gone: nobody notices
        made._sender._socket.close()


def test_it_may_change_which_token_is_likeliest(load: Load) -> None:
    assert processor(load()).is_argmax_invariant() is False


def test_without_asks_logits_are_not_touched(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    entropy = load()
    made = processor(entropy)
    made.update_state(None)
    add(made, None)
    monkeypatch.setattr(entropy.EntropyRows, "apply", lambda *_: pytest.fail("it cost something"))
    table = sure(3)
    assert made.apply(table) is table
    assert torch.equal(table, sure(3))


def test_asks_that_nobody_has_validated_do_no_harm(load: Load) -> None:
    made = processor(load())
    add(made, STOPPING | {asks.LEVEL: "high"})
    assert torch.equal(made.apply(sure(5)), sure(5))


def test_an_error_is_logged_once_and_leaves_the_logits(
    load: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entropy = load()
    made = processor(entropy)
    add(made, STOPPING)
    monkeypatch.setattr("app.vllm_plugins.rows.entropies", lambda logits: 1 / 0)
    for _ in range(3):
        assert torch.equal(made.apply(sure(5)), sure(5))
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "vllm.farthing")


def test_of_two_in_one_engine_the_second_is_idle(load: Load) -> None:
    entropy = load()
    config = SimpleNamespace()
    first, second = processor(entropy, config), processor(entropy, config)
    for made in (first, second):
        add(made, STOPPING | {asks.LEVEL: 9.0})
    table = second.apply(torch.zeros(1, VOCABULARY))
    assert torch.equal(table, torch.zeros(1, VOCABULARY))
    assert first.apply(table)[0, STOP].isinf()
    another = processor(entropy)
    add(another, STOPPING)
    assert another.apply(torch.zeros(1, VOCABULARY)).argmax(-1).tolist() == [STOP]


def test_an_engine_that_is_built_anew_has_a_live_one(load: Load) -> None:
    entropy = load()
    config = SimpleNamespace()
    processor(entropy, config)  # and gone
    made = processor(entropy, config)
    add(made, STOPPING)
    assert made.apply(sure(5)).argmax(-1).tolist() == [STOP]


@pytest.mark.parametrize(("version", "v2"), [("0.33.1", True), ("0.31.0", False)])
def test_in_another_vllm_it_is_inert(load: Load, version: str, v2: bool) -> None:
    made = processor(load(version, v2))
    add(made, STOPPING)
    assert torch.equal(made.apply(sure(5)), sure(5))


def test_runner_v2_takes_it_for_one_of_its_own_that_does_nothing(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(asks.SOCKET_VARIABLE, "socket")
    entropy = load()
    theirs = sys.modules["vllm.v1.worker.gpu.sample.logits_processor"].__dict__["LogitsProcessor"]
    assert issubclass(entropy.EntropyProcessor, theirs)
    made = entropy.EntropyProcessor(SimpleNamespace(), SimpleNamespace(device="cuda"))
    assert made._sender is None
    assert made.add_request(0, params(STOPPING)) is False
    assert torch.equal(made.apply(sure(5), SimpleNamespace()), sure(5))


def test_it_reports_to_nobody_where_there_is_no_socket(load: Load) -> None:
    made = processor(load())
    add(made, {asks.CALL: "c"})
    assert made.apply(sure(2)) is not None
    assert [seen.call for seen in made._rows.apply(sure(2))] == ["c"]


@pytest.mark.parametrize(
    ("version", "device", "mended"),
    [
        ("0.32.0", torch.device("cpu"), True),
        ("0.32.0", torch.device("cuda"), False),
        ("0.33.0", torch.device("cpu"), False),
        ("0.32.0", SimpleNamespace(), False),  # runner V2
    ],
)
def test_the_runner_beside_it_is_mended(
    load: Load, version: str, device: Any, mended: bool
) -> None:
    processor(load(version), device=device)
    kind = sys.modules["vllm.v1.worker.cpu_model_runner"].__dict__["CPUModelRunner"]
    assert (kind.sample_tokens is not Runner.sample_tokens) == mended
