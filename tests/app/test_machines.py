"""Which models of a fleet run on the same hardware, and what `auto` makes of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.catalog import Catalog, read
from app.errors import ConfigError
from app.types import Load
from tests.policies.autos import SURVEYED, engine, soon, taken
from tests.policies.measured import known, law, way

TABLE = """
[models.{name}]
{place}
family = "{name}"
price = {{ input = 1, output = 2 }}
"""
EMBEDDED = 'engine = "embedded"\nweights = "weights.gguf"'
SERVER = 'engine = "vllm"\nurls = ["http://{}:8000"]'


def fleet(folder: Path, **places: str) -> Catalog:
    path = folder / "fleet.toml"
    tables = (TABLE.format(name=name, place=place) for name, place in places.items())
    path.write_text("".join(tables), encoding="utf-8")
    return read(path)


def test_embedded_models_share_one_machine_and_servers_one_that_they_name(tmp_path: Path) -> None:
    shared = SERVER.format("a") + '\nmachine = "rack-3"'
    catalog = fleet(
        tmp_path,
        tiny=EMBEDDED,
        int8=EMBEDDED,
        draft=shared,
        target=shared,
        other=SERVER.format("b"),
    )
    assert catalog.beside() == {
        "tiny": {"tiny", "int8"},
        "int8": {"tiny", "int8"},
        "draft": {"draft", "target"},
        "target": {"draft", "target"},
        "other": {"other"},
    }


def test_a_machine_called_as_a_model_is_another_place_than_that_models_server(
    tmp_path: Path,
) -> None:
    named = SERVER.format("a") + '\nmachine = "b"'
    catalog = fleet(tmp_path, a=named, b=SERVER.format("b"))
    assert catalog.beside() == {"a": {"a"}, "b": {"b"}}


def test_embedded_models_name_no_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.tiny.*machine is for servers"):
        fleet(tmp_path, tiny=f'{EMBEDDED}\nmachine = "here"')


async def test_servers_of_one_machine_slow_each_other() -> None:
    """Five calls run on `other`: `server`, which may take 10 s, has no 5 left beside these."""
    models = dict(SURVEYED.models)
    models["other"] = models["server"].model_copy(update={"name": "other"})
    apart = Catalog(models, {})
    shared = Catalog(
        models
        | {name: models[name].model_copy(update={"machine": "m"}) for name in ("server", "other")},
        {},
    )
    ways = [
        way(apart, name, quality, latency=law(1.0, load=load))
        for name, quality, load in (("server", 1.0, 1.0), ("large", 0.7, 0.0))
    ]
    busy = engine({"other": Load(running=5)}, other={})
    within = {"deadline": soon(5), "options": {"paced": False}}
    assert await taken(known(apart, *ways), busy, **within) == "server"
    assert await taken(known(shared, *ways), busy, **within) == "large"
