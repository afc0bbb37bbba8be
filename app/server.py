"""Runs the gateway: binds, says when it is ready, and lets running answers end at shutdown."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import shlex
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from rich.console import Console

from app.catalog import Catalog, read
from app.connections import Patience, protocol
from app.errors import ConfigError, FarthingError
from app.factory import create_app, is_loopback, open_accounts
from app.settings import Settings, handed_down
from app.telemetry import logs
from app.telemetry.processes import VARIABLE, Folder
from app.workers import CANNOT_START, Ready, orphaned, supervise

log = logging.getLogger(__name__)
_BACKSTOP_S = 5  # for what does not end when it is told to


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises ConfigError for a fleet that cannot be served, a ledger that cannot be opened, an
    address that cannot be bound, and for one beyond this machine where nobody needs a key.
    """
    logs.configure(settings.log_level, settings.log_format)
    logs.hide(settings.secrets())
    if _hears_hangups():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read anew
    catalog = read(settings.config_file())
    needs_key = asyncio.run(prepare(settings))
    app = create_app(settings, catalog=catalog)
    with _bound(settings) as listening:
        port = listening.getsockname()[1]
        text = greeting(catalog, settings.host, port, needs_key)
        if settings.workers > 1:
            _serve_in_several(settings, listening, text)
            return
        server = Server(app, settings)
        server.greeting, server.when_loaded, server.when_left = text, _keep, _leave
        server.run(sockets=[listening])
    if server.failure is not None:
        raise server.failure


