"""farthing explain: an answer's account in the terminal, from the ledger or a gateway."""

import json

import httpx
import pytest

from app import telling, terminal
from app.cli import main
from app.settings import Settings
from app.storage.records import Explanation, Reserve, Settle, Settlement
from app.telling import told
from tests.app.test_till import asked, done, made, mistaken, till  # noqa: F401  (fixtures)
from tests.routers.conftest import house, serve  # noqa: F401  (fixtures)

DOCUMENT = {
    "at": "2027-01-31T12:00:00.000Z",
    "outcome": "steered",
    "request": {"model": "economy", "kind": "chat", "stream": True, "max_tokens": 60}
    | {"fallback": "cheapest", "best_of": None},
    "plan": {"policy": "entropy_switch", "preset": "economy", "models": ["large", "small"]}
    | {"fidelity": "approximate", "options": {"raise_at": 2.5, "switch_at": []}},
    "estimate": {"budget_usd": 0.0025, "worst_usd": 0.01, "prompt_tokens": 7},
    "alternatives": [
        {"kind": "plan", "name": "economy", "chosen": True, "reason": "it was asked for"}
        | {"usd": 0.01, "fits": False},
        {"kind": "model", "name": "small", "chosen": False, "reason": "economy was asked for"}
        | {"usd": 0.000065, "fits": True},
    ],
    "decisions": [
        {"at_s": 0.2, "kind": "switch", "model": "large", "token": 12, "choice": 0}
        | {"entropy": 2.75, "threshold": 2.5, "rest_usd": 0.002, "saves_s": None},
    ],
    "calls": [
        {"model": "small", "began_s": 0.01, "queued_s": 0.0, "ttft_s": 0.05, "duration_s": 0.19}
        | {"prompt_tokens": 7, "cached_tokens": 0, "completion_tokens": 13, "usd": 0.000033}
        | {
            "outcome": "ok",
            "why": "entropy",
            "attempts": [
                {"server": "a:8000", "outcome": "failed", "ended_s": 0.1, "error": "it fell over"},
                {"server": "b:8000", "outcome": "ok", "ended_s": 0.2},
            ],
        },
    ],
    "cost": {"usd": 0.000433, "gpu_seconds": None, "price_version": "v", "prompt_tokens": 7}
    | {"models": {"small": {"usd": 0.000033, "prompt_tokens": 7, "visible_tokens": 12}}},
    "times": {"first_token_s": 0.05, "duration_s": 0.7, "overhead_s": 0.001},
    "left_out": {"calls": 3},
}


