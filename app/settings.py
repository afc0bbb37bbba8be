"""Every knob, in one frozen object: the only reader of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import unquote

from pydantic import Field, PositiveInt, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import ConfigError

DEFAULT_CONFIG = Path(__file__).with_name("farthing.toml")

Network: TypeAlias = IPv4Network | IPv6Network


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _passwords(url: str) -> Iterator[str]:
    """That of this URL, as it stands there and as it is meant."""
    user, at, _ = url.partition("://")[2].rpartition("@")
    for name in ("password", "token"):  # PostgreSQL's and other drivers' parameters
        for found in re.findall(rf"[?&]{name}=([^&#]+)", url):
            yield from (found, unquote(found))
    if at and (password := user.partition(":")[2]):
        yield from (password, unquote(password))


def _values(headers: str) -> Iterator[str]:
    """Of `name=value,name=value`, and the whole of what is not written so."""
    for header in _listed(headers):
        value = header.partition("=")[2].strip() or header
        for each in (value, unquote(value)):
            yield from (each, each.rpartition(" ")[2])  # a token alone, too, without its `Bearer`


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, _listed(text)))


@contextmanager
def handed_down(variable: str, value: str) -> Iterator[None]:
    """Processes that are started meanwhile find this in their environment."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


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
    metrics: bool = Field(True, description="count, and show it at /metrics")
    page: bool = Field(True, description="show the page at / that tells who wrote each token")
    log_format: Literal["text", "json"] = "text"
    access_log: bool = Field(False, description="a line for every request that has ended")
    trace_content: bool = Field(
        False, description="prompts and answers go into traces: whoever reads these reads those"
    )
    max_body_bytes: PositiveInt = Field(8 * 2**20, description="larger bodies are refused")
    max_header_bytes: PositiveInt = Field(64 * 2**10, description="of a request, its URL too")
    max_headers: PositiveInt = Field(128, description="of a request")
    max_messages: PositiveInt = Field(4096, description="of a chat, or items of an input")
    max_tools: PositiveInt = Field(512, description="that a request may offer")
    max_images: PositiveInt = Field(64, description="in all messages of a request")
    max_string: PositiveInt = Field(
        4 * 2**20, description="characters of any string, an image's data URL too"
    )
    request_timeout_s: float = Field(
        30.0,
        gt=0,
        description="for a request's headers; again for its body, and 1 s more per 16 KiB",
    )
    idle_timeout_s: float = Field(75.0, gt=0, description="for a connection that asks nothing")
    stall_timeout_s: float = Field(60.0, gt=0, description="for a client that does not read")
    keep_alive_s: float = Field(
        15.0, ge=0, description="of silence, then a stream gets a comment; 0: never"
    )
    threads: PositiveInt | None = Field(None, description="torch's; default: all cores but one")
    kv_memory_gib: float = Field(4.0, gt=0, description="KV cache bound of each embedded model")
    prefix_memory_gib: float = Field(
        1.0, ge=0, description="of it, for prefixes of ended answers; 0: keep none"
    )
    max_running: PositiveInt = Field(16, description="sequences in one batch of a model")
    max_waiting: PositiveInt = Field(256, description="calls queued per model before 429")
    prefill_chunk: PositiveInt = Field(64, description="prompt tokens computed between two steps")
    shutdown_grace_s: float = Field(10.0, ge=0, description="for running answers at shutdown")
    connect_timeout_s: float = Field(5.0, gt=0, description="for a connection to a server")
    silence_timeout_s: float = Field(
        300.0, gt=0, description="a server that sends nothing for so long has failed"
    )
    workers: PositiveInt = Field(1, description="gateway processes; each loads embedded models")
    no_auth: bool = Field(False, description="no API keys: whoever reaches the port may use it")
    first_key: bool = Field(False, description="make an admin key at the first start, print it")
    trusted_peers: str = Field(
        "", description="networks, like 10.0.0.0/8,::1, whose X-Tenant-Id header counts"
    )
    cors_origins: str = Field(
        "", description="whose pages may ask, like https://chat.example,http://localhost:3000; or *"
    )
    root_path: str = Field("", description="prefix of our paths behind a reverse proxy, like /llm")
    state_dir: Path = Field(
        Path("~/.local/state/farthing"), description="SQLite ledger, journal, key secret"
    )
    ledger: str | None = Field(
        None,
        repr=False,  # a URL may hold a password
        description="postgresql://..., sqlite:///path, or off; default: SQLite in STATE_DIR",
    )
    key_secret: SecretStr | None = Field(
        None, description="what API keys are hashed with; default: a file in STATE_DIR"
    )
    api_key: SecretStr | None = Field(
        None, description="the key that `farthing chat` and `explain` send"
    )
    lease_s: float = Field(
        60.0, ge=1, description="a dead process's reservations are settled in full after it"
    )
    headroom_s: float = Field(
        0.0, ge=0, le=60, description="seconds of a key's spending to hold ahead of need in memory"
    )
    rate_store: str | None = Field(
        None,
        repr=False,
        description="memory, ledger, redis://...; default: memory if alone, else ledger",
    )

    responses_keep_s: float = Field(
        86400.0, ge=0, description="how long responses can be named again; 0: nothing is kept"
    )
    responses_mib: PositiveInt = Field(256, description="of them for a key; the oldest go first")
    decisions_keep_s: float = Field(
        604800.0, ge=0, description="how long answers can be explained; 0: nothing is kept"
    )
    decisions_mib: PositiveInt = Field(
        1024, description="of explanations, of all keys; the oldest go first"
    )

    @field_validator("trusted_peers")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        _networks(value)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        for origin in filter(lambda origin: origin != "*", _listed(value)):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin}: must be *, or look like https://chat.example")
        return value

    @field_validator("root_path")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        if value and not _PREFIX.fullmatch(value):
            raise ValueError("must look like /llm, without a slash at its end")
        return value

    def origins(self) -> tuple[str, ...]:
        """Whose pages browsers may let ask us."""
        return _listed(self.cors_origins)

    def peers(self) -> tuple[Network, ...]:
        """The networks that are trusted to say on whose behalf they ask."""
        return _networks(self.trusted_peers)

    def credential(self, variable: str) -> SecretStr | None:
        """A secret that farthing.toml only names: the environment variable of this name."""
        value = os.environ.get(variable)
        return SecretStr(value) if value else None

    def secrets(self) -> tuple[str, ...]:
        """All that must never be seen in a log line, the upstreams' credentials excepted."""
        kept = [each.get_secret_value() for each in (self.key_secret, self.api_key) if each]
        for url in (self.ledger, self.rate_store):
            kept += _passwords(url or "")
        for name in ("", "TRACES_", "METRICS_"):
            kept += _values(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}HEADERS", ""))
            kept += _passwords(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}ENDPOINT", ""))
        return tuple(kept)

    def exports(self, signal: Literal["traces", "metrics"]) -> bool:
        """Whether OpenTelemetry's standard variables ask us to send this signal to a collector.

        Raises ConfigError for a way of sending it that we do not have.
        """
        name, read = signal.upper(), os.environ.get
        exporter = read(f"OTEL_{name}_EXPORTER", "").strip().lower()
        if exporter not in ("", "otlp", "none"):
            raise ConfigError(f"OTEL_{name}_EXPORTER: must be otlp or none, not {exporter!r}")
        own, all_ = f"OTEL_EXPORTER_OTLP_{name}_", "OTEL_EXPORTER_OTLP_"
        place = read(f"{own}ENDPOINT") or read(f"{all_}ENDPOINT")
        disabled = read("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        if disabled or not (exporter == "otlp" or (place and not exporter)):
            return False
        protocol = read(f"{own}PROTOCOL") or read(f"{all_}PROTOCOL") or "http/protobuf"
        if protocol != "http/protobuf":
            raise ConfigError(
                f"{all_}PROTOCOL: must be http/protobuf (port 4318, most often), not {protocol!r}"
            )
        return True

    def ledger_url(self) -> str | None:
        """The database of keys and spending; None: there is none."""
        if self.ledger is None:
            return f"sqlite:///{self.state_dir.expanduser() / 'ledger.db'}"
        return None if self.ledger == "off" else self.ledger

    def config_file(self) -> Path:
        """The file that describes the fleet: what was named, else ./farthing.toml, else ours."""
        if self.config is not None:
            return self.config
        local = Path("farthing.toml")
        return local if local.exists() else DEFAULT_CONFIG
