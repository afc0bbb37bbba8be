"""Every knob, in one frozen object: the only reader of the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_CONFIG = Path(__file__).with_name("farthing.toml")


class Settings(BaseSettings):
    """Read from variables named FARTHING_ and the field, e.g. FARTHING_PORT=9000."""

    model_config = SettingsConfigDict(env_prefix="FARTHING_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    config: Path | None = Field(None, description="the fleet; default ./farthing.toml, else ours")
    models_dir: Path = Field(
        Path("~/.cache/farthing/models"), description="where fetched weights are kept"
    )
    data: Path | None = Field(None, description="folder of further prompts, for tests and benches")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    max_body_bytes: PositiveInt = 8 * 2**20
    threads: PositiveInt | None = Field(None, description="torch's; default: all cores but one")
    kv_memory_gib: float = Field(4.0, gt=0, description="KV cache bound of each embedded model")
    prefix_memory_gib: float = Field(
        1.0, ge=0, description="of it, for prefixes of ended answers; 0: keep none"
    )
    max_running: PositiveInt = Field(16, description="sequences in one batch of a model")
    max_waiting: PositiveInt = Field(256, description="calls queued per model before 429")
    prefill_chunk: PositiveInt = Field(64, description="prompt tokens computed between two steps")
    shutdown_grace_s: float = Field(10.0, ge=0, description="for running answers at shutdown")

    def config_file(self) -> Path:
        """The file that describes the fleet: what was named, else ./farthing.toml, else ours."""
        if self.config is not None:
            return self.config
        local = Path("farthing.toml")
        return local if local.exists() else DEFAULT_CONFIG
