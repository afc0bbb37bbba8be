"""The page at /: what is sent, kept and forbidden; how it looks is for `make test-page`."""

import gzip
import re

import httpx
import pytest

from app import palette
from app.factory import create_app
from app.reasons import Kind
from routers.page import site

VENDORED = ("uPlot", "purify", "marked")


@pytest.fixture
def open_house(settings, catalog, fake):
    """Clients of a gateway with these settings, who unpack nothing."""

    def opened(**update):
        app = create_app(settings.model_copy(update=update), catalog=catalog, engine=fake)
        plain = {"Accept-Encoding": "identity"}
        transport = httpx.ASGITransport(app)
        return httpx.AsyncClient(transport=transport, base_url="http://farthing", headers=plain)

    return opened


def named(page):
    """The files that a page names."""
    return re.findall(r'(?:href|src)="(page/[^"]+)"', page)


async def test_it_is_there_with_all_its_files(client):
    page = await client.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "{{" not in page.text and len(named(page.text)) >= 5
    for name in named(page.text):
        file = await client.get("/" + name)
        assert (file.status_code, file.headers["x-content-type-options"]) == (200, "nosniff")
        assert file.headers["content-type"].split("/")[0] in ("text", "image")


async def test_every_module_finds_those_that_it_imports(client):
    modules = {
        name: file.body.decode() for name, file in site().files.items() if name[-3:] == ".js"
    }
    ours = {name: text for name, text in modules.items() if not name.startswith("vendor/")}
    found = {
        path
        for text in ours.values()
        for path in re.findall(r'(?:from|import|import\() ?"(\./[^"]+)"', text)
    }
    assert "./words.js" in found and "./vendor/purify.min.js" in found
    assert {path.removeprefix("./") for path in found} <= set(modules)


async def test_nothing_stands_in_the_page_that_could_run_and_nothing_comes_from_elsewhere(client):
    page = await client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "require-trusted-types-for 'script'" in policy and "frame-ancestors 'none'" in policy
    assert not re.search(r"<style|<script(?![^>]* src=)|\son\w+=|\sstyle=|javascript:", page.text)
    assert not re.search(r'(?:href|src)="(?:https?:)?//?', page.text)
    ours = [f for n, f in site().files.items() if n[-3:] == ".js" and not n.startswith("vendor/")]
    for file in ours:
        assert not re.search(
            rb"innerHTML|outerHTML|insertAdjacentHTML|eval\(|https?://(?!\|)", file.body
        )


async def test_it_may_be_off(open_house):
    async with open_house(page=False) as client:
        for path in ("/", f"/page/{site().digest}/app.js"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/v1/models")).status_code == 200


async def test_its_files_are_kept_for_good_and_the_page_is_asked_about(client):
    page = await client.get("/")
    assert page.headers["cache-control"] == "no-cache"
    (name,) = [name for name in named(page.text) if name.endswith("app.js")]
    assert "immutable" in (await client.get("/" + name)).headers["cache-control"]
    for path, body in (("/", page.content), ("/" + name, site().files["app.js"].body)):
        tag = (await client.get(path)).headers["etag"]
        for sent in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
            again = await client.get(path, headers={"If-None-Match": sent})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        other = await client.get(path, headers={"If-None-Match": '"other"'})
        assert (other.status_code, other.content) == (200, body)


@pytest.mark.parametrize("path", ["0123456789abcdef/app.js", "{}/nothing.js", "{}/", "{}/../page"])
async def test_files_of_another_version_and_no_files_are_not_there(client, path):
    assert (await client.get("/page/" + path.format(site().digest))).status_code == 404


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("br, GZIP;q=0.5", True), ("gzip;q=0, br", False), ("identity", False)],
)
async def test_it_is_packed_for_who_accepts_that(open_house, accepted, packed):
    async with (
        open_house() as client,
        client.stream("GET", "/", headers={"Accept-Encoding": accepted}) as answer,
    ):
        raw = b"".join([part async for part in answer.aiter_raw()])
    assert answer.headers["vary"] == "Accept-Encoding"
    assert (answer.headers.get("content-encoding") == "gzip") == packed
    assert (gzip.decompress(raw) if packed else raw) == site().index.body


async def test_a_look_at_its_headers_is_allowed_and_nothing_else(client):
    head = await client.head("/")
    assert head.status_code == 200 and head.headers["etag"]
    assert (await client.post("/")).status_code == 405


@pytest.mark.parametrize("prefix", ["/llm", "/a/b"])
async def test_under_a_prefix_relative_urls_lead_to_it(open_house, prefix):
    async with open_house(root_path=prefix) as client:
        bare = await client.get(prefix)
        assert bare.status_code == 307
        assert str(bare.url.join(bare.headers["location"])) == f"http://farthing{prefix}/"
        page = await client.get(prefix + "/")
        for name in named(page.text):
            assert (await client.get(str(page.url.join(name)))).status_code == 200


async def test_it_weighs_less_than_300_kb_and_each_foreign_file_has_its_licence(client):
    files = site().files
    licences = [name for name in files if name.endswith(".LICENSE")]
    assert sum(len(file.body) for name, file in files.items() if name not in licences) < 300_000
    assert {name.removeprefix("vendor/").split(".")[0] for name in licences} == set(VENDORED)
    foreign = [name for name in files if name.startswith("vendor/") and name not in licences]
    assert {name.removeprefix("vendor/").split(".")[0] for name in foreign} == set(VENDORED)


def test_every_kind_of_decision_has_its_words():
    assert set(palette.DECISIONS) == set(Kind.__args__)


@pytest.mark.parametrize("ground", ["#ffffff", "#191d23"])
def test_the_colours_of_models_can_be_read(ground):
    shade = "light" if ground == "#ffffff" else "dark"
    for each in palette.COLOURS:
        assert contrast(getattr(each, shade), ground) >= 4.5
    assert ground in site().files["page.css"].body.decode()


def contrast(one, other):
    """As WCAG 2.2 has it."""
    lights = sorted(map(luminance, (one, other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


async def test_policies_tell_their_options(client):
    listed = (await client.get("/v1/policies")).json()["data"]
    options = {one["id"]: one["options"]["properties"] for one in listed}
    assert {"direct", "entropy_switch", "speculative"} <= set(options)
    raise_at = options["entropy_switch"]["raise_at"]
    assert (raise_at["type"], raise_at["minimum"], raise_at["default"]) == ("number", 0, 2.5)
    assert raise_at["description"].startswith("bits")


async def test_policies_are_told_to_who_has_a_key(house):
    await house.key()
    assert (await house.get("/v1/policies")).status_code == 401
    assert (await house.get("/v1/policies", token=await house.token())).status_code == 200
    assert (await house.get("/")).status_code == 200
