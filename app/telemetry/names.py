"""Which names may become labels: those of the catalog, so that series stay few."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
OTHER = "other"  # a name that we do not know
NONE = "none"  # there is no name
EMBEDDED = "embedded"  # the server of a model that runs in our process
LATER = 64  # further names of each kind that changes of the catalog may bring to one process


class Who(NamedTuple):
    """Under which labels something is counted."""

    model: str = NONE
    preset: str = NONE
    policy: str = NONE


NOBODY = Who()


class Server(NamedTuple):
    """A server, as labels name it."""

    model: str
    server: str


def server_at(url: str) -> str:
    """The label of the server at this URL: host, port and path."""
    parts = urlsplit(url)
    return f"{parts.netloc}{parts.path}" or OTHER


@dataclass
class Names:
    """The names that are known. They grow with each catalog, but not for ever: what was counted
    keeps its name as long as the process lives, so only so many may come later."""

    models: set[str] = field(default_factory=set)
    pairs: set[tuple[str, str]] = field(default_factory=set)  # preset and policy
    servers: set[Server] = field(default_factory=set)
    _left: dict[str, int] | None = None  # names of each kind that may yet come; None: any number

    def know(
        self,
        models: Iterable[str],
        presets: Mapping[str, str],
        policies: Iterable[str],
        servers: Iterable[Server] = (),
    ) -> None:
        """Count under these too; `presets`: which policy each has."""
        self._admit("models", self.models, models)
        pairs = [(NONE, NONE), (OTHER, OTHER), *((NONE, policy) for policy in policies)]
        self._admit("pairs", self.pairs, [*pairs, *presets.items()])
        self._admit("servers", self.servers, servers)
        self._left = self._left or dict.fromkeys(("models", "pairs", "servers"), LATER)

    @property
    def ways(self) -> set[str]:
        """Models and presets."""
        return (self.models | {preset for preset, _ in self.pairs}) - {NONE, OTHER}

    def who(self, model: str, preset: str, policy: str) -> Who:
        """The labels of these names; an empty one is that of nobody."""
        pair = (preset or NONE, policy or NONE)
        if pair not in self.pairs:
            pair = (OTHER, OTHER)
        return Who(self.model(model), *pair)

    def model(self, name: str) -> str:
        return name if name in self.models else OTHER if name and name != NONE else NONE

    def way(self, name: str) -> str:
        """Of a way to answer: a model or a preset."""
        return name if name in self.ways else OTHER

    def server(self, model: str, server: str) -> Server:
        named = Server(model, server)
        return named if named in self.servers else Server(self.model(model), OTHER)

    def _admit(self, kind: str, known: set[T], names: Iterable[T]) -> None:
        for name in names:
            if name in known:
                continue
            if self._left is not None:
                if not self._left[kind]:
                    continue
                self._left[kind] -= 1
            known.add(name)
