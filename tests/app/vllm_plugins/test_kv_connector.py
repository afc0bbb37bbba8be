"""The connector as vLLM's scheduler and worker meet it, on a vLLM of straw."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import app.vllm_plugins  # noqa: F401  so that it is there to be cleared
from app.nets.kv_predictor import About, KVPredictor
from app.vllm_plugins import asks
from app.vllm_plugins.channel import Placed, Receiver
from tests.app.vllm_plugins.straw_model import HIDDEN, KV_HEADS, SIZE, model

BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"
OURS = "app.vllm_plugins.kv_connector"
ABOUT = About("b", "f", HIDDEN, 3, KV_HEADS * SIZE, layer_weights=9000, kept=1)
PROMPT = list(range(50)) * 2


class Connector:
    """As much of vLLM's base class as ours touches."""

    def __init__(self, vllm_config: Any, role: str, kv_cache_config: Any) -> None:
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._kv_transfer_config = vllm_config.kv_transfer_config
        self.metadata: Any = None

    def _get_connector_metadata(self) -> Any:
        return self.metadata


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Any:
    return load(monkeypatch)


def load(monkeypatch: pytest.MonkeyPatch, version: str = "0.32.0") -> Any:
    """Our module, imported into such a vLLM."""
    parts = BASE.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[end - 1]))
    sys.modules["vllm"].__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, "vllm.tokenizers", tokenizers := ModuleType("tokenizers"))
    tokenizers.__dict__["cached_tokenizer_from_config"] = lambda config: config.tokenizer
    sys.modules[BASE].__dict__.update(
        KVConnectorBase_V1=Connector,
        KVConnectorMetadata=object,
        KVConnectorRole=SimpleNamespace(SCHEDULER="scheduler", WORKER="worker"),
        KVConnectorTransferResults=lambda **fields: SimpleNamespace(**fields),
    )
    monkeypatch.delitem(sys.modules, OURS, raising=False)
    monkeypatch.delattr(sys.modules["app.vllm_plugins"], "kv_connector", raising=False)
    return import_module(OURS)


def saved(path: Path, about: About = ABOUT) -> Path:
    torch.manual_seed(0)
    predictor = KVPredictor(about)
    torch.nn.init.normal_(predictor.weight)
    predictor.save(path)
    return path


def config(*paths: Path, **fields: Any) -> Any:
    """vLLM's configuration; `fields` of parts of it, like model_type, are set where they belong."""
    text = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 3,
        "num_key_value_heads": KV_HEADS,
        "num_attention_heads": 4,
        "head_dim": SIZE,
    }
    extra = {"predictors": [str(path) for path in paths]}
    worker = "app.vllm_plugins.predicting_worker.PredictingWorker"
    return SimpleNamespace(
        kv_transfer_config=SimpleNamespace(get_from_extra_config=extra.get),
        parallel_config=SimpleNamespace(
            worker_cls=fields.pop("worker_cls", worker), world_size=fields.pop("world_size", 1)
        ),
        speculative_config=fields.pop("speculative_config", None),
        cache_config=SimpleNamespace(cache_dtype=fields.pop("cache_dtype", "auto")),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=64),
        device_config=SimpleNamespace(device="cpu"),
        model_config=SimpleNamespace(
            tokenizer=SimpleNamespace(decode=lambda ids: f" {ids[0]}"),
            hf_text_config=SimpleNamespace(**{**text, **fields}),
            dtype=torch.float32,
        ),
    )


def cache(groups: int = 1) -> Any:
    spec = SimpleNamespace(num_kv_heads=KV_HEADS, head_size=SIZE, block_size=32)
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec)] * groups)


def request(name: str = "r", salt: str | None = "kvp:x", **xargs: Any) -> Any:
    return SimpleNamespace(
        request_id=name,
        sampling_params=SimpleNamespace(extra_args=xargs),
        prompt_token_ids=PROMPT,
        num_prompt_tokens=len(PROMPT),
        cache_salt=salt,
        mm_features=[],
        lora_request=None,
    )


def blocks(*ids: int) -> Any:
    return SimpleNamespace(get_block_ids=lambda: (list(ids),))


@pytest.fixture
def socket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "socket")
        monkeypatch.setenv(asks.SOCKET_VARIABLE, path)
        receiver = Receiver(path)
        yield receiver
        receiver.close()


def scheduler(ours: Any, path: Path) -> Any:
    return ours.KVPredictorConnector(config(path), "scheduler", cache())


