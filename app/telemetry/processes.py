"""What several processes count, put together: each writes files that whoever is asked reads."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from app.telemetry.metrics import METRICS, Across

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""By which the library learns, when it is imported, that it is to write files, and where."""
GONE = math.nan  # of a gauge whose labels are no more: what is in a file stays in it
_DEAD = "dead"  # in place of a process's number
_TOGETHER: dict[Across, Callable[[Iterable[float]], float]] = {
    "sum": sum,
    "max": max,
    "min": min,
}


class Folder:
    """Where the workers of one parent write: new and empty, so that nobody's old numbers count."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="farthing-metrics-"))

    def bury(self, pid: int) -> None:
        """A worker has died: what it counted stays, what it said of the moment goes.

        The counts of all the dead are in one file of each kind, or there would be more to read
        with each that dies.
        """
        with _lock(self.path):
            mark_process_dead(pid, str(self.path))
            for kind in ("counter", "histogram"):
                of_it = self.path / f"{kind}_{pid}.db"
                if of_it.exists():
                    self._add(of_it, self.path / f"{kind}_{_DEAD}.db")

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _add(self, of_one: Path, of_all: Path) -> None:
        """Whoever reads meanwhile waits, and so never finds both or neither."""
        sums: dict[str, float] = {}
        for path in filter(Path.exists, (of_all, of_one)):
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                sums[key] = sums.get(key, 0.0) + value
        whole = of_all.with_suffix(".new")
        written = MmapedDict(str(whole))
        for key, value in sums.items():
            written.write_value(key, value, 0.0)
        written.close()
        whole.replace(of_all)
        of_one.unlink()


class Together(Collector):
    """The metrics of all workers: those of the dead too, gauges but of the living."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = MultiProcessCollector(None, str(path))

    def collect(self) -> Iterator[Family]:
        with _lock(self._path):
            families: Iterable[Family] = list(self._files.collect())
        for family in families:
            name = f"{family.name}_total" if family.type == "counter" else family.name
            metric = METRICS[name]
            family.documentation = metric.text
            if family.type == "gauge":
                family.samples = _together(family.samples, metric.across)
            if family.samples:
                yield family


def _together(samples: Iterable[Sample], across: Across) -> list[Sample]:
    """One sample for each set of labels, of those of every process."""
    name, values = "", dict[tuple[tuple[str, str], ...], list[float]]()
    for sample in samples:
        if not math.isnan(sample.value):
            labels = tuple(pair for pair in sample.labels.items() if pair[0] != "pid")
            name = sample.name
            values.setdefault(labels, []).append(sample.value)
    return [
        Sample(name, dict(labels), _TOGETHER[across](found)) for labels, found in values.items()
    ]


def _lock(path: Path) -> FileLock:
    # Not of the thread that took it: metrics are read in whatever thread is free.
    return FileLock(path / "lock", thread_local=False)