@pytest.fixture(autouse=True)
def _own_state(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FARTHING_{name.upper()}", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("FARTHING_STATE_DIR", str(tmp_path / "state"))


def settled(key, id="chatcmpl-1", request_id="theirs", content=DOCUMENT):
    """One answer that was paid for, with its explanation."""

    async def run(accounts):
        ledger = accounts.ledger
        (granted,) = await ledger.apply([Reserve(f"{id}.hold", key, 5, 1)], 2**62)
        explanation = Explanation(request_id, 10**9, json.dumps(content))
        paid = Settlement(id, key, outcome="kept", cost=5, explanation=explanation)
        await ledger.apply([Settle(granted.id, granted.amount, granted.windows, paid)], 2**62)

    asked(run)


def words(out):
    return [line.split() for line in out.splitlines()]


def test_an_answer_of_the_ledger_is_told_by_either_id(done):  # noqa: F811
    key, _ = made(done, "a key")
    settled(key)
    out, err = done("explain", "chatcmpl-1")
    assert err == "" and done("explain", "theirs")[0] == out
    lines = words(out)
    assert lines[0] == ["chatcmpl-1", DOCUMENT["at"], "steered"]
    assert ["request", "theirs"] in lines and ["key", key] in lines
    assert ["options", "raise_at=2.5"] in lines
    for row in (
        "yes economy plan 0.01 no it was asked for",
        "small model 0.000065 yes economy was asked for",
        "at s token what model entropy threshold rest USD",
        "0.2 12 switch large 2.75 2.5 0.002",
        "0.01 small 7 0 13 0.000033 0 0.05 0.19 ok entropy",
        "a:8000 failed it fell over",
        "b:8000 ok",
        "small 7 12 0.000033",
        "in all 7 0.000433",
        "left out, as it would be too long: 3 calls",
    ):
        assert row.split() in lines, row
    assert "\033" not in out


def test_as_json_it_is_what_the_gateway_gives(done):  # noqa: F811
    key, _ = made(done, "a key")
    settled(key)
    out, _ = done("explain", "theirs", "--json")
    ours = {"id": "chatcmpl-1", "object": "decisions", "request_id": "theirs", "key": key}
    assert json.loads(out) == {**ours, **DOCUMENT}


def test_what_is_left_of_an_older_version_is_told_too(done):  # noqa: F811
    key, _ = made(done, "a key")
    left = {name: DOCUMENT[name] for name in ("outcome", "decisions")}
    settled(key, content={**left, "plan": {"policy": "economy"}, "request": {"model": "m"}})
    out, _ = done("explain", "chatcmpl-1")
    lines = words(out)
    assert lines[0] == ["chatcmpl-1", "steered"]
    assert ["0.2", "12", "switch", "large", "2.75", "2.5", "0.002"] in lines


def test_an_unknown_id_and_a_missing_ledger_are_told_in_one_line(mistaken, monkeypatch):  # noqa: F811
    assert mistaken("explain", "nope") == "there is no answer 'nope', or it is kept no longer"
    assert "'a\\x1b'" in mistaken("explain", "a\x1b")
    monkeypatch.setenv("FARTHING_LEDGER", "off")
    assert "FARTHING_LEDGER=off" in mistaken("explain", "nope")


def test_what_would_steer_a_terminal_is_left_out(monkeypatch, capsys):
    document = {"id": "i", "request_id": "r\x1b[2J", "key": "k", "outcome": "kept", **DOCUMENT}
    monkeypatch.setattr(telling, "_of_gateway", lambda url, id: document)
    with pytest.raises(SystemExit):
        main(["explain", "i", "--url", "http://h"])
    assert "\x1b" not in capsys.readouterr().out


def test_columns_of_which_nothing_is_known_are_left_out():
    document = {"id": "i", "request_id": "r", "key": "k", **DOCUMENT}
    tables = {title: headings for title, headings, _ in told(document)}
    assert "saves s" not in tables["decisions"] and "choice" not in tables["decisions"]
    assert "quality" not in tables["ways"] and "GPU s" not in tables["cost"]
    (first, *_) = told({**document, "error": {"type": "KeySpent", "code": "budget_exceeded"}})
    assert first[0] == f"i  {DOCUMENT['at']}  steered (budget_exceeded)"


async def test_a_gateway_that_runs_is_asked_with_the_key(house, monkeypatch, capsys):  # noqa: F811
    token = await house.token()
    id = (await house.ask(token, "economy", {"X-Request-Id": "a b/c"})).json()["id"]
    found = (await house.get(f"/v1/decisions/{id}", token)).json()
    seen = []

    def answer(request):
        seen.append((request.url.raw_path, request.headers.get("authorization")))
        there = request.url.raw_path == b"/v1/decisions/a%20b%2Fc"
        error = {"error": {"message": "id: there is no such answer", "code": "answer_not_found"}}
        return httpx.Response(200 if there else 404, json=found if there else error)

    client, connect = httpx.MockTransport(answer), terminal.connect
    monkeypatch.setattr(terminal, "connect", lambda url, key: connect(url, client, key=key))
    monkeypatch.setenv("FARTHING_API_KEY", token)
    with pytest.raises(SystemExit):
        main(["explain", "a b/c", "--url", "http://h:1/v1", "--json"])
    assert json.loads(capsys.readouterr().out) == found
    with pytest.raises(SystemExit) as ended:
        main(["explain", "x", "--url", "h:1"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "farthing: id: there is no such answer\n"
    assert seen[0] == (b"/v1/decisions/a%20b%2Fc", f"Bearer {token}")