def step(connector: Any, over: set[str] | None = None) -> Any:
    scheduled = SimpleNamespace(total_num_scheduled_tokens=4, finished_req_ids=over or set())
    return connector.build_connector_meta(scheduled)


def test_it_leaves_word_of_its_predictors(
    ours: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(asks.PREDICTION_VARIABLE, str(tmp_path / "folder" / "state"))
    scheduler(ours, saved(tmp_path / "p"))
    state = json.loads((tmp_path / "folder" / "state").read_text())
    assert asks.Predicting.read(state) == asks.Predicting({"layers-1": ABOUT.share})


def test_a_prompt_is_claimed_ordered_and_told_of_once(
    ours: Any, tmp_path: Path, socket: Receiver
) -> None:
    ours = scheduler(ours, saved(tmp_path / "p"))
    asked = request(**{asks.KV: "layers-1", asks.KV_LAST: 4, asks.KV_FIRST: 6, asks.KV_CALL: "c"})
    assert ours.get_num_new_matched_tokens(asked, 0) == (96, True)
    ours.update_state_after_alloc(asked, blocks(3, 1, 2), 96)
    metadata = step(ours, {"over"})
    (job,) = metadata.orders.new
    assert (job.request, job.tokens, job.blocks) == ("r", PROMPT[:96], [3, 1, 2])
    assert (metadata.orders.over, metadata.orders.budget) == ({"over"}, 60)
    ours.update_state_after_alloc(asked, blocks(3, 1, 2, 4), 0)  # it is read on by vLLM
    assert step(ours).orders.new == []
    assert list(socket.drain()) == [Placed("c", 90, 6)]
    ours.shutdown()
    assert ours.request_finished(asked, []) == (False, None)


@pytest.mark.parametrize(("words", "turns"), [(True, (8, 32)), (False, (32, 36))])
def test_what_its_end_asks_about_is_told_by_the_model_s_tokenizer(
    ours: Any, tmp_path: Path, socket: Receiver, words: bool, turns: tuple[int, int]
) -> None:
    own = config(saved(tmp_path / "p"))
    if not words:  # as of a server that is asked by token ids alone
        own.model_config.tokenizer = None
    ours = ours.KVPredictorConnector(own, "scheduler", cache())
    asked = request(**{asks.KV: "layers-1", asks.KV_FIRST: 8, asks.KV_CALL: "c"})
    asked.sampling_params.extra_args[asks.KV_RELEVANT] = 0.25
    asked.prompt_token_ids = [*range(100, 132), *PROMPT[32:]]  # asked by the last 64
    assert ours.get_num_new_matched_tokens(asked, 0) == (99, True)
    ours.update_state_after_alloc(asked, blocks(3, 1, 2, 4), 99)
    (job,) = step(ours).orders.new
    assert job.route.turns == turns
    assert list(socket.drain()) == [Placed("c", job.span.predicted, job.span.computed)]
    assert job.span.predicted == turns[1] - turns[0]
    ours.shutdown()


def test_what_is_computed_after_all_is_told_too(
    ours: Any, tmp_path: Path, socket: Receiver
) -> None:
    ours = scheduler(ours, saved(tmp_path / "p"))
    asked = request(**{asks.KV: "layers-1", asks.KV_CALL: "c"})
    assert ours.get_num_new_matched_tokens(asked, 96) == (0, False)
    ours.update_state_after_alloc(asked, blocks(3, 1, 2), 0)
    assert list(socket.drain()) == [Placed("c", 0, 0)]
    ours.shutdown()


@pytest.mark.parametrize(
    "change",
    [
        {"cache_salt": None},
        {"cache_salt": "theirs"},
        {"prompt_token_ids": None},
        {"mm_features": ["an image"]},
        {"lora_request": "a"},
        {"sampling_params": None},
        {"sampling_params": SimpleNamespace(extra_args=None)},
        {"sampling_params": SimpleNamespace(extra_args={asks.KV: "layers-2"})},
        {"sampling_params": SimpleNamespace(extra_args={asks.KV: 1})},
    ],
    ids=str,
)
def test_all_others_are_computed(ours: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    ours = scheduler(ours, saved(tmp_path / "p"))
    asked = request(**{asks.KV: "layers-1"})
    vars(asked).update(change)
    assert ours.get_num_new_matched_tokens(asked, 0) == (0, False)
    ours.update_state_after_alloc(asked, blocks(1), 0)
    assert step(ours).orders.new == []


def test_what_failed_in_the_worker_is_not_tried_again(ours: Any, tmp_path: Path) -> None:
    ours = scheduler(ours, saved(tmp_path / "p"))
    asked = request(**{asks.KV: "layers-1"})
    ours.update_connector_output(SimpleNamespace(failed_recving=None))
    assert ours.get_num_new_matched_tokens(asked, 0) == (99, True)
    ours.update_connector_output(SimpleNamespace(failed_recving={"r"}))
    assert ours.get_num_new_matched_tokens(asked, 0) == (0, False)


def test_the_worker_writes_by_vllms_own_hand(ours: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "p")
    written: list[tuple[str, int]] = []

    class Impl:
        def do_kv_cache_update(
            self, layer: Any, keys: Any, values: Any, store: Any, slots: Any
        ) -> None:
            assert keys.shape == values.shape == (len(slots), KV_HEADS, SIZE)
            written.extend((store, slot) for slot in slots.tolist())

    layers: dict[str, Any] = {
        f"model.layers.{n}.self_attn.attn": SimpleNamespace(impl=Impl(), kv_cache=f"cache {n}")
        for n in (2, 0, 1)
    }
    layers["model.layers.1.something"] = SimpleNamespace()
    head, hand = scheduler(ours, path), ours.KVPredictorConnector(config(path), "worker", cache())
    hand.attach(model(3))
    head.update_state_after_alloc(request(**{asks.KV: "layers-1"}), blocks(3, 1, 2, 5), 99)
    for _ in range(2):
        hand.metadata = step(head)
        hand.start_load_kv(SimpleNamespace(no_compile_layers=layers))
    found = hand.get_transfer_results(set())
    assert (found.finished_recving, found.failed_recving) == ({"r"}, set())
    slots = [block * 32 + at for block in (3, 1, 2, 5) for at in range(32)][:99]
    assert sorted(written) == sorted((f"cache {n}", slot) for n in range(3) for slot in slots)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model_type": "gemma3"}, "'gemma3'"),
        ({"world_size": 2}, "several devices"),
        ({"worker_cls": "auto"}, "PredictingWorker"),
        ({"speculative_config": SimpleNamespace(method="draft_model")}, "draft model"),
        ({"cache_dtype": "fp8"}, "fp8"),
    ],
    ids=str,
)
def test_where_it_cannot_be_the_server_does_not_start(
    ours: Any, tmp_path: Path, fields: dict[str, Any], why: str
) -> None:
    path = saved(tmp_path / "p")
    with pytest.raises(ValueError, match=why):
        ours.KVPredictorConnector(config(path, **fields), "worker", cache())
    with pytest.raises(ValueError, match="different kinds"):
        ours.KVPredictorConnector(config(path), "worker", cache(groups=2))


