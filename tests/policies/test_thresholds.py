"""Thresholds may be infinite, which means never; what is no number is refused where it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fastapi.datastructures import Headers

import policies
from app.catalog import Catalog, read
from app.engines.fake import Fake
from app.errors import BadRequest, ConfigError
from app.gateway import Gateway, Order
from app.serving import check_presets
from policies.entropy_switch import EntropySwitch
from routers.terms import terms
from tests.policies.scripts import LENGTH, ask, call, engine, fleet
from tests.policies.scripts import read as chunks_of

TOML = """
[models.small]
engine = "vllm"
family = "f"
urls = ["http://a:8000"]
price = {{ input = 1, output = 2 }}
[models.large]
engine = "vllm"
family = "f"
urls = ["http://b:8000"]
price = {{ input = 1, output = 4 }}
[presets.mine]
policy = "entropy_switch"
large = "large"
{line}
"""


def catalog(tmp_path: Path, line: str) -> Catalog:
    path = tmp_path / "fleet.toml"
    path.write_text(TOML.format(line=line))
    found = read(path)
    check_presets(found)
    return found


@pytest.mark.parametrize(
    ("line", "raise_at", "lower_at"),
    [
        ("raise_at = inf", float("inf"), 1.0),
        ("lower_at = -inf", 2.5, float("-inf")),
        ("raise_at = 1.5\nlower_at = -3", 1.5, -3.0),
        ("raise_at = 0\nlower_at = 64", 0.0, 64.0),
    ],
)
def test_in_the_file(tmp_path: Path, line: str, raise_at: float, lower_at: float) -> None:
    preset = catalog(tmp_path, line).presets["mine"]
    found = policies.load(preset.policy, preset.options)
    assert isinstance(found, EntropySwitch)
    assert (found.raise_at, found.lower_at) == (raise_at, lower_at)


NEITHER = ["nan", "-nan"]


@pytest.mark.parametrize("key", ["raise_at", "lower_at"])
@pytest.mark.parametrize("value", NEITHER)
def test_no_number_in_the_file_is_refused_by_its_key(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[presets\.mine\]: {key}"):
        catalog(tmp_path, f"{key} = {value}")


@pytest.mark.parametrize("line", ["raise_at = -inf", "raise_at = -0.1", "lower_at = inf"])
def test_what_would_never_stop_switching_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=line.split()[0]):
        catalog(tmp_path, line)


def options(text: str, where: str) -> dict[str, str]:
    headers = Headers({"X-Policy": text} if where == "header" else {})
    return dict(terms(headers, policy=None if where == "header" else text).options)


@pytest.mark.parametrize("where", ["header", "body"])
@pytest.mark.parametrize("infinity", ["inf", "Infinity", "1e999"])
async def test_in_a_request_as_text(where: str, infinity: str) -> None:
    for option, start, writer in (
        (f'raise_at="{infinity}"', "small", "s"),
        (f'lower_at="-{infinity}"', "large", "l"),
    ):
        fake: Fake = engine([9.0] * LENGTH, [0.0] * LENGTH)
        given = {**options(f"economy;{option}", where), "start": start}
        answer = ask(Gateway(fake, fleet()), Order(call(), options=given))
        said = "".join(chunk.text for chunk in await chunks_of(answer))
        assert re.sub(r"\d+ ", "", said) == writer * LENGTH
        assert answer.decisions == []
        assert fake.calls[0].decoding.stop is None  # an engine is not asked for the impossible
        json.dumps(answer.bill.cost)


@pytest.mark.parametrize("where", ["header", "body"])
@pytest.mark.parametrize("key", ["raise_at", "lower_at"])
@pytest.mark.parametrize("value", ["nan", '"-nan"', "-nan", '""', "", "x", ":Mi4w:"])
def test_no_number_in_a_request_is_refused(where: str, key: str, value: str) -> None:
    with pytest.raises(BadRequest) as raised:
        given = options(f"economy;{key}={value}", where)
        ask(Gateway(engine(), fleet()), Order(call(), options=given))
    assert key in raised.value.message
