"""A gateway behind its real server, on a free port of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI

from app.server import Server
from app.settings import Settings


@contextmanager
def running(app: FastAPI, settings: Settings) -> Iterator[Any]:
    """The server, with its `port` and the `loop` that it runs on, in a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    server: Any = Server(app, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        server.port, server.loop = listening.getsockname()[1], server._loop
        yield server
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
    assert not thread.is_alive()


def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)