def test_another_vllm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"this is vLLM 0\.33\.0"):
        scheduler(load(monkeypatch, "0.33.0"), saved(tmp_path / "p"))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"num_hidden_layers": 4}, "is for 3 layers of 24 and keys of 16; the model has 4 of 24"),
        ({"hidden_size": 48}, "the model has 3 of 48 and 16"),
        ({"head_dim": 4}, "the model has 3 of 24 and 8"),
    ],
)
def test_a_predictor_of_another_model_is_named(
    ours: Any, tmp_path: Path, fields: dict[str, Any], why: str
) -> None:
    path = saved(tmp_path / "its-name")
    with pytest.raises(ValueError, match=why) as raised:
        ours.KVPredictorConnector(config(path, **fields), "worker", cache())
    assert str(path) in str(raised.value)


def test_files_that_cannot_be_used_are_named(ours: Any, tmp_path: Path) -> None:
    text = config().model_config.hf_text_config
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    other = tmp_path / "other"
    other.write_text("no predictor")
    for paths, why in (
        ([one, two], "two: there is another predictor by 1 first layers"),
        ([other], "other: is no KV predictor"),
        ([tmp_path / "nowhere"], "nowhere: "),
    ):
        with pytest.raises(ValueError, match=why):
            ours.load(paths, text)


def test_the_dearest_and_best_is_named_first(ours: Any, tmp_path: Path) -> None:
    text = config().model_config.hf_text_config
    one = saved(tmp_path / "one")
    two = saved(tmp_path / "two", About(**{**vars(ABOUT), "kept": 2}))
    assert list(ours.load([one, two], text)) == ["layers-2", "layers-1"]
