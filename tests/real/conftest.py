"""One gateway on the default fleet for all of these tests: its models take a while to load."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import httpx
import openai
import pytest

from app.factory import create_app
from app.server import Server
from app.settings import DEFAULT_CONFIG, Settings
from tests.real.real import Real, until


@pytest.fixture(scope="session")  # of a package it would start anew whenever others come between
def real() -> Iterator[Real]:
    settings = Settings(config=DEFAULT_CONFIG, shutdown_grace_s=1, keep_alive_s=0.1)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(create_app(settings), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as sdk,
        httpx.Client(base_url=url, timeout=300) as http,
    ):
        try:
            until(lambda: server.started and http.get("/health/ready").status_code == 200, 300)
            yield Real(url, sdk, http)
        finally:
            server.should_exit = True
            thread.join(30)
            listening.close()
    assert not thread.is_alive()