async def prepare(settings: Settings) -> bool:
    """Bring the ledger up to date and make the first key if that is wished; is one needed?

    Raises ConfigError, for an address beyond this machine too where no key would be needed.
    """
    accounts, keys = open_accounts(settings), False
    if accounts is not None:
        try:
            await accounts.prepare()
            token = await accounts.keyring.create_first() if settings.first_key else None
            keys = await accounts.keyring.ever_made()
        finally:
            await accounts.close_database()
        if token is not None:
            Console().print(
                f"An administrator's API key was made. It is shown this once:\n{token}\n",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    if not (keys or settings.no_auth or is_loopback(settings.host)):
        raise ConfigError(
            f"host {settings.host}: without API keys the gateway listens on this machine only;"
            " `farthing keys create` makes one, --first-key makes one now,"
            " --no-auth lets anyone who reaches it use it"
        )
    return keys and not settings.no_auth


def _serve_in_several(settings: Settings, listening: socket.socket, text: str) -> None:
    grace = settings.shutdown_grace_s + 2 * _BACKSTOP_S
    metrics = Folder()
    args = (settings, listening, text, metrics.path)
    try:
        with handed_down(VARIABLE, str(metrics.path)):
            if not supervise(settings.workers, _work, args, Ready(), grace, metrics.bury):
                raise ConfigError("a worker could not start; it said why")
    finally:
        metrics.remove()


def _work(
    settings: Settings, listening: socket.socket, text: str, metrics: Path, ready: Ready
) -> None:
    """One of several processes; the first that is ready says so for all."""
    logs.configure(settings.log_level, settings.log_format)
    logs.hide(settings.secrets())
    try:
        server = Server(create_app(settings, shared=metrics), settings)
        server.greeting, server.may_greet = text, ready.first
        server.when_loaded, server.when_left = _keep, partial(_leave, metrics)
        server.run(sockets=[listening])
        failure = server.failure
    except Exception as error:  # noqa: BLE001  told below, in words or as what it is
        failure = error
    _sweep(metrics)
    if isinstance(failure, FarthingError):
        print(f"farthing: {failure.message}", file=sys.stderr)
        sys.exit(CANNOT_START)
    if failure is not None:  # not raised: multiprocessing would print it in a form of its own
        log.critical("the worker ends with an error", exc_info=failure)
        sys.exit(1)


class Server(uvicorn.Server):
    """uvicorn, but a signal lets running answers go on for a while, then ends them in words."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio" if sys.platform == "win32" else "uvloop",
                http=protocol(_patience(settings)),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # who forwards for whom is ours to decide (trusted_peers)
                timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_s) + _BACKSTOP_S,
            )
        )
        self.app = app
        self.grace = settings.shutdown_grace_s
        self.greeting = ""
        self.may_greet: Callable[[], bool] = lambda: True
        self.when_loaded: Callable[[], None] = lambda: None
        self.when_left: Callable[[], None] = lambda: None  # shut down before all was loaded
        self.failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reloads: set[asyncio.Future[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if _hears_hangups():
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        loading: asyncio.Task[object] | None = getattr(self.app.state, "loading", None)
        if loading is None:
            self._loaded(None)
        else:
            loading.add_done_callback(self._loaded)

    def _loaded(self, loading: asyncio.Task[object] | None) -> None:
        if loading is not None and loading.cancelled():
            return
        self.failure = None if loading is None else loading.exception()
        if self.failure is not None:
            self.should_exit = True
            return
        self.when_loaded()
        if self.greeting and self.may_greet():
            Console().print(self.greeting, markup=False, highlight=False, soft_wrap=True)

    def _reload(self) -> None:
        task = asyncio.ensure_future(self.app.state.reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloaded)

    def _reloaded(self, task: asyncio.Task[None]) -> None:
        self._reloads.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            log.info("the configuration was read anew")
        elif isinstance(error, FarthingError):
            log.error("the configuration stays as it was: %s", error.message)
        else:
            log.error("the configuration stays as it was", exc_info=error)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        late = asyncio.get_running_loop().call_later(self.grace, self.app.state.end_answers)
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()
        loading: asyncio.Task[object] | None = getattr(self.app.state, "loading", None)
        if loading is not None and loading.cancelled():
            self.when_left()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn raises the signal again at its end; a shutdown that was asked for is a success.
        if self.should_exit and self._loop is not None and sig == signal.SIGINT:
            self._loop.call_soon_threadsafe(self.app.state.end_answers)  # asked twice: at once
        self.should_exit = True


def _keep() -> None:
    """What has been loaded stays: to look through it for garbage each time stops every stream for
    tens of milliseconds."""
    gc.collect()
    gc.freeze()


def _leave(metrics: Path | None = None) -> None:
    """End this process now: the thread that loads the models cannot be told to, and would hold up
    its end for as long as they take."""
    if metrics is not None:
        _sweep(metrics)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _sweep(metrics: Path) -> None:
    """Where our parent has died the other workers end too, and nobody else removes this."""
    if orphaned():
        shutil.rmtree(metrics, ignore_errors=True)


def _patience(settings: Settings) -> Patience:
    return Patience(
        idle=settings.idle_timeout_s,
        head=settings.request_timeout_s,
        stall=settings.stall_timeout_s,
        head_bytes=settings.max_header_bytes,
    )


def _hears_hangups() -> bool:
    """In another thread there are no signals to be had, and on Windows no such signal."""
    return hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread()


def greeting(catalog: Catalog, host: str, port: int, needs_key: bool = False) -> str:
    """Where the gateway is, who may use it, and a request that works."""
    name = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    url = f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
    names = [*catalog.presets, *catalog.models]
    body = {
        "model": "economy" if "economy" in names else names[0],
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 64,
        "temperature": 0.2,  # a small model soon loses the thread at 1
    }
    curl = [
        *("curl", f"{url}/v1/chat/completions"),
        *(("-H", "Authorization: Bearer YOUR_KEY") if needs_key else ()),
        *("-H", "Content-Type: application/json", "-H", "X-Budget-Usd: 0.01"),
        *("-d", json.dumps(body)),
    ]
    who = "" if needs_key else "\nNo API key is needed; `farthing keys create` makes one.\n"
    return f"Farthing is ready at {url}\n{who}\nTry:\n{shlex.join(curl)}\n"


def _bound(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {reason};"
            " --port or FARTHING_PORT chooses another"
        ) from error
