"""A worker for vLLM 0.32 that lends its model to our KV connector.

Named to vLLM by `--worker-cls app.vllm_plugins.predicting_worker.PredictingWorker`.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.platforms import current_platform

from app.vllm_plugins import seed_fault
from app.vllm_plugins.kv_connector import KVPredictorConnector

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_worker import Worker as _Worker


class PredictingWorker(_Worker):
    """vLLM's worker, save that the connector that it makes is handed its model."""

    def init_device(self) -> None:
        super().init_device()
        seed_fault.mend(self.device)

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)
        connector = get_kv_transfer_group()
        if isinstance(connector, KVPredictorConnector):
            connector.attach(self.model_runner.get_model())
