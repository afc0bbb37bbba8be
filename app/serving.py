"""The engines of a catalog: built, and exchanged for another catalog's while requests run."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from importlib import import_module
from typing import Protocol, cast

import policies
from app import sandbox
from app.catalog import Catalog, ModelCard, Preset, read
from app.downloads import local_path
from app.engines.backend import Backend
from app.engines.fleet import Fleet, Sharing
from app.engines.remote.origin import Patience
from app.engines.remote.rendering import Renderings
from app.engines.replica import ReplicaStatus
from app.engines.upstream import Upstream
from app.engines.vllm import VllmServer
from app.errors import BadRequest, ConfigError, UnknownModel
from app.settings import Settings
from app.types import Engine


class ManagedEngine(Engine, Protocol):
    """An engine with something to load first and to give back at the end."""

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


class Serving:
    """All engines of one process. `start`, then `reload` as often as wished, then `aclose`."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        """Raises ConfigError at once for a fleet that cannot be served."""
        self._settings = settings
        self.catalog = catalog
        self.fleet: Fleet | None = None
        self._embedded: ManagedEngine | None = None
        self._renderings: defaultdict[str, Renderings] = defaultdict(Renderings)
        self._exchanging = asyncio.Lock()
        check_presets(catalog)
        self._paths = {c.name: local_path(c, settings.models_dir) for c in embedded(catalog)}
        for card in catalog.models.values():
            self._key(card)

    async def start(self) -> Fleet:
        """Load what is embedded and ask the servers once; one that is down may come later.

        Raises ConfigError for weights that cannot be read.
        """
        async with self._exchanging:  # who reloads meanwhile comes after us
            if self._paths:
                self._embedded = await asyncio.to_thread(self._load)
                await self._embedded.start()
            self.fleet = self._built(self.catalog, None)
            await self.fleet.start()
            return self.fleet

    async def reload(self) -> Fleet:
        """The fleet of the configuration file as it is now, in place of the one that runs.

        Streams go on untouched. Raises ConfigError, and then nothing has changed.
        """
        async with self._exchanging:
            if self.fleet is None:
                raise ConfigError("the models are still loading")
            catalog = read(self._settings.config_file())
            check_presets(catalog)
            if catalog.sandbox is not None:
                await asyncio.to_thread(sandbox.check, catalog.sandbox)
            if embedded(catalog) != embedded(self.catalog):
                raise ConfigError(
                    f"{catalog.source}: embedded models have changed, which needs a new start"
                )
            after = self._built(catalog, self.fleet)
            await after.start()
            self.fleet, self.catalog = after, catalog
            return after

    async def aclose(self) -> None:
        if self.fleet is not None:
            await self.fleet.aclose()
        if self._embedded is not None:
            await self._embedded.aclose()

    def servers(self) -> list[ReplicaStatus]:
        """Every server of every model, and how it does."""
        return [] if self.fleet is None else self.fleet.replicas()

    def _built(self, catalog: Catalog, previous: Fleet | None) -> Fleet:
        engines = {card.name: self._embedded for card in embedded(catalog) if self._embedded}
        return Fleet.build(
            catalog.models.values(),
            self._backend,
            engines,
            previous=previous,
            sharing=Sharing(max_waiting=self._settings.max_waiting),
        )

    def _backend(self, card: ModelCard, url: str) -> Backend:
        patience = Patience(
            connect=self._settings.connect_timeout_s, silence=self._settings.silence_timeout_s
        )
        key = self._key(card)
        if card.engine == "openai":
            return Upstream(card, url, key, patience)
        return VllmServer(card, url, key, self._renderings[card.family], patience)

    def _key(self, card: ModelCard) -> str | None:
        """The upstream's credential, which the file only names. Raises ConfigError without it."""
        if card.api_key_env is None:
            return None
        secret = self._settings.credential(card.api_key_env)
        if secret is None:
            raise ConfigError(
                f"[models.{card.name}]: api_key_env: there is no environment variable"
                f" {card.api_key_env}"
            )
        return secret.get_secret_value().strip()  # of a file's last line end, most often

    def _load(self) -> ManagedEngine:
        settings = self._settings
        # Only now: it brings in torch, which a gateway without this engine does not need.
        engine = import_module("app.engines.embedded.engine").EmbeddedEngine(
            embedded(self.catalog),
            self._paths,
            kv_memory=int(settings.kv_memory_gib * 2**30),
            prefix_memory=int(settings.prefix_memory_gib * 2**30),
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            prefill_chunk=settings.prefill_chunk,
            threads=settings.threads,
        )
        return cast(ManagedEngine, engine)


def embedded(catalog: Catalog) -> list[ModelCard]:
    """The models that run in this process."""
    return [card for card in catalog.models.values() if card.engine == "embedded"]


def check_presets(catalog: Catalog) -> None:
    """Raises ConfigError naming file, table and key for a preset that no request could use."""
    for preset in catalog.presets.values():
        place = f"{catalog.source}: [presets.{preset.name}]"
        if preset.policy not in policies.names():
            known = ", ".join(policies.names())
            raise ConfigError(f"{place}: policy: no policy {preset.policy!r}; there are: {known}")
        try:
            policies.load(preset.policy, preset.options).fit(catalog, None)
        except UnknownModel as error:
            raise ConfigError(f"{place}: {_key_at_fault(preset, error)}: {error}") from error
        except BadRequest as error:
            message = error.message.removeprefix(f"policy {preset.policy}: ")
            raise ConfigError(f"{place}: {message}") from error


def _key_at_fault(preset: Preset, error: UnknownModel) -> str:
    named = (key for key, value in preset.options.items() if repr(value) in error.message)
    return next(named, "policy")
