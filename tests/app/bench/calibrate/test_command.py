"""farthing calibrate, from its options to what it prints."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app.bench.calibrate import command
from app.bench.calibrate.serving import gateway
from app.bench.folders import alone_in
from app.catalog import read
from app.cli import cli
from app.engines.fake import Fake, Script
from app.errors import ConfigError
from app.factory import create_app
from app.settings import Settings
from tests.running import running

FLEET = """
[models.small]
engine = "vllm"
urls = ["http://127.0.0.1:9"]
family = "fake"
price = { input = 1, output = 2 }

[models.large]
engine = "vllm"
urls = ["http://127.0.0.1:9"]
family = "fake"
price = { input = 10, output = 20 }

[presets.economy]
policy = "entropy_switch"
small = "small"
large = "large"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "farthing.toml"
    path.write_text(FLEET)
    return path


@pytest.fixture
def fake() -> Fake:
    return Fake({"small": Script(["####", "4"]), "large": Script(["so", "####", "5"])})


@pytest.fixture
def url(config: Path, tmp_path: Path, fake: Fake) -> Iterator[str]:
    settings = Settings(state_dir=tmp_path, ledger="off", no_auth=True)
    with running(create_app(settings, catalog=read(config), engine=fake), settings) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k.jsonl"
    lines = [{"question": f"{n} and?", "answer": f"#### {4 + n % 2}"} for n in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def calibrate(config: Path, out: Path, *more: str) -> Any:
    return CliRunner().invoke(cli, ["calibrate", "--config", str(config), "--out", str(out), *more])


def test_all_of_it(config: Path, sums: Path, url: str, tmp_path: Path, fake: Fake) -> None:
    out = tmp_path / "calibration"
    more = ("--url", url, "--task", f"gsm8k={sums}", "--quick", "--limit", "4")
    done = calibrate(config, out, *more)
    assert done.exit_code == 0, done.output
    work = "3 ways to answer, 4 questions, seeds: 1: 22 requests with those of each model alone"
    assert work in done.output and f"{work}," not in done.output
    assert 'profile = "' + str(out.resolve() / "profile.json") in done.output
    assert "in place of a table [planner]" in done.output  # the default fleet has one
    (worth,) = [line for line in done.output.splitlines() if line.startswith("Worth having")]
    assert "small" in worth and "large" not in worth  # which is no better, and dearer
    with (out / "ways.csv").open() as file:
        ways = {row["way"]: row for row in csv.DictReader(file)}
    assert set(ways) == {"small", "large", "economy"}
    page = (out / "report.html").read_text()
    assert "<html" in page and "it takes 20 questions that all ways were asked" in page
    assert (out / "auto.csv").read_text().startswith("usd,questions,auto_quality")
    # What is written is what farthing.toml may name.
    named = config.with_name("again.toml")
    named.write_text(f'{FLEET}\n[planner]\nprofile = "{out / "profile.json"}"\n')
    profile = read(named).profile
    assert profile is not None and set(profile.runtimes) == {"small", "large"}
    assert {way.name: way.quality["gsm8k"].mean for way in profile.ways}["small"] == 0.5
    assert list(profile.entropies) == ["small"]
    told = "farthing calibrate --quick --task gsm8k=gsm8k.jsonl --limit 4 --seeds 1 --levels 1,4"
    assert profile.measured.endswith(f"Z, {told}") and told in (out / "report.html").read_text()
    made = len(fake.calls)
    done = calibrate(config, out, *more)
    assert done.exit_code == 0 and f"{work}, 16 of them answered before" in done.output
    assert len(fake.calls) == made  # nothing is asked twice


def test_after_a_crash_it_goes_on(
    config: Path, sums: Path, url: str, tmp_path: Path, fake: Fake
) -> None:
    out = tmp_path / "calibration"
    more = ("--url", url, "--task", f"gsm8k={sums}", "--preset", "small", "--levels", "1")
    assert calibrate(config, out, *more).exit_code == 0
    made, answers = len(fake.calls), out / "answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-20])
    done = calibrate(config, out, *more)
    assert done.exit_code == 0, done.output
    assert len(fake.calls) == made + 1


def test_two_at_once_in_one_folder(
    config: Path, sums: Path, url: str, tmp_path: Path, fake: Fake
) -> None:
    """Each would be as slow as both, and its times be kept as its own."""
    with alone_in(tmp_path / "calibration"):
        more = ("--url", url, "--task", f"gsm8k={sums}")
        done = calibrate(config, tmp_path / "calibration", *more)
    assert isinstance(done.exception, ConfigError) and "another run" in str(done.exception)
    assert not fake.calls


def test_some_settings_at_a_temperature(
    config: Path, sums: Path, url: str, tmp_path: Path, fake: Fake
) -> None:
    out = tmp_path / "calibration"
    more = ("--url", url, "--task", f"gsm8k={sums}", "--limit", "1", "--levels", "2")
    setting = "economy;raise_at=2.5"
    more = (*more, "--preset", "economy", "--preset", setting, "--dials", "1")
    done = calibrate(config, out, *more, "--temperature", "0.7")
    assert done.exit_code == 0, done.output
    assert {call.sampling.temperature for call in fake.calls} == {0.7}
    profile = json.loads((out / "profile.json").read_text())
    assert len(profile["ways"]) == 3 and setting in [way["name"] for way in profile["ways"]]
    told = f"--preset economy --preset '{setting}' --dials 1 --limit 1 --seeds 1 --levels 2"
    assert profile["measured"].endswith(f"{told} --temperature 0.7")


def test_a_budget_that_does_not_last(config: Path, sums: Path, url: str, tmp_path: Path) -> None:
    out = tmp_path / "calibration"
    more = ("--url", url, "--task", f"gsm8k={sums}", "--quick", "--limit", "4")
    done = calibrate(config, out, *more, "--usd", "0.002")
    assert done.exit_code == 0, done.output
    assert "the budget of 0.002 USD did not pay for" in done.output
    kept = [path.read_text().splitlines() for path in out.glob("*.jsonl")]
    assert 0 < sum(json.loads(line)["spent"] for each in kept for line in each) <= 2 * 10**9


def test_what_was_under_way_is_gone_on_with(
    config: Path, sums: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", stopped)
    done = calibrate(config, tmp_path / "here", "--url", url, "--task", f"gsm8k={sums}")
    assert done.exit_code != 0
    assert "here/, and the same command goes on from there" in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--preset", "auto"), "there is no 'auto' to measure: small, large, economy"),
        (("--task", "gsm8k"), "--task: must look like gsm8k=FILE.jsonl"),
        (("--levels", "0"), "--levels: must be whole numbers of at least 1"),
        (("--usd", "-1"), "--usd: must be a decimal number of USD"),
        (("--judge", "huge"), "does not serve huge"),
    ],
)
def test_what_cannot_be(
    config: Path, url: str, tmp_path: Path, more: tuple[str, ...], why: str
) -> None:
    done = calibrate(config, tmp_path / "out", "--url", url, *more)
    assert done.exit_code == 1 and why in str(done.exception)


