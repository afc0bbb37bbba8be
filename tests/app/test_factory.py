"""The app is put together from the fleet's file, or refused in one line."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest

from app import serving
from app.catalog import Catalog, Preset, read
from app.engines.fake import Fake
from app.errors import ConfigError
from app.factory import create_app
from app.sandbox import Limits, seccomp
from app.serving import check_presets
from app.settings import DEFAULT_CONFIG
from tests.routers.reading import asking


def with_preset(catalog, policy="entropy_switch", **options):
    preset = Preset(name="mine", policy=policy, **options)
    return Catalog(catalog.models, {"mine": preset}, "/etc/fleet.toml")


@pytest.mark.parametrize(
    ("policy", "options", "key"),
    [
        ("nope", {}, "policy"),
        ("base", {}, "policy"),
        ("entropy_switch", {"small": "small", "large": "huge"}, "large"),
        ("entropy_switch", {"small": "tiny", "large": "large"}, "small"),
        ("entropy_switch", {"large": "large", "raise_at": "high"}, "raise_at"),
        ("entropy_switch", {"large": "large", "rise_at": 2}, "rise_at"),
        ("entropy_switch", {}, "`large`"),
    ],
)
def test_a_preset_that_no_request_could_use_is_refused_by_its_key(catalog, policy, options, key):
    with pytest.raises(ConfigError) as refusal:
        check_presets(with_preset(catalog, policy, **options))
    assert refusal.value.message.startswith(f"/etc/fleet.toml: [presets.mine]: {key}")


def test_a_bad_preset_ends_the_start(settings, catalog, fake):
    with pytest.raises(ConfigError, match="presets.mine"):
        create_app(settings, catalog=with_preset(catalog, "nope"), engine=fake)


def test_where_code_cannot_be_confined_there_is_no_start(settings, catalog, fake, monkeypatch):
    monkeypatch.setattr(seccomp, "program", lambda: b"\0" * 8)  # no kernel takes that
    create_app(settings, catalog=catalog, engine=fake)
    with pytest.raises(ConfigError, match=r"\[sandbox\].*cannot be confined"):
        create_app(settings, catalog=replace(catalog, sandbox=Limits()), engine=fake)


def test_our_own_fleet_is_in_order():
    check_presets(read(DEFAULT_CONFIG))


def test_missing_weights_are_told_at_once(settings, catalog, tmp_path):
    elsewhere = settings.model_copy(update={"models_dir": tmp_path, "config": DEFAULT_CONFIG})
    with pytest.raises(ConfigError, match="farthing models pull"):
        create_app(elsewhere)


class Slow(Fake):
    """An engine that loads until it is told to be ready."""

    def __init__(self, fake):
        super().__init__(fake.scripts)
        self.ready = asyncio.Event()
        self.closed = 0

    async def start(self):
        await self.ready.wait()

    async def aclose(self):
        self.closed += 1


@pytest.fixture
def slow(fake, monkeypatch):
    """The fleet's own engine, replaced."""
    engine = Slow(fake)
    module = SimpleNamespace(EmbeddedEngine=lambda cards, paths, **limits: engine)
    monkeypatch.setattr(serving, "import_module", lambda name: module)
    monkeypatch.setattr(serving, "local_path", lambda card, models_dir: models_dir / card.name)
    return engine


async def test_while_the_engine_loads_we_are_alive_and_not_ready(settings, catalog, slow):
    app = create_app(settings, catalog=catalog)
    transport = httpx.ASGITransport(app)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://farthing") as client,
        app.router.lifespan_context(app),
    ):
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.post("/v1/chat/completions", json=asking())).status_code == 503
        slow.ready.set()
        await app.state.loading
        assert (await client.get("/health/ready")).status_code == 200
        assert (await client.post("/v1/chat/completions", json=asking())).status_code == 200
        assert slow.closed == 0
    assert slow.closed == 1


async def test_a_stop_while_the_engine_loads_is_no_error(settings, catalog, slow):
    app = create_app(settings, catalog=catalog)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
    assert app.state.loading.cancelled()


async def test_the_engine_gets_the_limits_of_the_settings(settings, catalog, slow, monkeypatch):
    given = {}

    def build(cards, paths, **limits):
        given.update(limits, cards=[card.name for card in cards], paths=sorted(paths))
        return slow

    module = SimpleNamespace(EmbeddedEngine=build)
    monkeypatch.setattr(serving, "import_module", lambda name: module)
    slow.ready.set()
    own = settings.model_copy(update={"kv_memory_gib": 0.5, "threads": 3})
    app = create_app(own, catalog=catalog)
    async with app.router.lifespan_context(app):
        await app.state.loading
    assert given == {
        "cards": ["small", "large"],
        "paths": ["large", "small"],
        "kv_memory": 2**29,
        "prefix_memory": 2**30,
        "max_running": 16,
        "max_waiting": 256,
        "prefill_chunk": 64,
        "threads": 3,
    }
