"""GET /: a page that shows who wrote each token, and the files that it is made of."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from app import palette

router = APIRouter(include_in_schema=False)
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PLACE = b"{{files}}"  # in index.html: the folder of its files, which has their digest in its name
_HEADERS = {
    # No script or style that stands in a page, nothing from elsewhere, and no text becomes HTML
    # but through the one sanitiser.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types dompurify"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept-Encoding",
}
_FOREVER = "public, max-age=31536000, immutable"
_ASK = "no-cache"  # it may be kept, but not used unasked


@dataclass(frozen=True)
class File:
    """One file, as it is sent."""

    kind: str
    body: bytes

    @cached_property
    def tag(self) -> str:
        """Weak, as it is the same packed and not."""
        return f'W/"{hashlib.sha256(self.body).hexdigest()[:16]}"'

    @cached_property
    def packed(self) -> bytes:
        return gzip.compress(self.body, mtime=0)


@dataclass(frozen=True)
class Site:
    """The page and its files. Their URLs change with what they hold, so they are kept for good."""

    files: Mapping[str, File] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        told = hashlib.sha256()
        for name, file in sorted(self.files.items()):
            told.update(name.encode() + b"\0" + file.body + b"\0")
        return told.hexdigest()[:16]

    @cached_property
    def index(self) -> File:
        page = self.files["index.html"]
        return File(page.kind, page.body.replace(_PLACE, f"page/{self.digest}".encode()))


@cache
def site() -> Site:
    """As it is installed, with the colours and words that the terminal has too."""
    found = dict(_read(files("app") / "page"))
    found["palette.css"] = File(_TYPES["css"], palette.stylesheet().encode())
    words = json.dumps(palette.told(), separators=(",", ":"))
    found["words.js"] = File(_TYPES["js"], f"export default {words};\n".encode())
    return Site(found)


def _read(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, File]]:
    for each in folder.iterdir():
        name = prefix + each.name
        if each.is_dir():
            yield from _read(each, f"{name}/")
        else:
            kind = _TYPES.get(name.rpartition(".")[2], "text/plain; charset=utf-8")
            yield name, File(kind, each.read_bytes())


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page. It asks the gateway like any client: its files need no key, what it asks may."""
    return _sent(request, site().index, _ASK)


@router.api_route("/page/{digest}/{name:path}", methods=["GET", "HEAD"])
async def part(request: Request, digest: str, name: str) -> Response:
    """One of its files, under a URL that is of this version of them alone."""
    found = site().files.get(name) if digest == site().digest else None
    if found is None:
        raise HTTPException(404)
    return _sent(request, found, _FOREVER)


def _sent(request: Request, file: File, kept: str) -> Response:
    headers = {**_HEADERS, "ETag": file.tag, "Cache-Control": kept}
    if _has(request.headers.get("if-none-match", ""), file.tag):
        return Response(status_code=304, headers=headers)
    if not _takes_gzip(request.headers.get("accept-encoding", "")):
        return Response(file.body, headers=headers, media_type=file.kind)
    headers["Content-Encoding"] = "gzip"
    return Response(file.packed, headers=headers, media_type=file.kind)


def _has(tags: str, tag: str) -> bool:
    """Whether a client has it already; weak or not makes no difference (RFC 9110, 13.1.2)."""
    known = {each.strip().removeprefix("W/") for each in tags.split(",")}
    return bool(known & {"*", tag.removeprefix("W/")})


def _takes_gzip(accepted: str) -> bool:
    for coding in accepted.lower().split(","):
        name, *parameters = (part.strip() for part in coding.split(";"))
        if name == "gzip":
            return not any(q.replace(" ", "") in ("q=0", "q=0.0") for q in parameters)
    return False


class _Bare(BaseRoute):
    """Our prefix without the slash at its end: relative URLs would lead out of it."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        bare = scope["type"] == "http" and scope["path"] == scope.get("root_path") != ""
        return (Match.FULL if bare else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        last = scope["path"].rpartition("/")[2]
        response = Response(status_code=307, headers={"Location": f"{last}/"})
        await response(scope, receive, send)


def install(app: FastAPI) -> None:
    """Beside the router: where the app has a prefix, that alone leads to the page too."""
    app.router.routes.append(_Bare())
