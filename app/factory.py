"""The composition root: the only file that knows every room."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

import policies
from app import sandbox
from app.accounts.accounts import Accounts, Terms
from app.catalog import Catalog, read
from app.errors import ConfigError
from app.gateway import Gateway
from app.serving import Serving, check_presets
from app.settings import Settings
from app.telemetry import logs, series
from app.telemetry.counting import Telemetry
from app.telemetry.exports import Exports, Wish
from app.telemetry.muted import Muted
from app.telemetry.names import EMBEDDED, Server, server_at
from app.types import Engine
from routers import (
    admin,
    chat,
    completions,
    decisions,
    deps,
    edge,
    embeddings,
    gauges,
    health,
    messages,
    metrics,
    models,
    page,
    responses,
    schema,
    shortcut,
    tokenize,
    usage,
)
from routers.bounds import Bounds
from routers.deps import Front
from routers.doors import Door

_ANSWERING = (chat, completions, responses, messages, embeddings)  # where models answer
# The last may be off.
_ROOMS = (*_ANSWERING, tokenize, models, usage, decisions, admin, health, metrics)
# FastAPI's own spans and logs hold queries, what fails validation, and exceptions' messages.
_NONE_OF_ITS_OWN: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "auto_configure": False,
}


def create_app(
    settings: Settings,
    *,
    catalog: Catalog | None = None,
    engine: Engine | None = None,
    shared: Path | None = None,
) -> FastAPI:
    """The gateway as an ASGI app. Raises ConfigError for a fleet that cannot be served, and where
    code would be run that cannot be confined.

    Without an `engine` the fleet's own is loaded once the app has started, in the background:
    `app.state.loading` is the task, and until it is done /health/ready and requests get 503.
    The ledger is opened in the lifespan too, before the first request.
    `shared` is where the gateway's processes write what they count, if there are several.
    `app.state.end_answers()` ends the answers under way, for a shutdown, and
    `await app.state.reload()` serves the configuration file as it is now.
    """
    fleet = catalog or read(settings.config_file())
    check_presets(fleet)
    if fleet.sandbox is not None:
        sandbox.check(fleet.sandbox)
    accounts = open_accounts(settings)
    public, origins = not is_loopback(settings.host), settings.origins()
    door = Door(accounts, settings.no_auth, public, settings.peers(), origins)
    telemetry = Telemetry(shared) if settings.metrics else Muted()
    front = Front(fleet, telemetry, bounds_of(settings), settings.keep_alive_s, door)
    front.policies = policies.described
    wish = wished(settings)
    front.exports = Exports(wish, front.telemetry.names) if wish else None
    _know(front, fleet, settings)
    if accounts is not None:
        accounts.book.watcher = front.telemetry
    serving = None
    if engine is None:
        serving = Serving(settings, fleet)
        front.servers = serving.servers
    else:
        front.gateway = Gateway(engine, fleet, front.observer)
    lifespan = _lifespan(front, serving, settings)
    app = FastAPI(
        title="Farthing", redirect_slashes=False, lifespan=lifespan, telemetry=_NONE_OF_ITS_OWN
    )
    app.state.end_answers = front.running.end
    app.state.reload = lambda: _reload(front, serving, settings)
    deps.install(app, front)
    shortcut.install(app, (chat.router, completions.router))
    told = edge.Told(front.exports, settings.access_log)
    edge.install(app, front.telemetry, front.bounds, settings.root_path, origins, told)
    schema.install(app)
    for room in _ROOMS if settings.metrics else _ROOMS[:-1]:
        app.include_router(room.router)
    if settings.page:
        app.include_router(page.router)
        page.install(app)
    return app


def most_series(app: FastAPI) -> int:
    """The most samples that /metrics may have under the names of today, whatever clients send."""
    front: Front = app.state.front
    framework = {getattr(route, "path", "") for route in app.routes}  # not of what it includes
    answering = _paths(_ANSWERING)
    endpoints = framework | _paths((*_ROOMS, page))
    return series.most_series(front.telemetry.names, len(endpoints), len(answering))


def _paths(rooms: Sequence[ModuleType]) -> set[str]:
    return {getattr(route, "path", "") for room in rooms for route in room.router.routes}


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
            responses_keep_s=settings.responses_keep_s,
            responses_mib=settings.responses_mib,
            decisions_keep_s=settings.decisions_keep_s,
            decisions_mib=settings.decisions_mib,
        )
    )


def bounds_of(settings: Settings) -> Bounds:
    """What a request may bring."""
    return Bounds(
        headers=settings.max_headers,
        header_bytes=settings.max_header_bytes,
        body_bytes=settings.max_body_bytes,
        body_s=settings.request_timeout_s,
        messages=settings.max_messages,
        tools=settings.max_tools,
        images=settings.max_images,
        string=settings.max_string,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def wished(settings: Settings) -> Wish:
    """What OpenTelemetry's variables ask us to export. Raises ConfigError."""
    traces, metrics = (settings.exports(signal) for signal in ("traces", "metrics"))
    return Wish(traces, metrics, settings.trace_content, settings.workers)


def _lifespan(
    front: Front, serving: Serving | None, settings: Settings
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    async def load(serving: Serving) -> None:
        _serve(front, serving.catalog, await serving.start(), settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if front.exports is not None:  # threads are each worker's own
                front.exports.open(version("farthing"))
                stack.push_async_callback(asyncio.to_thread, front.exports.close)
            # The ledger before the engines: it closes after them, when every answer has ended.
            if front.door.accounts is not None:
                stack.push_async_callback(front.door.accounts.aclose)
                await front.door.accounts.start()
            if front.telemetry.shared:  # others may be asked how it stands with us
                showing = asyncio.create_task(gauges.keep_showing(front))
                stack.callback(showing.cancel)
            if serving is not None:
                app.state.loading = asyncio.create_task(load(serving))
                stack.push_async_callback(_unload, app.state.loading, serving)
            yield

    return lifespan


async def _unload(loading: asyncio.Task[None], serving: Serving) -> None:
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    await serving.aclose()


async def _reload(front: Front, serving: Serving | None, settings: Settings) -> None:
    if serving is None:
        raise ConfigError("this gateway was made with its engine, and reads no file")
    fleet = await serving.reload()
    _serve(front, serving.catalog, fleet, settings)


def _serve(front: Front, catalog: Catalog, engine: Engine, settings: Settings) -> None:
    """From now on, requests are for this catalog."""
    _know(front, catalog, settings)
    front.catalog, front.gateway = catalog, Gateway(engine, catalog, front.observer)


def _know(front: Front, catalog: Catalog, settings: Settings) -> None:
    """Count under the names of this catalog, and log none of its credentials."""
    presets = {preset.name: preset.policy for preset in catalog.offered.values()}
    servers = [
        Server(card.name, where)
        for card in catalog.models.values()
        for where in (*map(server_at, card.urls), *(() if card.urls else (EMBEDDED,)))
    ]
    front.telemetry.names.know(catalog.models, presets, policies.names(), servers)
    if front.exports is not None:
        runs = {"embedded": "farthing", "vllm": "vllm"}
        cards = catalog.models.values()
        front.exports.providers = {c.name: runs.get(c.engine, c.kind) for c in cards}
    variables = {card.api_key_env for card in catalog.models.values() if card.api_key_env}
    secrets = filter(None, map(settings.credential, variables))
    logs.hide(secret.get_secret_value().strip() for secret in secrets)
