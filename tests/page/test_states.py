"""What the page says when it cannot answer, and what becomes of a key, a link and copied code."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

from playwright.sync_api import Page, expect

from app.accounts.keyring import checked
from app.engines.fake import Script
from tests.page.conftest import Asked, Opened, Played, Played_, slow

REFUSED = "Failed to load resource"  # what chromium itself says of a status
WORDS = ["the", "sky", "is", "blue", "as", "it", "is", "and", "that", "is", "all"]


def key(gateway: Played, **fields: Any) -> str:
    """The token of a new one."""
    keyring = gateway.app.state.front.door.accounts.keyring
    made = keyring.create(checked({"name": "page", **fields}))
    done: tuple[Any, str] = asyncio.run_coroutine_threadsafe(made, gateway.server.loop).result(10)
    return done[1]


def stored(page: Page) -> str:
    """All that the browser keeps."""
    return str(page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])"))


def test_a_key_is_asked_for_used_and_kept_no_longer_than_wished(
    played: Played_, visit: Opened
) -> None:
    with played() as gateway:
        token = key(gateway)
        page = visit(gateway.url, but=REFUSED, loaded=False)
        expect(page.locator("#notice")).to_contain_text("API key")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type(token)
        page.keyboard.press("Enter")
        expect(page.locator(".chip").first).to_be_visible()
        Asked(page).fill("why", "small", usd="").send().ended()
        expect(page.locator(".ink")).to_contain_text("the sky is blue")
        assert token not in stored(page) + page.url + page.content()
        page.click("#share")
        page.reload()
        expect(page.locator("#notice")).to_contain_text("API key")  # it was in memory alone
        page.fill("#key", token)
        page.check("#key-keep")
        page.click("text=Use it")
        expect(page.locator(".chip").first).to_be_visible()
        page.reload()
        expect(page.locator(".chip").first).to_be_visible()
        kept = json.loads(stored(page))
        assert kept[0] == {} and list(kept[1].values()) == [token]
        page.click("#key-open")
        page.click("#key-forget")
        assert token not in stored(page)


def test_a_budget_that_does_not_pay_is_told_with_its_reason(played: Played_, visit: Opened) -> None:
    with played() as gateway:
        page = visit(gateway.url, but=REFUSED)
        Asked(page).fill("why", "large", usd="0.00000001").send()
        expect(page.locator(".state")).to_have_text("refused (402)")
        expect(page.locator(".trouble")).to_contain_text("Raise the budget")
        page.click(".why")
        expect(page.locator("#why-body")).to_contain_text("budget_exceeded")


def test_a_budget_that_ends_cuts_the_answer(played: Played_, visit: Opened) -> None:
    with played() as gateway:
        page = visit(gateway.url)
        Asked(page).fill("why is that so", "large", usd="0.00012").send().ended()
        expect(page.locator(".state")).to_have_text("stopped by budget")
        assert 0 < page.locator(".t").count() < 10


def test_an_engine_that_fails_and_one_that_is_not_there(played: Played_, visit: Opened) -> None:
    failing = {"large": Script(WORDS, fails_after=4, delay=0.01)}
    with played(failing) as gateway:
        page = visit(gateway.url, but=REFUSED)
        asked = Asked(page).fill("why", "large", usd="").send()
        expect(page.locator(".trouble")).to_contain_text("fail")
        expect(page.locator(".print")).to_contain_text("broke off")
        assert page.locator(".t").count() == 4  # what came stays
        gateway.app.state.front.gateway = None
        asked.send()
        expect(page.locator(".trouble")).to_contain_text("still loading")
        expect(page.locator(".state")).to_have_text("refused (503)")


def test_a_gateway_that_is_gone(played: Played_, visit: Opened) -> None:
    with played() as gateway:
        page = visit(gateway.url, but=REFUSED)
        page.route("**/v1/**", lambda route: route.abort())
        Asked(page).fill("why", "large").send()
        expect(page.locator(".trouble")).to_contain_text("No gateway answers here")
        page.reload()
        expect(page.locator("#notice")).to_contain_text("No gateway answers here")
        page.unroute("**/v1/**")
        page.click("text=Try again")
        expect(page.locator(".chip").first).to_be_visible()


def test_a_link_carries_the_question_and_its_settings(played: Played_, visit: Opened) -> None:
    with played() as gateway:
        page = visit(gateway.url)
        prompt = "Why? 💡\n<b>So</b> שלום"
        Asked(page).fill(prompt, "economy", "large", usd="0.5", most="7", temperature="1.5")
        page.click("#options-a summary")
        page.fill("#options-a-raise_at", "1.25")
        page.click("#share")
        assert "#q=" in page.url and "Why" not in page.url
        link = page.url
        page = visit(link)
        expect(page.locator("#prompt")).to_have_value(prompt)
        for name, value in (("usd", "0.5"), ("most", "7"), ("temperature", "1.5")):
            expect(page.locator(f"#{name}")).to_have_value(value)
        expect(page.locator("#way-b")).to_have_value("large")
        expect(page.locator("#options-a summary")).to_contain_text("1 changed")
        assert gateway.fake.calls == []  # nothing is asked by opening it
        Asked(page).send().ended()
        page = visit(gateway.url + "#q=eyJ2IjoxLCJwcm9tcHQiOnt9LCJtb3N0IjoieCJ9")
        expect(page.locator("#prompt")).to_have_value("")
        expect(page.locator("#most")).to_have_value("128")


def test_copied_code_asks_the_same(played: Played_, visit: Opened) -> None:
    with played() as gateway:
        page = visit(gateway.url, permissions=["clipboard-read", "clipboard-write"])
        prompt = 'It\'s "why" $HOME `id` \\ \u2028 and é 💡'
        Asked(page).fill(prompt, "economy", usd="0.5", most="9")
        page.click("#options-a summary")
        page.fill("#options-a-raise_at", "1.25")
        copied = {}
        for name in ("curl", "python"):
            page.click(f"#{name}")
            expect(page.locator("#said")).to_have_text(
                f"{'curl' if name == 'curl' else 'Python'} copied"
            )
            copied[name] = str(page.evaluate("navigator.clipboard.readText()"))
        ran = {"PATH": os.environ["PATH"], "OPENAI_API_KEY": "unused", "NO_PROXY": "*"}
        commands = (["bash", "-c", copied["curl"]], [sys.executable, "-c", copied["python"]])
        for command in commands:
            done = subprocess.run(command, env=ran, capture_output=True, text=True, check=True)
            assert "sky" in done.stdout
        bodies = [call.messages for call in gateway.fake.calls]
        assert len(bodies) >= 2 and all(body == bodies[0] for body in bodies)
        assert bodies[0][0]["content"] == prompt


def test_while_one_answer_comes_no_other_is_asked(played: Played_, visit: Opened) -> None:
    with played({"large": slow(Script(WORDS * 20), 0.05)}) as gateway:
        page = visit(gateway.url)
        Asked(page).fill("why", "large", usd="").send()
        expect(page.locator("#send")).to_be_disabled()
        page.keyboard.press("Control+Enter")
        expect(page.locator(".t").nth(3)).to_be_visible()
        page.click("#stop")
        expect(page.locator("#send")).to_be_enabled()
        assert len(gateway.fake.calls) == 1
