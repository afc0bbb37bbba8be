"""What tests share: a fake engine with two models, a gateway over it, and no network."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import httpx
import hypothesis
import pytest
from fastapi import FastAPI

from app.catalog import Catalog, ModelCard, Preset, Price, read
from app.downloads import local_path
from app.engines.fake import Fake, Script
from app.factory import create_app
from app.settings import DEFAULT_CONFIG, Settings
from tests import servers

# No test is about time: where others use the machine too, any may take long.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

T = TypeVar("T")

LARGE = (
    "the sky is blue because small particles scatter short waves most of all"
    " and of violet light there is less to begin with"
)
SMALL = "the sky is blue as it is and that is all there is to say of it"
UNSURE = [0.1] * 11 + [6.0] * 20  # bits: from its 12th token on the small model is at a loss


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The default model's weights, which `make install` fetches."""
    card = next(iter(read(DEFAULT_CONFIG).models.values()))
    return local_path(card, Settings().models_dir)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--servers",
        action="store_true",
        help="fail, rather than skip, where PostgreSQL or Redis is not installed",
    )
    parser.addoption(
        "--prompts",
        type=int,
        default=100,
        help="how many prompts the slow test of speculation takes",
    )


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[servers.Postgres]:
    """A real PostgreSQL of our own."""
    yield from _server(servers.postgres(), pytestconfig)


@pytest.fixture(scope="session")
def redis_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """A real Redis of our own."""
    yield from _server(servers.redis(), pytestconfig)


def _server(server: AbstractContextManager[T], config: pytest.Config) -> Iterator[T]:
    with ExitStack() as stack:
        try:
            running = stack.enter_context(server)
        except servers.Missing as missing:
            (pytest.fail if config.getoption("--servers") else pytest.skip)(str(missing))
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty ledger, in both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server: servers.Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(scope="session", autouse=True)
def no_ledger_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests have a state of their own, whatever the settings of whoever runs them say."""
    patched = pytest.MonkeyPatch()
    for name in Settings.model_fields:
        if name not in ("models_dir", "data"):
            patched.delenv(f"FARTHING_{name.upper()}", raising=False)
    patched.setenv("FARTHING_STATE_DIR", str(tmp_path_factory.mktemp("state")))
    yield
    patched.undo()


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Tests talk to this machine only."""
    patched = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        patched.setattr(socket.socket, name, _local_only(getattr(socket.socket, name)))
    yield
    patched.undo()


def _local_only(connect: Any) -> Any:
    def checked(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise RuntimeError(f"a test wants to reach {address}")
        return connect(self, address)

    return checked


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def price(input: str, cached_input: str, output: str) -> Price:
    """In USD per million tokens."""
    return Price(input=Decimal(input), cached_input=Decimal(cached_input), output=Decimal(output))


def card(name: str, cost: Price, **keys: Any) -> ModelCard:
    return ModelCard(
        name=name, engine="embedded", weights=f"{name}.gguf", family="fake", price=cost, **keys
    )


@pytest.fixture
def fake() -> Fake:
    return Fake(
        {
            "small": Script(SMALL.split(), UNSURE),
            "large": Script(LARGE.split()),
        }
    )


@pytest.fixture
def catalog() -> Catalog:
    cards = [
        card("small", price("1", "0.1", "2"), precision="int8"),
        card("large", price("10", "1", "20"), aliases=("big",)),
    ]
    economy = Preset(
        name="economy",
        policy="entropy_switch",
        description="large where it is hard",
        small="small",
        large="large",
        raise_at=Decimal("2.5"),
        lower_at=Decimal("0.01"),
    )
    return Catalog({c.name: c for c in cards}, {"economy": economy})


@pytest.fixture
def settings() -> Settings:
    return Settings(max_body_bytes=100_000, ledger="off")


@pytest.fixture
def gateway_app(settings: Settings, catalog: Catalog, fake: Fake) -> FastAPI:
    return create_app(settings, catalog=catalog, engine=fake)


@pytest.fixture
async def client(gateway_app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(gateway_app)
    async with httpx.AsyncClient(transport=transport, base_url="http://farthing") as client:
        yield client
