"""Runs schemathesis for a while: no 5xx, no status, header or body that is not in the document."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from app.accounts.keyring import checked
from app.factory import create_app
from app.settings import Settings
from tests.policies.scripts import engine, fleet
from tests.running import running

ROOT = Path(__file__).parents[2]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
_COUNTED = re.compile(r'farthing_requests_total\{endpoint="([^"]+)",.*status="(\d+)"\} (\d+)')


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m tests.openapi", description=__doc__)
    asked.add_argument("--seconds", type=int, default=60)
    seconds = asked.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(state_dir=Path(folder), ledger=f"sqlite:///{folder}/ledger.db")
        app = create_app(settings, catalog=fleet(), engine=engine(length=12, vector=(0.6, -0.8)))
        with running(app, settings) as server:
            url = f"http://127.0.0.1:{server.port}"
            made = app.state.front.door.accounts.keyring.create(
                checked({"name": "a", "admin": True})
            )
            key, token = asyncio.run_coroutine_threadsafe(made, server._loop).result(30)
            one = {"model": "economy", "messages": [{"role": "user", "content": "why"}]}
            known = {"Authorization": f"Bearer {token}", "X-Request-Id": "schemathesis"}
            httpx.post(f"{url}/v1/chat/completions", json=one, headers=known).raise_for_status()
            another = {"model": "economy", "input": "why"}
            kept = httpx.post(f"{url}/v1/responses", json=another, headers=known)
            ids = {"KEY_ID": key.id, "RESPONSE_ID": kept.raise_for_status().json()["id"]}
            status = run(url, ids, token, seconds, folder)
            unanswered = [path for path, found in answers(url) if not found[2]]
    if unanswered:
        sys.exit(f"never answered, and so never tried: {', '.join(unanswered)}")
    sys.exit(status)


def run(url: str, ids: dict[str, str], token: str, seconds: int, folder: str) -> int:
    """schemathesis's own status. `ids`: for the hooks, as variables of the environment."""
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--max-time", str(seconds), "--continue-on-failure"),
        *("--header", f"Authorization: Bearer {token}", "--warnings", "off"),
    ]
    environment = {**os.environ, **ids, "SCHEMATHESIS_HOOKS": "tests.openapi.hooks"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, env=environment, cwd=folder, check=False).returncode


def answers(url: str) -> list[tuple[str, Counter[int]]]:
    """How often each path of the document was answered with 2xx, 4xx, …"""
    found: dict[str, Counter[int]] = {}
    for path, status, count in _COUNTED.findall(httpx.get(f"{url}/metrics").text):
        found.setdefault(path.replace(":path}", "}"), Counter())[int(status) // 100] += int(count)
    paths: Any = httpx.get(f"{url}/openapi.json").json()["paths"]
    return [(path, found.get(path, Counter())) for path in paths]


main()
