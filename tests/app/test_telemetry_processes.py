"""What several processes count is put together, the dead's too."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import Timeout
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from app.telemetry import processes
from app.telemetry.allocated import Allocated
from app.telemetry.metrics import METRICS
from app.telemetry.processes import GONE, VARIABLE, Folder, Together


@pytest.fixture
def folder():
    folder = Folder()
    yield folder
    folder.remove()
    assert not folder.path.exists()


def write(folder, pid, name, value, sample=None, **labels):
    """As the library writes in a process of this number."""
    metric = METRICS[name]
    kind = "gauge_liveall" if metric.kind == "gauge" else metric.kind
    file = MmapedDict(str(folder.path / f"{kind}_{pid}.db"))
    base = name.removesuffix("_total")
    file.write_value(mmap_key(base, sample or name, labels, labels.values(), ""), value, 0.0)
    file.close()


def read(folder):
    registry = CollectorRegistry()
    registry.register(Together(folder.path))
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("name", "together"),
    [
        *(("farthing_workers", 5), ("farthing_ledger_lag_seconds", 4)),
        *(("process_start_time_seconds", 1), ("farthing_ledger_settled_total", 5)),
    ],
)
def test_each_metric_is_put_together_in_its_way(folder, name, together):
    write(folder, 1, name, 4.0)
    write(folder, 2, name, 1.0)
    assert read(folder) == {(name,): together}


def test_of_a_server_that_one_of_them_does_not_reach_it_is_told(folder):
    for pid, up in ((1, 1.0), (2, 0.0)):
        write(folder, pid, "farthing_engine_up", up, model="m", server="a:1")
        write(folder, pid, "farthing_engine_up", 1.0, model="m", server="b:1")
    up = "farthing_engine_up"
    assert read(folder) == {(up, "a:1", "m"): 0.0, (up, "b:1", "m"): 1.0}


def test_what_a_gauge_no_more_tells_of_counts_for_nothing(folder):
    write(folder, 1, "farthing_queue_waiting", GONE, model="old")
    write(folder, 1, "farthing_queue_waiting", 2.0, model="new")
    write(folder, 2, "farthing_queue_waiting", GONE, model="new")
    assert read(folder) == {("farthing_queue_waiting", "new"): 2.0}


def test_the_dead_are_gathered_in_one_file(folder):
    name = "farthing_ledger_write_seconds"
    for pid in range(1, 6):
        write(folder, pid, "farthing_ledger_settled_total", float(pid))
        write(folder, pid, "farthing_workers", 1.0)
        write(folder, pid, name, 1.0, f"{name}_bucket", le="0.01")
        write(folder, pid, name, 2.0, f"{name}_bucket", le="+Inf")
        write(folder, pid, name, 0.5, f"{name}_sum")
    before = read(folder)
    for pid in (1, 2, 3, 4):
        folder.bury(pid)
        after = read(folder)
        assert after.pop(("farthing_workers",)) == 5 - pid
        assert after == {
            key: value for key, value in before.items() if "farthing_workers" not in key
        }
    assert after[(f"{name}_count",)] == 15
    assert after[(f"{name}_bucket", "0.01")] == 5
    names = {path.name for path in folder.path.glob("*.db")}
    assert names == {
        *(f"{kind}_{of}.db" for kind in ("counter", "histogram") for of in ("dead", 5)),
        "gauge_liveall_5.db",
    }


def test_a_worker_that_was_stopped_while_it_read_holds_nobody_up_for_ever(folder, monkeypatch):
    monkeypatch.setattr(processes, "_PATIENCE_S", 0.1)
    write(folder, 1, "farthing_workers", 1.0)
    with processes._lock(folder.path):
        with pytest.raises(Timeout):
            folder.bury(1)
        with pytest.raises(Timeout):
            read(folder)
    folder.bury(1)
    assert read(folder) == {}


def test_who_has_just_begun_has_not_counted_yet(folder):
    (folder.path / "counter_7.db").touch()
    assert read(folder) == {}


def test_who_died_before_it_counted_leaves_nothing(folder):
    folder.bury(77)
    assert read(folder) == {}


COUNTING = """
import json, sys
from pathlib import Path
from prometheus_client import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from app.telemetry.counting import Telemetry
from app.telemetry.names import Who
from app.telemetry.processes import Together

path = Path(sys.argv[1])
telemetry = Telemetry(path)
telemetry.names.know(["m"], {}, ["p"])
for n in range(40):
    telemetry.requested("/", Who("m", "none", "p"), 200, n / 10)
    telemetry.next_tokens(Who("m", "none", "p"))(n / 100, 3)
    telemetry.refused("queue_full")
