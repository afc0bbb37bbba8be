"""Who cannot see, use a mouse or a wide screen can use the page too; and under any URL."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.page.conftest import Asked, Opened, Played_

STEPS = 60  # of Tab, by which all that there is has been reached


def faults(page: Page) -> list[str]:
    """What axe-core finds wrong, WCAG 2.2 AA and good practice."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:160]}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wrong_by_axe(played: Played_, visit: Opened, scheme: str) -> None:
    with played() as gateway:
        page = visit(gateway.url, color_scheme=scheme, reduced_motion="reduce")
        assert faults(page) == []
        Asked(page).fill("why is that", "economy", "large", usd="0.01").send().ended()
        page.click("#options-a summary")
        page.click("#options-b summary")
        page.click("#key-open")
        assert page.locator(".ink .pen").count() > 1
        assert faults(page) == []
        page.check(".pane:first-child .views input[value=markdown]")
        page.locator(".why").first.click()
        expect(page.locator("#why-body")).to_have_attribute("data-state", "told")
        assert faults(page) == []


def test_errors_can_be_read_too(played: Played_, visit: Opened) -> None:
    with played() as gateway:
        for scheme in ("light", "dark"):
            page = visit(gateway.url, but="Failed to load", color_scheme=scheme)
            Asked(page).fill("why", "large", usd="0.00000001").send()
            expect(page.get_by_role("alert").filter(has_text="Raise the budget")).to_be_visible()
            assert faults(page) == []


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.id || document.activeElement.className"))


def tab_to(page: Page, name: str) -> None:
    for _ in range(STEPS):
        if focused(page) == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not lead to {name}")


def test_the_keyboard_suffices(played: Played_, visit: Opened) -> None:
    with played() as gateway:
        page = visit(gateway.url)
        tab_to(page, "prompt")
        page.keyboard.type("why")
        tab_to(page, "way-a")
        page.keyboard.type("economy")
        tab_to(page, "usd")
        page.keyboard.press("Control+A")
        page.keyboard.type("0.01")
        tab_to(page, "send")
        page.keyboard.press("Enter")
        Asked(page).ended()
        tab_to(page, "ink")
        page.keyboard.press("ArrowRight")
        expect(page.locator(".detail")).to_contain_text('token 1: "the "')
        expect(page.locator(".detail")).to_contain_text("written by small · entropy 0.1 bits")
        page.keyboard.press("End")
        expect(page.locator(".detail")).to_contain_text("large")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Shift+Tab")
        assert focused(page) == "why"
        page.keyboard.press("Enter")
        expect(page.locator("#why")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#why")).to_be_hidden()


TREE = """
- heading "Farthing who wrote each token" [level=1]
- heading "Examples" [level=2]
- group "Examples":
  - button "Two writers"
- textbox "Prompt": why
- combobox "Answered by"
- combobox "Beside it"
- textbox "Budget, USD"
- spinbutton "Tokens, at most"
- spinbutton "Temperature"
- button /Send/
- button /Stop/ [disabled]
- button "Copy a link"
- button "Copy as curl"
- button "Copy as Python"
"""


def test_a_screen_reader_s_tree_names_all_there_is(played: Played_, visit: Opened) -> None:
    with played() as gateway:
        page = visit(gateway.url)
        Asked(page).fill("why", "economy", usd="0.01").send().ended()
        tree = page.locator("body").aria_snapshot()
        at = 0
        for line in TREE.strip().splitlines():
            name = line.strip("- ").split(" [")[0].rstrip(":").replace("/", '"')
            kind, _, text = name.partition(" ")
            text = text.split(":")[0].strip('"')
            found = tree.find(f'{kind} "{text}', at)
            assert found >= 0, f"{name} is not in\n{tree}"
            at = found
        status = page.get_by_role("status")
        expect(status).to_have_text("economy: complete, 23 tokens, " + page.inner_text(".cost"))
        expect(page.get_by_role("region", name="Answer of economy", exact=True)).to_be_visible()
        expect(page.get_by_role("meter")).to_have_attribute("aria-valuenow", "3.7")
        assert (
            "large" in page.get_by_role("region", name="Answer of economy", exact=True).inner_text()
        )
        expect(page.get_by_role("img")).to_have_attribute(
            "aria-label", re.compile("^Entropy of 23 tokens: .* the pen changed hands 1 time")
        )


def test_it_fits_on_400_pixels(played: Played_, visit: Opened) -> None:
    with played() as gateway:
        page = visit(gateway.url, viewport={"width": 400, "height": 800}, has_touch=True)
        Asked(page).fill("why " + "x" * 300, "economy", "large", usd="0.5").send().ended()
        page.click("#options-a summary")
        page.click("#key-open")
        over = """[...document.querySelectorAll('body *')]
            .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
            .filter((one) => !one.closest('.ink, .scroll, .hidden, .skip'))
            .map((one) => one.outerHTML.slice(0, 80))"""
        assert page.evaluate(over) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for button in page.locator("main button:visible").all():
            box: Any = button.bounding_box()
            assert box["height"] >= 24, button.inner_text()  # WCAG 2.2, 2.5.8
        page.locator(".t").nth(3).tap()
        expect(page.locator(".detail").first).to_contain_text("token 4")


@contextmanager
def proxied(upstream: str, prefix: str) -> Iterator[str]:
    """A reverse proxy that takes `prefix` away; its own URL of the page."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    port = [0]

    async def passed(request: web.Request) -> web.StreamResponse:
        url = upstream + request.raw_path.removeprefix(prefix)
        kept = {
            n: v for n, v in request.headers.items() if n.lower() not in ("host", "content-length")
        }
        async with (
            aiohttp.ClientSession(auto_decompress=False) as client,
            client.request(request.method, url, headers=kept, data=await request.read()) as got,
        ):
            headers = {n: v for n, v in got.headers.items() if n.lower() != "transfer-encoding"}
            answer = web.StreamResponse(status=got.status, headers=headers)
            await answer.prepare(request)
            async for part in got.content.iter_any():
                await answer.write(part)
            return answer

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", prefix + "/{rest:.*}", passed)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port[0] = runner.addresses[0][1]
        ready.set()
        await done.wait()
        await runner.cleanup()

    done = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{port[0]}{prefix}/"
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()


def test_it_works_behind_a_proxy_that_takes_a_prefix_away(played: Played_, visit: Opened) -> None:
    with played() as gateway, proxied(gateway.url.rstrip("/"), "/tools/chat") as url:
        page = visit(url)
        Asked(page).fill("why", "economy", usd="0.01").send().ended()
        expect(page.locator(".ink")).to_contain_text("the sky is blue")
        page.click(".why")
        expect(page.locator("#why-body")).to_have_attribute("data-state", "told")


def test_it_works_under_a_prefix_of_its_own(played: Played_, visit: Opened) -> None:
    with played(root_path="/llm") as gateway:
        page = visit(gateway.url.rstrip("/"))  # it leads to the slash
        assert page.url.endswith("/llm/")
        Asked(page).fill("why", "economy", usd="0.01").send().ended()
        expect(page.locator(".ink")).to_contain_text("the sky is blue")
        page.reload()
        expect(page.locator(".chip").first).to_be_visible()
