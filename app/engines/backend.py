"""What a fleet asks of one server that serves one model."""

from __future__ import annotations

from typing import Protocol

from app.types import Engine, Load


class Backend(Engine, Protocol):
    """One server, one model. Holds nothing open until it is first asked.

    One that can tell by which tokenizer its ids are has an attribute `fingerprint: str | None`
    too, known once a probe succeeded: models of a family must agree on it.
    """

    @property
    def url(self) -> str: ...

    @property
    def idempotent(self) -> bool:
        """Whether a call that broke off before its first byte may be repeated elsewhere.

        Not where the first attempt may be billed.
        """
        ...

    async def probe(self) -> None:
        """Find out what the server can do by trying, one real completion included.

        Raises FarthingError. May be cancelled, and asked again at any time.
        """
        ...

    async def pulse(self) -> Load:
        """A cheap check: is it there, and how many calls run and wait, of whomever they are.

        Raises EngineError. May be cancelled.
        """
        ...

    async def aclose(self) -> None:
        """Give back what is held. Streams that are still open may break off."""
        ...


def fingerprint(backend: Backend) -> str | None:
    """What tells this server's tokenizer from others, where that is known."""
    found = getattr(backend, "fingerprint", None)
    return found if isinstance(found, str) else None
