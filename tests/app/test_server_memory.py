"""What a server has loaded is looked through for garbage once, and no more."""

import os
import time

import pytest

from tests.app.test_workers import ENGINE, PROGRAM
from tests.chaos.gateways import Gateway, Ledger

LOOKS = """
import gc
whole = app.server.Server._loaded

def loaded(self, loading):
    whole(self, loading)
    with open(os.path.join(os.environ["SEEN"], str(os.getpid())), "w") as file:
        file.write(str(gc.get_freeze_count()))

app.server.Server._loaded = loaded
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_loaded_is_kept_apart_in_every_process(tmp_path, workers):
    (tmp_path / "sitecustomize.py").write_text(ENGINE + LOOKS)
    seen = tmp_path / "seen"
    seen.mkdir()
    more = {"FARTHING_WORKERS": str(workers), "SEEN": str(seen)}
    more["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.getcwd()])
    gateway = Gateway(Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path, more), PROGRAM)
    try:
        gateway.ready()
        end = time.monotonic() + 60
        while len(counts := [path.read_text() for path in seen.iterdir()]) < workers or not all(
            counts
        ):
            assert time.monotonic() < end, "not every process said so"
            time.sleep(0.05)
    finally:
        gateway.kill()
    assert all(int(count) > 50_000 for count in counts), counts
