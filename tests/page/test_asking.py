"""Somebody asks the default fleet in a browser: sees who wrote, stops, compares, looks up why."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.page.conftest import WAIT_MS, Asked, Opened
from tests.real.real import Real, until

PICTURES = Path(__file__).parent / "pictures"
LARGE, SMALL, INT8 = "smollm2-135m", "smollm2-tiny", "smollm2-135m-int8"


def colour(page: Page, name: str) -> str:
    """The class of a model's colour, by the legend."""
    item = page.locator(".legend li", has_text=re.compile(f"^{name} [0-9]+$")).first
    return str(item.get_attribute("class"))


def picture(page: Page, name: str, config: pytest.Config) -> None:
    """Of the page as it is, for the README, in few colours."""
    if not config.getoption("--pictures"):
        return
    page.evaluate("scrollTo(0, 0)")
    page.mouse.move(0, 0)
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    PICTURES.mkdir(exist_ok=True)
    few = shot.quantize(96, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(PICTURES / f"{name}.png", optimize=True)


def test_tokens_come_in_the_colours_of_who_wrote_them(
    real: Real, visit: Opened, pytestconfig: pytest.Config
) -> None:
    page = visit(real.url)
    asked = Asked(page).fill("Why is the sky blue?", "economy", most="64")
    page.click("#options-a summary")
    page.fill("#options-a-raise_at", "3.5")
    page.click("#options-a summary")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    tokens = page.locator(".ink .t")
    expect(tokens.nth(2)).to_be_visible(timeout=WAIT_MS)
    early = tokens.count()
    asked.ended()
    assert tokens.count() > early
    first, second = colour(page, SMALL), colour(page, LARGE)
    assert first != second
    for name, of in ((SMALL, first), (LARGE, second)):
        assert page.locator(f".ink .t.{of}").count() > 3
        expect(page.locator(".pen", has_text=name).first).to_be_visible()
    shades = {str(one.get_attribute("class")).split()[2] for one in tokens.all()}
    assert len(shades) >= 3
    plot = page.locator(".plot")
    expect(plot.locator("canvas")).to_be_visible()
    expect(plot).to_have_attribute("aria-label", re.compile("Entropy of .* tokens: .* changed"))
    printed = page.inner_text(".print")
    assert printed.startswith("approximate · policy economy · ") and "switch" in printed
    assert re.fullmatch(r"\$0\.0\d+ of \$0\.0001 \(\d+(\.\d)?%\)", page.inner_text(".cost"))
    assert re.fullmatch(r"[\d.]+ m?s", page.inner_text(".ttft"))
    picture(page, "light", pytestconfig)


def test_the_log_of_an_answer_tells_what_the_page_told(real: Real, visit: Opened) -> None:
    page = visit(real.url)
    Asked(page).fill("Why is the sea salt?", "economy", most="32").send().ended()
    page.focus(".why")
    page.keyboard.press("Enter")
    body = page.locator("#why-body")
    expect(body).to_have_attribute("data-state", "told")
    id = page.inner_text(".print").split(" · ")[-1]
    log = real.http.get(f"/v1/decisions/{id}").json()
    expect(body).to_contain_text(f"{id}, {log['outcome']}")
    shown = body.get_by_role("region", name="Calls of models").locator("tbody tr")
    assert shown.count() == len(log["calls"])
    page.keyboard.press("Escape")
    expect(page.locator("#why")).to_be_hidden()
    expect(page.locator(".why")).to_be_focused()


def test_an_answer_is_stopped_and_so_is_its_model(real: Real, visit: Opened) -> None:
    page = visit(real.url, but="404 (Not Found)")  # asked for before it was settled
    Asked(page).fill("Count from one to five hundred.", LARGE, most="900", usd="").send()
    expect(page.locator(".ink .t").nth(2)).to_be_visible(timeout=WAIT_MS)
    page.keyboard.press("Escape")
    expect(page.locator(".state")).to_have_text("stopped by you")
    expect(page.locator("#send")).to_be_enabled()
    page.click(".why")  # it is settled a moment later; the page asks again
    expect(page.locator("#why-body")).to_have_attribute("data-state", "told")
    expect(page.locator("#why-body")).to_contain_text("completion")
    until(lambda: real.http.get("/health").json()["models"][LARGE]["running"] == 0, 60)


def test_two_ways_beside_each_other(real: Real, visit: Opened, pytestconfig: pytest.Config) -> None:
    page = visit(real.url, color_scheme="dark")
    prompt = "Repeat this three times: The quick brown fox jumps over the lazy dog."
    asked = Asked(page).fill(prompt, "economy", "swift", most="48", temperature="0").send().ended()
    left, right = asked.pane(0), asked.pane(1)
    expect(left.locator(".way")).to_have_text("economy")
    expect(right.locator(".way")).to_have_text("swift")
    boxes: list[Any] = [left.bounding_box(), right.bounding_box()]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    assert right.locator(".t.a").count() > 0
    expect(right.locator(".legend")).to_contain_text("guessed ahead")
    expect(right.locator(".print")).to_contain_text("exact: distributed as the model’s own")
    expect(left.locator(".print")).to_contain_text("approximate")
    picture(page, "dark", pytestconfig)
