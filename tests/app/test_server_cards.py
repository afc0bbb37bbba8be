"""farthing.toml: models on servers, where they are, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.catalog import ModelCard, read
from app.errors import ConfigError

VLLM = """
[models.large]
engine = "vllm"
family = "f"
urls = ["http://a:8000", "http://b:8000"]
price = { input = 1, output = 2 }
"""
HOSTED = """
[models.large]
engine = "openai"
family = "f"
urls = ["https://api.example.com/v1"]
context = 128000
price = { input = 1, output = 2 }
"""


def card(tmp_path: Path, text: str) -> ModelCard:
    path = tmp_path / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return read(path).models["large"]


def with_urls(*urls: str) -> str:
    listed = ", ".join(f'"{url}"' for url in urls)
    return VLLM.replace('"http://a:8000", "http://b:8000"', listed)


def test_a_model_on_two_vllm_servers(tmp_path: Path) -> None:
    found = card(tmp_path, VLLM)
    assert found.urls == ("http://a:8000", "http://b:8000")
    assert (found.served, found.api_key_env, found.max_running) == ("", None, 256)


def test_a_hosted_model(tmp_path: Path) -> None:
    more = 'served = "gpt-x"\nkind = "openai"\napi_key_env = "THE_KEY"\nmax_running = 8'
    found = card(tmp_path, HOSTED + more)
    assert (found.served, found.kind, found.context) == ("gpt-x", "openai", 128000)
    assert (found.api_key_env, found.max_running) == ("THE_KEY", 8)


@pytest.mark.parametrize("kind", ["openai", "llamacpp", "sglang", "ollama"])
def test_every_kind_of_server(tmp_path: Path, kind: str) -> None:
    assert card(tmp_path, HOSTED + f'kind = "{kind}"').kind == kind


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://host:8000", "http://host:8000"),
        ("http://host:8000/", "http://host:8000"),
        ("http://host:8000/v1", "http://host:8000"),
        ("http://host:8000/v1/", "http://host:8000"),
        ("https://host/openai/v1", "https://host/openai"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_url_is_kept_without_what_we_add(tmp_path: Path, url: str, kept: str) -> None:
    assert card(tmp_path, with_urls(url)).urls == (kept,)


@pytest.mark.parametrize(
    "url",
    ["host:8000", "ftp://host", "http://", "http:///v1", "http://host?key=1", "http://host#a", ""],
)
def test_a_url_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"\[models\.large\]: urls\.0: .*http://host:8000"):
        card(tmp_path, with_urls(url))


def changed(text: str, **keys: Any) -> str:
    return text + "".join(f"{key} = {value}\n" for key, value in keys.items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (with_urls(), "urls are for servers"),
        (with_urls("http://a:8000", "http://a:8000/v1"), "urls must differ"),
        (changed(VLLM, weights='"x.gguf"'), "weights are for embedded models"),
        (HOSTED.replace("context = 128000", ""), "context is needed"),
        (HOSTED.replace("128000", "0"), "context is needed"),
        (changed(VLLM, kind='"vllm"'), "kind: "),
        (changed(VLLM, api_key_env='"A-B"'), "api_key_env: "),
        (changed(VLLM, api_key_env='""'), "api_key_env: "),
        (changed(VLLM, api_key='"sk-1"'), "api_key: "),  # secrets do not belong into the file
        (changed(VLLM, max_running="0"), "max_running: "),
        (changed(VLLM, precision='"fp4"'), "precision: "),
        (VLLM.replace('"vllm"', '"embedded"'), "weights are for embedded models"),
        (
            VLLM.replace('"vllm"', '"embedded"') + 'weights = "x.gguf"',
            "urls are for servers",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_table(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        card(tmp_path, text)
    assert raised.value.message.startswith(f"{tmp_path / 'fleet.toml'}: [models.large]: ")
    assert words in raised.value.message


@pytest.mark.parametrize("precision", ["fp8", "w4a16", "int4", "unknown"])
def test_a_server_may_have_precisions_that_we_have_not(tmp_path: Path, precision: str) -> None:
    assert card(tmp_path, changed(VLLM, precision=f'"{precision}"')).precision == precision
    embedded = VLLM.replace('"vllm"', '"embedded"')
    embedded = embedded.replace('urls = ["http://a:8000", "http://b:8000"]', 'weights = "x.gguf"')
    with pytest.raises(ConfigError, match="precision must be fp32, bf16 or int8"):
        card(tmp_path, changed(embedded, precision=f'"{precision}"'))
