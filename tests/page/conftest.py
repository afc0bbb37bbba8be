"""A real browser, Debian's chromium, before gateways on the default fleet and on scripts."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from app.catalog import Catalog
from app.engines.fake import Fake, Script
from app.factory import create_app
from app.settings import Settings
from tests.real import conftest as theirs
from tests.running import running

real = theirs.real  # one gateway on the default fleet for all of these tests
ENDED = re.compile("done|cut|failed")
WAIT_MS = 120_000  # for what models do, on a machine that others use too
ORDINARY_MS = 20_000
expect.set_options(timeout=ORDINARY_MS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", action="store_true", help="write the README's pictures anew")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium")
    assert found, "chromium is not installed: it is Debian's package of this name"
    rooted = ["--no-sandbox"] if os.getuid() == 0 else []  # chromium has none for root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=rooted)
        yield chromium
        chromium.close()


Opened = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Opened]:
    """Opens a page in a browser of its own; it may say nothing to the console that `but` does not
    name, and may reach nobody but its gateway."""
    said, reached = list[str](), set[str]()
    with ExitStack() as stack:

        def opened(url: str, but: str = "", loaded: bool = True, **context: Any) -> Page:
            made = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **context})
            made.set_default_timeout(ORDINARY_MS)
            stack.callback(made.close)
            page = made.new_page()
            page.on("request", lambda request: reached.add(request.url))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("dialog", lambda dialog: said.append(f"a dialog: {dialog.message}"))

            def heard(message: Any) -> None:
                if message.type in ("error", "warning") and not (but and but in message.text):
                    said.append(message.text)

            page.on("console", heard)
            page.goto(url)
            if loaded:
                expect(page.locator(".chip").first).to_be_visible()
            return page

        yield opened
    assert said == []
    assert {
        one for one in map(_origin, reached) if not one.startswith("http://127.0.0.1:")
    } == set()


def _origin(url: str) -> str:
    return "/".join(url.split("/")[:3])


@dataclass
class Played:
    """A gateway that plays scripts."""

    url: str
    fake: Fake
    app: Any
    server: Any


Played_ = Callable[..., Any]


@pytest.fixture
def played(tmp_path: Path, catalog: Catalog, fake: Fake) -> Played_:
    """Starts a gateway on these scripts, with these settings; a context manager."""

    @contextmanager
    def start(scripts: Mapping[str, Script] | None = None, **settings: Any) -> Iterator[Played]:
        fake.scripts = {**fake.scripts, **(scripts or {})}
        told = {"ledger": f"sqlite:///{tmp_path}/ledger.db", "state_dir": tmp_path, **settings}
        kept = Settings(**{"shutdown_grace_s": 0, **told})
        app = create_app(kept, catalog=catalog, engine=fake)
        with running(app, kept) as server:
            url = f"http://127.0.0.1:{server.port}{kept.root_path}/"
            yield Played(url, fake, app, server)

    return start


def slow(script: Script, delay: float = 0.02) -> Script:
    return replace(script, delay=delay)


@dataclass
class Asked:
    """A question on the page, put and waited for in a test's words."""

    page: Page

    def fill(self, prompt: str, way: str = "", beside: str | None = None, **more: str) -> Asked:
        page = self.page
        page.fill("#prompt", prompt)
        if way:
            page.select_option("#way-a", way)
        if beside is not None:
            page.select_option("#way-b", beside)
        for name, value in more.items():
            page.fill(f"#{name}", value)
        return self

    def send(self) -> Asked:
        self.page.click("#send")
        return self

    def ended(self) -> Asked:
        """Once every answer has ended, and all of it is drawn."""
        for pane in self.page.locator(".pane").all():
            expect(pane).to_have_attribute("data-state", ENDED, timeout=WAIT_MS)
            expect(pane).to_have_attribute("data-drawn", "all", timeout=WAIT_MS)
        return self

    def pane(self, at: int = 0) -> Any:
        return self.page.locator(".pane").nth(at)
