"""What could not be settled yet: on disk, whole lines only, and adopted by one process."""

import json
import math
import os
import threading
from dataclasses import replace

import pytest

from app.accounts.journal import Journal, Orphan
from app.storage.records import Explanation, Line, Release, Settle, Settlement, Windows

SETTLE = Settle(
    "r.hold",
    9,
    Windows(60, 0, 0),
    Settlement(
        "r", "k", "economy", "m", "steered", 3, 4, 7, "v1", "a tenant",
        (Line("m", 3, 1, 4, 4, 7, 5, 2, 0, 8),), 8, Explanation("theirs", 1000, '{"a":"\\u00e9"}'),
    ),
)  # fmt: skip
RELEASE = Release("x.hold", "k")


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal", "p")
    yield journal
    journal.close()


def read(path):
    """What an heir finds, which is gone then."""
    orphan = Orphan(path)
    try:
        entries = orphan.claim()
        if entries:
            orphan.settled()
        return entries
    finally:
        orphan.release()


def test_entries_come_back_as_they_were(journal, tmp_path):
    journal.write([SETTLE, RELEASE])
    journal.write([SETTLE])
    journal.close()
    path = tmp_path / "journal" / "p.jsonl"
    assert read(path) == [SETTLE, RELEASE, SETTLE]
    assert list((tmp_path / "journal").iterdir()) == []
    assert read(path) == []


def test_what_fails_stays(journal, tmp_path):
    journal.write([SETTLE])
    journal.close()
    path = tmp_path / "journal" / "p.jsonl"
    orphan = Orphan(path)
    assert orphan.claim() == [SETTLE]
    assert read(path) == []  # it is claimed
    orphan.release()  # the database was away
    assert read(path) == [SETTLE]


def test_a_living_process_s_file_is_its_own(journal, tmp_path):
    journal.write([SETTLE])
    path = tmp_path / "journal" / "p.jsonl"
    assert journal.orphans() == []
    assert len(Journal(tmp_path / "journal", "other").orphans()) == 1
    assert read(path) == []
    journal.clear()
    assert not path.exists()
    journal.write([RELEASE])  # the next outage
    journal.close()
    assert read(path) == [RELEASE]


def test_of_many_that_adopt_at_once_one_gets_it(journal, tmp_path):
    journal.write([SETTLE])
    journal.close()
    path, got, barrier = tmp_path / "journal" / "p.jsonl", [], threading.Barrier(8)

    def adopt():
        barrier.wait()
        got.extend(read(path))

    threads = [threading.Thread(target=adopt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [SETTLE]


def test_a_torn_line_is_left_out(journal, tmp_path):
    journal.write([SETTLE])
    journal.close()
    path = tmp_path / "journal" / "p.jsonl"
    with path.open("ab") as file:
        file.write(b'{"kind":"Settle","reservation":"s.ho')
    assert read(path) == [SETTLE]


def test_what_a_newer_version_wrote_is_kept_for_it(journal, tmp_path):
    journal.write([SETTLE])
    journal.close()
    path = tmp_path / "journal" / "p.jsonl"
    newer = path.read_text().replace('"amount":9', '"amount":9,"novel":1')
    path.write_text(newer + path.read_text())
    assert read(path) == [SETTLE]
    assert path.with_suffix(".rejected").read_text() == newer


def test_what_an_older_version_wrote_is_settled_with_its_decisions(journal, tmp_path):
    journal.write(
        [SETTLE, replace(SETTLE, settlement=replace(SETTLE.settlement, explanation=None))]
    )
    journal.close()
    path = tmp_path / "journal" / "p.jsonl"
    explained, plain = map(json.loads, path.read_text().splitlines())
    decided = {"kind": "steer", "model": "m", "token": 3, "entropy": 1.5, "threshold": -math.inf}
    for entry, decisions in ((explained, [decided]), (plain, [])):
        del entry["settlement"]["explanation"]
        entry["settlement"]["decisions"] = decisions
    path.write_text(f"{json.dumps(explained)}\n{json.dumps(plain)}\n")
    old, none = read(path)
    assert replace(old.settlement, explanation=None) == none.settlement
    assert old.settlement.explanation.request_id == "r"
    content = json.loads(old.settlement.explanation.content)
    # As new ones say it, in JSON that any reader takes.
    assert content["decisions"] == [decided | {"threshold": "-inf"}]
    assert content["outcome"] == "steered"


def test_a_full_disk_keeps_whole_lines(journal, tmp_path, monkeypatch):
    journal.write([RELEASE])
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        journal.write([SETTLE])
    monkeypatch.undo()
    journal.write([RELEASE])
    journal.close()
    assert read(tmp_path / "journal" / "p.jsonl") == [RELEASE, RELEASE]


def test_only_its_owner_may_read_the_folder(journal, tmp_path):
    journal.write([SETTLE])
    assert (tmp_path / "journal").stat().st_mode & 0o077 == 0
