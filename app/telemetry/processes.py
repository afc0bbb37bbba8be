"""What several processes count, put together: each writes files that whoever is asked reads."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from app.telemetry.allocated import Allocated
from app.telemetry.metrics import METRICS, Across

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""By which the library learns, when it is imported, that it is to write files, and where."""
GONE = math.nan  # of a gauge whose labels are no more: what is in a file stays in it
_PATIENCE_S = 10.0  # with a worker that was stopped while it read
_PREFIX = "farthing-metrics-"
_OWNED = "owned"  # a lock that a parent holds as long as it lives, however it ends
_YOUNG_S = 60.0  # a folder may not be owned yet
_DEAD = "dead"  # in place of a process's number
_TOGETHER: dict[Across, Callable[[Iterable[float]], float]] = {
    "sum": sum,
    "max": max,
    "min": min,
}


class Folder:
    """Where the workers of one parent write: new and empty, so that nobody's old numbers count."""

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._owned = FileLock(self.path / _OWNED, timeout=0, thread_local=False)
        self._owned.acquire()

    def bury(self, pid: int) -> None:
        """A worker has died: what it counted stays, what it said of the moment goes.

        The counts of all the dead are in one file of each kind, or there would be more to read
        with each that dies. Raises filelock.Timeout where a worker that reads does not end.
        """
        with _lock(self.path):
            mark_process_dead(pid, str(self.path))
            for kind in ("counter", "histogram"):
                of_it = self.path / f"{kind}_{pid}.db"
                if of_it.exists():
                    self._add(of_it, self.path / f"{kind}_{_DEAD}.db")

    def remove(self) -> None:
        self._owned.release()
        shutil.rmtree(self.path, ignore_errors=True)

    def _add(self, of_one: Path, of_all: Path) -> None:
        """Whoever reads meanwhile waits, and so never finds both or neither."""
        sums: dict[str, float] = {}
        for path in filter(Path.exists, (of_all, of_one)):
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                sums[key] = sums.get(key, 0.0) + value
        whole = of_all.with_suffix(".new")
        written = Allocated(str(whole))
        for key, value in sums.items():
            written.write_value(key, value, 0.0)
        written.close()
        whole.replace(of_all)
        of_one.unlink()


class Together(Collector):
    """The metrics of all workers: those of the dead too, gauges but of the living.

    The library's own collector makes an object of every number of every process, each time: with
    thousands of series, collecting that garbage holds up all else for longer than a token takes.
    Here what a series is called is looked into once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Family]:
        families: dict[str, Family] = {}
        histograms: dict[str, _Spread] = {}
        for key, values in self._read().items():
            metric, name, labels, child = _parsed(key)
            family = families.get(metric)
            if family is None:
                known = METRICS[metric]
                family = families[metric] = Family(
                    metric.removesuffix("_total"), known.text, known.kind
                )
            if family.type != "histogram":
                together = _TOGETHER[METRICS[metric].across]
                family.samples.append(Sample(name, labels, together(values)))
                continue
            spread = histograms.get(child)
            if spread is None:
                spread = histograms[child] = _Spread(family)
            spread.take(name, labels, sum(values))
        for spread in histograms.values():
            spread.end()
        yield from families.values()

    def _read(self) -> dict[str, list[float]]:
        """The numbers of each process, by what the library calls a series in its files."""
        found: dict[str, list[float]] = {}
        with _lock(self._path):
            for path in self._path.glob("*.db"):
                if not path.stat().st_size:
                    continue  # its worker has opened it just now
                for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                    if value == value:  # else it is GONE
                        found.setdefault(key, []).append(value)
        return found


class _Spread:
    """One histogram under its labels: in the files its buckets do not include each other."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._labels: dict[str, str] = {}
        self._sum = 0.0
        self._buckets: list[tuple[float, dict[str, str], float]] = []

    def take(self, name: str, labels: dict[str, str], value: float) -> None:
        if name.endswith("_bucket"):
            self._buckets.append((float(labels["le"]), labels, value))
        else:
            self._labels, self._sum = labels, value

    def end(self) -> None:
        name, count = self._family.name, 0.0
        add = self._family.samples.append
        for _, labels, value in sorted(self._buckets, key=lambda bucket: bucket[0]):
            count += value
            add(Sample(f"{name}_bucket", labels, count))
        add(Sample(f"{name}_count", self._labels, count))
        add(Sample(f"{name}_sum", self._labels, self._sum))


@lru_cache(maxsize=2**17)
def _parsed(key: str) -> tuple[str, str, dict[str, str], str]:
    """The metric, the sample's name, its labels, and what all of a histogram have in common."""
    family, name, labels, _ = json.loads(key)
    child = json.dumps([family, {label: labels[label] for label in labels if label != "le"}])
    metric = name if name in METRICS else family
    return metric, name, labels, child


def _sweep(folders: Path) -> None:
    """Remove those whose parents were killed: nobody else will."""
    for path in folders.glob(f"{_PREFIX}*"):
        with suppress(OSError, Timeout):  # somebody else's, in use, or just removed by another
            if time.time() - path.stat().st_mtime > _YOUNG_S:
                with FileLock(path / _OWNED, timeout=0, thread_local=False):
                    shutil.rmtree(path, ignore_errors=True)


def _lock(path: Path) -> FileLock:
    # Not of the thread that took it: metrics are read in whatever thread is free.
    return FileLock(path / "lock", timeout=_PATIENCE_S, thread_local=False)
