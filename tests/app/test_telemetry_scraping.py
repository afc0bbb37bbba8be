"""Metrics are written down in the format that is asked for, once for all who ask."""

import asyncio
import gc
import gzip
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from app.telemetry.counting import Telemetry
from app.telemetry.scraping import Scraper

OPEN = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.3"


@pytest.fixture
def telemetry():
    telemetry = Telemetry()
    telemetry.refused("queue_full")
    return telemetry


def refusals(families):
    return {
        sample.name: sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("farthing_refusals")
    }


async def test_prometheus_own_text(telemetry):
    page = await telemetry.scraper.page("", "")
    assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert refusals(plain_text(page.content.decode())) == {"farthing_refusals_total": 1}
    assert b"_created" not in page.content


async def test_open_metrics(telemetry):
    page = await telemetry.scraper.page(OPEN, "")
    assert page.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert page.content.endswith(b"# EOF\n")
    assert refusals(open_metrics(page.content.decode())) == {"farthing_refusals_total": 1}


async def test_zipped(telemetry):
    page = await telemetry.scraper.page("", "br, gzip;q=0.5")
    assert page.headers["Content-Encoding"] == "gzip"
    text = gzip.decompress(page.content).decode()
    assert refusals(plain_text(text)) == {"farthing_refusals_total": 1}


@pytest.mark.parametrize("version", ["x", "", "1.x", "9" * 99])
@pytest.mark.parametrize("kind", ["text/plain", "application/openmetrics-text"])
async def test_a_version_that_is_none_does_no_harm(telemetry, kind, version):
    page = await telemetry.scraper.page(f"{kind};version={version}", "")
    assert b"farthing_refusals_total" in page.content


async def test_who_asks_at_the_same_time_gets_the_same_page(monkeypatch):
    scraper, written = Scraper(CollectorRegistry()), []
    whole = scraper._write

    def write(encode, zipped):
        written.append(zipped)
        return whole(encode, zipped)

    monkeypatch.setattr(scraper, "_write", write)
    pages = await asyncio.gather(*(scraper.page("", "") for _ in range(5)))
    assert written == [False]
    assert len({id(page) for page in pages}) == 1
    await scraper.page("", "")
    assert len(written) == 2


async def test_one_who_leaves_does_not_take_the_page_from_others(telemetry):
    first = asyncio.create_task(telemetry.scraper.page("", ""))
    second = asyncio.create_task(telemetry.scraper.page("", ""))
    await asyncio.sleep(0)
    first.cancel()
    assert b"farthing_refusals_total" in (await second).content


@pytest.mark.parametrize("swept", [True, False])
@pytest.mark.parametrize("fails", [True, False])
async def test_nobody_looks_for_garbage_meanwhile(monkeypatch, fails, swept):
    """It would take a while, and stop all else that the process does."""
    seen = []

    def write(encode, zipped):
        seen.append(gc.isenabled())
        if fails:
            raise ValueError
        return b""

    scraper = Scraper(CollectorRegistry())
    monkeypatch.setattr(scraper, "_write", write)
    before = gc.isenabled()
    (gc.enable if swept else gc.disable)()
    try:
        with suppress(ValueError):
            await scraper.page("", "")
        assert (seen, gc.isenabled()) == ([False], swept)
    finally:
        (gc.enable if before else gc.disable)()