def test_a_gateway_that_wants_a_key(config: Path, sums: Path, tmp_path: Path, fake: Fake) -> None:
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    names = {"FARTHING_STATE_DIR": str(tmp_path), "FARTHING_LEDGER": ledger}
    assert CliRunner().invoke(cli, ["keys", "create", "somebody"], env=names).exit_code == 0
    settings = Settings(state_dir=tmp_path, ledger=ledger)
    with running(create_app(settings, catalog=read(config), engine=fake), settings) as server:
        url = f"http://127.0.0.1:{server.port}"
        done = calibrate(config, tmp_path / "out", "--url", url, "--task", f"gsm8k={sums}")
    assert done.exit_code == 1 and "the gateway: FARTHING_API_KEY: 401" in str(done.exception)


def test_no_gateway(config: Path, sums: Path, tmp_path: Path) -> None:
    task = ("--task", f"gsm8k={sums}")
    done = calibrate(config, tmp_path / "out", "--url", "http://127.0.0.1:9", *task)
    assert isinstance(done.exception, ConfigError) and "the gateway" in str(done.exception)


def test_a_gateway_of_its_own(config: Path, tmp_path: Path) -> None:
    """It serves this fleet, to nobody else, and does not outlive what it was made for."""
    with pytest.raises(KeyboardInterrupt), gateway(config, tmp_path / "gateway.log") as url:
        models = httpx.get(f"{url}/v1/models").json()["data"]
        assert {entry["id"] for entry in models} == {"small", "large", "economy"}
        assert "127.0.0.1" in url and url[-5:] != ":8080"
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.skipif(sys.platform != "linux", reason="a process is told of its parent's death there")
def test_a_gateway_goes_with_a_calibration_that_is_killed(config: Path, tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from app.bench.calibrate.serving import gateway
with gateway(Path({str(config)!r}), Path({str(tmp_path / "gateway.log")!r})) as url:
    print(url, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL and run.stdout.startswith("http://127.0.0.1:")
    with pytest.raises(httpx.HTTPError):
        for _ in range(1000):
            httpx.get(f"{run.stdout.strip()}/v1/models")
