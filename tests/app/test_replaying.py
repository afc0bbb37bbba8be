"""farthing decisions and farthing replay: from the ledger or a file, to a table or JSON."""

from __future__ import annotations

import json

from tests.app.replay.logs import document, way
from tests.app.test_telling import settled
from tests.app.test_till import _own_state, asked, done, made, mistaken, till  # noqa: F401


def kept(id, **more):  # what the ledger holds of it
    whole = document(id, WAYS, **more)
    return {
        name: whole[name] for name in whole if name not in ("id", "object", "request_id", "key")
    }


WAYS = [way("small", 0.75, chosen=True, usd=1.0), way("large", 0.25, usd=3.0)]


def test_every_explanation_of_the_ledger_is_a_line(done):  # noqa: F811
    key, _ = made(done, "a key")
    other, _ = made(done, "another")
    for number in range(3):
        settled(key, f"chatcmpl-{number}", content=kept(f"{number}"))
    settled(other, "chatcmpl-x", content={"plan": {"policy": "cascade"}})
    out, err = done("decisions")
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["id"] for line in lines} == {f"chatcmpl-{n}" for n in (0, 1, 2, "x")}
    assert err == "4 answers\n" and lines[0]["object"] == "decisions"
    one = json.loads(done("explain", "chatcmpl-1", "--json")[0])
    assert one in lines
    assert len(done("decisions", "--key", key)[0].splitlines()) == 3
    assert done("decisions", "--since", "2999-01-01")[0] == ""
    assert done("decisions", "--until", "2001-01-01")[0] == ""
    assert len(done("decisions", "--since", "2001-01-01")[0].splitlines()) == 4


def test_a_log_and_the_ledger_it_is_of_are_replayed_alike(done, tmp_path):  # noqa: F811
    key, _ = made(done, "a key")
    for number in range(4):
        settled(key, f"chatcmpl-{number}", content=kept(f"{number}", cost={"usd": 1.0 + number}))
    settled(key, "chatcmpl-x", content={"plan": {"policy": "cascade"}})
    log = tmp_path / "log.jsonl"
    log.write_text(done("decisions")[0], encoding="utf-8")
    told = [json.loads(done("replay", *of, "--policy", "large", "--json")[0])
            for of in ((), (str(log),))]  # fmt: skip
    assert told[0] == told[1]
    assert (told[0]["decisions"], told[0]["skipped"]) == (4, {"of other policies": 1})
    logged, large = told[0]["policies"]
    assert logged["rewards"]["cost"]["snips"]["mean"] == 2.5
    assert large["rewards"]["cost"]["direct"]["mean"] == 3.0
    assert large["rewards"]["cost"]["ips"] is None  # it was never taken
    assert large["unsupported_requests"] == 0 and large["effective_sample_size"] == 0
    assert logged["rewards"]["quality"]["graded"] is False


def test_the_table_says_what_must_be_known_of_its_figures(done, tmp_path):  # noqa: F811
    alone = [way("small", 1.0, chosen=True), way("large", 0.0, usd=3.0)]
    log, grades = tmp_path / "log.jsonl", tmp_path / "grades.jsonl"
    lines = [document("a", alone), document("b", alone), document("c", [], outcome="refused")]
    log.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    grades.write_text('{"id": "a", "worth": 0.5}\n', encoding="utf-8")
    out, _ = done("replay", str(log), "--policy", "large", "--policy", "auto;quality=0.9")
    assert "2 decisions of the planner; not replayed: 1 refused before a way was chosen" in out
    assert "Nothing was explored" in out and "Quality was not graded" in out
    assert "large: 2 of 2 requests are without support" in out
    assert "The planner chose anew by what was expected" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["large", "2", "100.0%", "100.0%", "0.0"] in rows
    assert ["large", "cost,", "USD", "2", "3", "(3", "to", "3)", "-", "-", "-"] in rows
    out, _ = done("replay", str(log), "--policy", "small", "--grades", str(grades))
    assert "quality: not known of 1 requests" in out and "Quality was not graded" not in out


def test_mistakes_are_one_line(mistaken, tmp_path):  # noqa: F811
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(document("a", WAYS)) + "\n{\n", encoding="utf-8")
    assert mistaken("replay", str(log), "--policy", "small").startswith(f"{log}:2: not readable")
    assert "--policy: name a way" in mistaken("replay", str(log))
    log.write_text(json.dumps(document("a", WAYS, plan={"policy": "cascade"})), encoding="utf-8")
    assert "1 of other policies" in mistaken("replay", str(log), "--policy", "small")
    assert "nothing" in mistaken("replay", "--policy", "small")
    assert "of the ledger" in mistaken(
        "replay", str(log), "--policy", "small", "--since", "2026-01-01"
    )
    assert "--since: must be a day" in mistaken("decisions", "--since", "today")
