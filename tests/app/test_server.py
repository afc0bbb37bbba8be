"""The process: where it may listen, what it says at its start, how it ends."""

import asyncio
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from pydantic import SecretStr

from app import server
from app.accounts import keyring
from app.errors import ConfigError
from app.server import greeting, prepare, serve
from app.settings import DEFAULT_CONFIG
from tests.chaos.gateways import ROOT
from tests.routers.reading import asking


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example", ""])
def test_without_keys_it_listens_on_this_machine_only(settings, host):
    with pytest.raises(ConfigError, match="--no-auth"):
        serve(settings.model_copy(update={"host": host}))


@pytest.fixture
def with_ledger(settings, tmp_path):
    update = {"ledger": None, "state_dir": tmp_path, "host": "0.0.0.0", "config": DEFAULT_CONFIG}
    return settings.model_copy(update=update)


def test_the_first_key_is_made_once_and_printed_once(with_ledger, capsys):
    with pytest.raises(ConfigError, match="--first-key"):
        asyncio.run(prepare(with_ledger))
    wished = with_ledger.model_copy(update={"first_key": True})
    assert asyncio.run(prepare(wished))
    assert len(re.findall(r"^sk-farthing-\S+$", capsys.readouterr().out, re.MULTILINE)) == 1
    assert asyncio.run(prepare(wished))
    assert asyncio.run(prepare(with_ledger))  # there is a key now: it may listen everywhere
    assert "sk-farthing" not in capsys.readouterr().out


@pytest.mark.parametrize("first_key", [True, False])
def test_a_start_waits_longer_for_its_ledger_than_a_request_does(
    with_ledger, monkeypatch, first_key
):
    asyncio.run(prepare(with_ledger.model_copy(update={"first_key": True})))
    monkeypatch.setattr(keyring, "_PATIENCE_S", 0)
    assert asyncio.run(prepare(with_ledger.model_copy(update={"first_key": first_key})))


def test_without_auth_no_key_is_asked_for(with_ledger):
    assert not asyncio.run(prepare(with_ledger.model_copy(update={"no_auth": True})))


def test_another_secret_than_the_keys_were_hashed_with_ends_the_start(with_ledger):
    asyncio.run(prepare(with_ledger.model_copy(update={"first_key": True})))
    other = with_ledger.model_copy(update={"key_secret": SecretStr("a different secret")})
    with pytest.raises(ConfigError, match="FARTHING_KEY_SECRET"):
        asyncio.run(prepare(other))


def test_a_forwarded_address_is_not_believed(gateway_app, settings):
    assert not server.Server(gateway_app, settings).config.proxy_headers


@pytest.fixture
def fleet(settings, gateway_app, monkeypatch):
    monkeypatch.setattr(server, "create_app", lambda settings, catalog: gateway_app)
    return settings.model_copy(update={"config": DEFAULT_CONFIG, "port": 0})


def test_a_port_in_use_is_told_in_one_line(fleet):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as refusal:
            serve(fleet.model_copy(update={"port": port}))
    assert f"127.0.0.1:{port}" in refusal.value.message
    assert "\n" not in refusal.value.message


def test_weights_that_cannot_be_read_end_the_start(fleet, gateway_app, monkeypatch):
    """They are found out in the background, after the start."""

    class Broken(server.Server):
        async def startup(self, sockets=None):
            async def load():
                raise ConfigError("[models.small]: weights: truncated")

            self.app.state.loading = asyncio.create_task(load())
            await super().startup(sockets)

    monkeypatch.setattr(server, "Server", Broken)
    with pytest.raises(ConfigError, match="truncated"):
        serve(fleet)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:81"),
        ("0.0.0.0", "http://127.0.0.1:81"),
        ("::1", "http://[::1]:81"),
    ],
)
def test_the_greeting_has_a_request_that_works(catalog, host, url):
    text = greeting(catalog, host, 81)
    assert f"ready at {url}\n" in text
    (line,) = [line for line in text.splitlines() if line.startswith("curl")]
    assert shlex.split(line)[1] == f"{url}/v1/chat/completions"
    assert '"economy"' in line and "X-Budget-Usd" in line
    assert "Authorization" not in line and "No API key is needed" in text
    assert "Authorization: Bearer" in greeting(catalog, host, 81, needs_key=True)


PROGRAM = """
import sys
from app import server
from app.catalog import read
from app.engines.fake import Fake, Script
from app.factory import create_app
from app.settings import DEFAULT_CONFIG, Settings

words = ["word"] * 100_000
fake = Fake({name: Script(words, delay=0.01) for name in read(DEFAULT_CONFIG).models})
server.create_app = lambda settings, catalog: create_app(settings, catalog=catalog, engine=fake)
server.serve(Settings(config=DEFAULT_CONFIG, port=0, shutdown_grace_s=float(sys.argv[1])))
print("ended", fake.open)
"""


@pytest.mark.parametrize(
    ("signals", "grace"),
    [([signal.SIGTERM], 0.3), ([signal.SIGINT], 0.3), ([signal.SIGINT, signal.SIGINT], 60)],
)
def test_a_signal_ends_it_in_order_and_a_second_one_at_once(signals, grace):
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, str(grace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().split()[-1]
        with httpx.stream(
            "POST",
            f"{url}/v1/chat/completions",
            json=asking("smollm2-135m", stream=True),
            timeout=30,
        ) as answer:
            lines = answer.iter_lines()
            assert "word" in [next(lines) for _ in range(5)][2]
            for sent in signals:
                process.send_signal(sent)
                time.sleep(0.2)
            rest = list(lines)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert '"code":"engine_unavailable"' in rest[-4]
    assert rest[-2] == "data: [DONE]"
    assert (process.returncode, out.splitlines()[-1]) == (0, "ended 0"), err
    assert "Traceback" not in err


SERVE = "from app.cli import main; main()"
ENDLESS = """
import threading
from app.serving import Serving

def load(serving):
    print("loading", flush=True)
    threading.Event().wait()

Serving._load = load
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_ends_it_while_its_models_load(workers, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(ENDLESS)  # every process reads it
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", "--port", "0", "--workers", workers],
        env={
            **os.environ,
            "PYTHONPATH": f"{tmp_path}:{ROOT}",
            "FARTHING_LEDGER": "off",
            "FARTHING_SHUTDOWN_GRACE_S": "600",  # their parent kills workers that take longer
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