telemetry.show("farthing_workers", {(): 1})
telemetry.show("farthing_queue_waiting", {("m",): 2, ("n",): 3})
telemetry.show("farthing_queue_waiting", {("m",): 4})

def told(collector):
    return sorted(
        [s.name, sorted(s.labels.items()), s.value]
        for family in collector.collect()
        for s in family.samples
        if family.type != "gauge" and family.name != "process_cpu_seconds"
    )

text = generate_latest(telemetry._made.registry).decode()
assert "# TYPE farthing_refusals_total counter" in text, text
gauges = {s.name: s.value for f in telemetry._made.registry.collect() for s in f.samples}
print(json.dumps([told(Together(path)), told(MultiProcessCollector(None, str(path))), gauges]))
"""


def test_real_counts_are_read_as_the_library_reads_them(folder):
    """A change of what its files hold would show here."""
    environment = {**os.environ, VARIABLE: str(folder.path)}
    for pid in range(3):
        done = subprocess.run(
            [sys.executable, "-c", COUNTING, str(folder.path)],
            env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        ours, theirs, gauges = json.loads(done.stdout)
        assert ours == theirs
        assert len(ours) > 50
        counts = {name: value for name, labels, value in ours if name.endswith(("_total", "count"))}
        assert counts["farthing_refusals_total"] == 40 * (pid + 1)
        assert counts["farthing_inter_token_latency_seconds_count"] == 120 * (pid + 1)
        assert gauges["farthing_queue_waiting"] == 4 * (pid + 1)
        assert gauges["farthing_workers"] == pid + 1


def test_the_library_writes_no_help_into_each_number(folder):
    """Which would be most of what is read with each scrape."""
    key = json.loads(mmap_key("name", "name_total", ["a"], ["b"], ""))
    assert key == ["name", "name_total", {"a": "b"}, ""]


def test_files_have_no_holes_that_a_full_disk_could_not_fill(tmp_path):
    path = tmp_path / "counter_1.db"
    file = Allocated(str(path))
    for n in range(2000):
        file.write_value(f"series {n:0200}", n, 0.0)
        assert path.stat().st_blocks * 512 >= path.stat().st_size >= file._used
    assert [value for _, value, _ in file.read_all_values()] == list(range(2000))
    file.close()


FULL = """
import resource, signal
from pathlib import Path
from app.telemetry.counting import Telemetry
telemetry = Telemetry(Path({folder!r}))
names = [f"m{{n}}" for n in range(200)]
telemetry.names.know(names, {{}}, ["direct"])
telemetry.settled(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
failed = 0
for name in names:
    try:
        telemetry.requested("/v1", telemetry.names.who(name, "", "direct"), 200, 1.0)
    except OSError:
        failed += 1
telemetry.settled(1)
print(failed > 0, telemetry.scrape().decode().count("farthing_ledger_settled_total 2.0"))
"""


def test_who_may_write_no_more_goes_on_with_what_there_is(folder):
    done = subprocess.run(
        [sys.executable, "-c", FULL.format(folder=str(folder.path))],
        env={**os.environ, VARIABLE: str(folder.path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True", "1"], done.stderr


KILLED = """
import os, signal
from app.telemetry.processes import Folder
print(Folder().path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_folder_of_a_parent_that_was_killed_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living = Folder()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    dead = Path(killed.stdout.strip())
    assert dead.parent == tmp_path and dead.is_dir()
    young = Folder()
    assert dead.exists()  # it may be about to be owned
    for path in (living.path, young.path, dead):
        os.utime(path, (0, 0))
    last = Folder()
    assert sorted(tmp_path.iterdir()) == sorted([living.path, young.path, last.path])
    for folder in (living, young, last):
        folder.remove()
    assert list(tmp_path.iterdir()) == []


ALONE = """
from app.telemetry.counting import Telemetry
telemetry = Telemetry()
telemetry.settled(1)
print(telemetry.scrape().decode().count("farthing_ledger_settled_total 1.0"))
"""


@pytest.mark.parametrize("there", [True, False])
def test_who_is_alone_leaves_another_program_s_folder_alone(tmp_path, there):
    theirs = tmp_path if there else tmp_path / "gone"
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env={**os.environ, VARIABLE: str(theirs)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["1"], done.stderr
    assert list(tmp_path.iterdir()) == []
