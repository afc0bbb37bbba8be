"""The composition root: the only file that knows every room."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from fastapi import FastAPI

import policies
from app.accounts.accounts import Accounts, Terms
from app.catalog import Catalog, Preset, read
from app.downloads import local_path
from app.errors import BadRequest, ConfigError, UnknownModel
from app.gateway import Gateway
from app.settings import Settings
from app.telemetry import Telemetry
from app.types import Engine
from routers import (
    admin,
    chat,
    completions,
    deps,
    edge,
    health,
    metrics,
    models,
    schema,
    usage,
)
from routers.deps import Front
from routers.doors import Door


class ManagedEngine(Engine, Protocol):
    """An engine with something to load first and to give back at the end."""

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


def create_app(
    settings: Settings, *, catalog: Catalog | None = None, engine: Engine | None = None
) -> FastAPI:
    """The gateway as an ASGI app. Raises ConfigError for a fleet that cannot be served.

    Without an `engine` the fleet's own is loaded once the app has started, in the background:
    `app.state.loading` is the task, and until it is done /health/ready and requests get 503.
    The ledger is opened in the lifespan too, before the first request.
    `app.state.end_answers()` ends the answers under way, for a shutdown.
    """
    fleet = catalog or read(settings.config_file())
    check_presets(fleet)
    labels = {*policies.names(), *fleet.presets}
    accounts = open_accounts(settings)
    door = Door(accounts, settings.no_auth, not is_loopback(settings.host), settings.peers())
    front = Front(fleet, Telemetry(fleet.models, labels), settings.max_body_bytes, door)
    build = None
    if engine is None:
        build = _embedded(settings, fleet)
    else:
        front.gateway = Gateway(engine, fleet, front.telemetry)
    lifespan = _lifespan(front, build)
    app = FastAPI(title="Farthing", redirect_slashes=False, lifespan=lifespan)
    app.state.end_answers = front.running.end
    deps.install(app, front)
    edge.install(app, front.telemetry)
    schema.install(app)
    for room in (chat, completions, models, usage, admin, health, metrics):
        app.include_router(room.router)
    return app


def open_accounts(settings: Settings) -> Accounts | None:
    """The ledger that the settings name, not yet started; None where it is off."""
    url = settings.ledger_url()
    if url is None:
        return None
    alone = settings.workers == 1 and url.startswith("sqlite")
    secret = settings.key_secret
    return Accounts(
        Terms(
            ledger=url,
            state_dir=settings.state_dir,
            key_secret=None if secret is None else secret.get_secret_value(),
            lease_s=settings.lease_s,
            headroom_s=settings.headroom_s,
            rate_store=settings.rate_store or ("memory" if alone else "ledger"),
        )
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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


def _embedded(settings: Settings, catalog: Catalog) -> Callable[[], ManagedEngine]:
    """How to build the engine. Raises ConfigError at once where weights are missing."""
    cards = list(catalog.models.values())
    paths: dict[str, Path] = {c.name: local_path(c, settings.models_dir) for c in cards}

    def build() -> ManagedEngine:
        # Only now: it brings in torch, which a gateway without this engine does not need.
        engine = import_module("app.engines.embedded.engine").EmbeddedEngine(
            cards,
            paths,
            kv_memory=int(settings.kv_memory_gib * 2**30),
            prefix_memory=int(settings.prefix_memory_gib * 2**30),
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            prefill_chunk=settings.prefill_chunk,
            threads=settings.threads,
        )
        return cast(ManagedEngine, engine)

    return build


def _lifespan(
    front: Front, build: Callable[[], ManagedEngine] | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    async def load(build: Callable[[], ManagedEngine]) -> ManagedEngine:
        engine = await asyncio.to_thread(build)
        await engine.start()
        front.gateway = Gateway(engine, front.catalog, front.telemetry)
        return engine

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            # The ledger first: it is the last to close, when every answer has ended.
            if front.door.accounts is not None:
                stack.push_async_callback(front.door.accounts.aclose)
                await front.door.accounts.start()
            if build is not None:
                app.state.loading = asyncio.create_task(load(build))
                stack.push_async_callback(_unload, app.state.loading)
            yield

    return lifespan


async def _unload(loading: asyncio.Task[ManagedEngine]) -> None:
    loading.cancel()
    (engine,) = await asyncio.gather(loading, return_exceptions=True)
    if not isinstance(engine, BaseException):
        await engine.aclose()
