"""Requests of those who would have a gateway count under as many names as they can think of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
OTHERS = (
    *("/v1/embeddings", "/v1/models", "/v1/usage", "/tokenize", "/detokenize", "/health", "/"),
    *("/health/ready", "/metrics", "/admin/keys", "/v1/responses/resp_1", "/openapi.json"),
)
METHODS = ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "X" * 50)
_NASTY = (
    'a"} 1\nfarthing_cost_usd_total{model="x',
    *("none", "other", "", " ", "\\", '"', "\n", "\x00", "{}", "model", "le", "+Inf", "NaN"),
    *("../../metrics", "%2e%2e%2f", "small ", "SMALL", "smäll", "small\u200b", "economy/small"),
    *("direct/economy", "entropy_switch/", "/", "auto", "ⅿodel", "😀" * 300, "\ud800"),
)
_LETTERS = "abcdefghijklmnopqrstuvwxyzäß-_./:{}=,\"'\\ \t😀\u200b\u2028"


@dataclass(frozen=True)
class Attack:
    """One request, as the server has it from the wire."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


def attacks(count: int, seed: int) -> list[Attack]:
    random = Random(seed)
    return [_attack(random) for _ in range(count)]


def name(random: Random) -> str:
    """Never the same, but for some of bad repute; of up to 4 kB."""
    if random.random() < 0.2:
        return random.choice(_NASTY)
    length = random.choice((3, 8, 30, 200, 4096))
    return "".join(random.choices(_LETTERS, k=length))


def _attack(random: Random) -> Attack:
    path = random.choice(PATHS) if random.random() < 0.8 else random.choice(OTHERS)
    method = "POST" if random.random() < 0.9 else random.choice(METHODS)
    if random.random() < 0.1:
        path = "/" + "/".join(_plain(name(random))[:40] for _ in range(random.randint(1, 4)))
    if random.random() < 0.1:
        path += f"/{random.getrandbits(64):x}"
    return Attack(method, path, _headers(random), _body(random, path))


def _plain(text: str) -> str:
    return "".join(c for c in text if c.isascii() and c.isprintable() and c not in " ?#%")


def _headers(random: Random) -> list[tuple[bytes, bytes]]:
    ids = "".join(random.choices("0123456789abcdef", k=48))
    policies = ("economy", "entropy_switch", "speculative", "direct", "kv_prediction", name(random))
    options = ("", ";raise_at=2.0", f";small={_plain(name(random))[:50]}", ";large=small", ";x=1")
    values = {
        "X-Policy": f"{random.choice(policies)}{random.choice(options)}",
        "X-Budget-Usd": random.choice(("0.01", "1e999999999", "-1", "NaN", "0", name(random))),
        "X-Budget-Latency-Ms": random.choice(("10000", "0", name(random))),
        f"X-Budget-{_plain(name(random))[:30] or 'x'}": "1",
        "X-Budget-Fallback": random.choice(("strict", "cheapest", name(random))),
        "X-Request-Id": name(random),
        "X-Tenant-Id": name(random),
        "User-Agent": name(random),
        "traceparent": f"00-{ids[:32]}-{ids[32:48]}-01",
        "tracestate": f"{_plain(name(random))[:40]}=1",
        "Authorization": f"Bearer {name(random)}",
        "Accept": name(random),
        "X-Farthing-Policy": name(random),
    }
    few = random.sample(sorted(values), k=random.choice((0, 1, 1, 2, 3, 13)))
    found = {"content-type": "application/json", **{key: values[key] for key in few}}
    return [
        (key.lower().encode("latin-1"), value.encode("utf-8", "surrogatepass")[:4096])
        for key, value in found.items()
    ]


def _body(random: Random, path: str) -> bytes:
    if random.random() < 0.03:
        return random.randbytes(random.randint(0, 200))
    models = ("small", "large", "big", "economy", "entropy_switch/large", "direct/small")
    honest = random.random() < 0.4
    body: dict[str, Any] = {"model": random.choice(models) if honest else name(random)}
    body |= {"messages": [{"role": "user", "content": "why is the sky blue"}], "max_tokens": 6}
    if path == "/v1/completions":
        body["prompt"] = body.pop("messages")[0]["content"]
    elif path == "/v1/responses":
        body = {"model": body["model"], "input": "why is the sky blue", "max_output_tokens": 16}
    more = {
        "user": name(random),
        "metadata": {name(random)[:60]: name(random)[:500]},
        "safety_identifier": name(random),
        "policy": random.choice(
            (name(random), {"name": name(random)}, "economy", {name(random): 1})
        ),
        "budget": random.choice(({"usd": 0.01}, {name(random): 1}, {"usd": name(random)})),
        "tools": [{"type": "function", "function": {"name": _plain(name(random))[:64] or "f"}}],
        "response_format": {"type": random.choice(("text", "json_object", name(random)))},
        "stream": random.choice((True, False)),
        "n": random.choice((1, 2, 10**9)),
        name(random): name(random),
    }
    for key in random.sample(list(more), k=random.choice((0, 0, 1, 1, 2, 10))):
        body[key] = more[key]
    return json.dumps(body, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
