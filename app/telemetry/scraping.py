"""Writes the metrics down for whoever asks, in the format that it reads."""

from __future__ import annotations

import asyncio
import gc
import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest, gzip_accepted


@dataclass(frozen=True, slots=True)
class Page:
    content: bytes
    headers: dict[str, str]


class Scraper:
    """Writes one page at a time, in a thread, as it may be long; who asks for the same meanwhile
    gets the same."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._writing = asyncio.Lock()
        self._asked: dict[tuple[str, bool], asyncio.Task[Page]] = {}

    async def page(self, accept: str, encodings: str) -> Page:
        """The page for a client with these headers `Accept` and `Accept-Encoding`."""
        encode, kind = _encoder(accept)
        key = kind, gzip_accepted(encodings)
        task = self._asked.get(key)
        if task is None:
            task = asyncio.create_task(self._written(encode, *key))
            self._asked[key] = task
            task.add_done_callback(lambda _: self._asked.pop(key))
        return await asyncio.shield(task)  # others may wait for it when this client leaves

    async def _written(
        self, encode: Callable[[CollectorRegistry], bytes], kind: str, zipped: bool
    ) -> Page:
        async with self._writing:
            with _unswept():
                content = await asyncio.to_thread(self._write, encode, zipped)
        headers = {"Content-Type": kind, "Vary": "Accept, Accept-Encoding"}
        return Page(content, headers | ({"Content-Encoding": "gzip"} if zipped else {}))

    def _write(self, encode: Callable[[CollectorRegistry], bytes], zipped: bool) -> bytes:
        content = encode(self._registry)
        return gzip.compress(content, compresslevel=4) if zipped else content


@contextmanager
def _unswept() -> Iterator[None]:
    """Without a search for garbage. What a page is made of is many objects but no such garbage; to
    look through all of them, as their number would have it, stops the streams of this process."""
    swept = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if swept:
            gc.enable()


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """OpenMetrics or Prometheus' own text, and the type of its content."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        return generate_latest, choose_encoder("")[1]
