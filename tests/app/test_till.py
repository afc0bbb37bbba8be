"""Keys and usage on the command line: tokens alone on stdout, mistakes in one line on stderr."""

import asyncio
import csv
import io
import re
from datetime import UTC, datetime

import pytest

from app.cli import main
from app.factory import open_accounts
from app.settings import Settings
from app.storage.records import Line, Reserve, Settle, Settlement

TOKEN = re.compile(r"sk-farthing-([0-9a-f]{12})-[A-Za-z0-9_-]{43}\n")


@pytest.fixture(autouse=True)
def _own_state(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FARTHING_{name.upper()}", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("FARTHING_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def till(capfd):
    """Runs `farthing`; its status, stdout and stderr."""

    def run(*args):
        with pytest.raises(SystemExit) as ended:
            main(args)
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def done(till):
    """Runs what must succeed; its stdout and stderr."""

    def run(*args):
        status, out, err = till(*args)
        assert status == 0, err
        return out, err

    return run


@pytest.fixture
def mistaken(till):
    """Runs what must fail; its one line."""

    def run(*args, status=1):
        code, out, err = till(*args)
        assert (code, out) == (status, "")
        assert err.startswith("farthing: ")
        assert err.count("\n") == 1
        return err.removeprefix("farthing: ").rstrip("\n")

    return run


def asked(ask):
    """What the ledger answers."""

    async def run():
        accounts = open_accounts(Settings())
        await accounts.prepare()
        try:
            return await ask(accounts)
        finally:
            await accounts.close_database()

    return asyncio.run(run())


def held(id):
    return asked(lambda accounts: accounts.keyring.show(id))


def opens(token):
    return asked(lambda accounts: accounts.keyring.authenticate(token))


def made(done, *args):
    """The id and token of a new key."""
    out, _ = done("keys", "create", *args)
    match = TOKEN.fullmatch(out)
    assert match
    return match[1], out.strip()


def spend(key, cost, model="large", tenant="", gpu_us=None):
    """One answer that was paid for, in 1e-12 USD."""

    async def run(accounts):
        ledger, id = accounts.ledger, f"{key}.{cost}"
        (granted,) = await ledger.apply([Reserve(id, key, cost, 1)], 2**62)
        lines = (Line(model, 5, 1, 7, 7, cost, gpu_us=gpu_us),)
        paid = Settlement(f"of {id}", key, "direct", model, "kept", 5, 7, cost, "v", tenant, lines)
        await ledger.apply([Settle(id, granted.amount, granted.windows, paid)], 2**62)

    asked(run)


def table(out):
    """The headings, and the rows as words."""
    headings, *rows = out.splitlines()
    return headings.split(), [row.split() for row in rows]


def test_a_new_key_s_token_is_alone_on_stdout(done):
    out, err = done("keys", "create", "team search", "--usd-per-day", "5", "--label", "team=a=b")
    match = TOKEN.fullmatch(out)
    assert match
    assert match[1] in err and "team search" in err and "shown once" in err
    assert out.strip()[-43:] not in err
    key = opens(out.strip())
    assert (key.name, key.admin, key.labels) == ("team search", False, {"team": "a=b"})


def test_every_limit_can_be_given(done):
    id, _ = made(
        done,
        *("all", "--admin", "--usd-per-minute", "0.000000000001", "--usd-per-day", "1"),
        *("--usd-per-month", "2", "--usd-total", "3", "--requests-per-minute", "4"),
        *("--tokens-per-minute", "5", "--concurrency", "6", "--default-budget-usd", "0.1"),
        *("--max-budget-usd", "0.2", "--model", "economy", "--model", "large"),
        *("--expires", "2100-01-31", "--label", "a=b", "--label", "c=d"),
    )
    assert held(id).fields() == {
        "name": "all",
        "admin": True,
        "usd_per_minute": "0.000000000001",
        "usd_per_day": "1",
        "usd_per_month": "2",
        "usd_total": "3",
        "requests_per_minute": 4,
        "tokens_per_minute": 5,
        "concurrency": 6,
        "default_budget_usd": "0.1",
        "max_budget_usd": "0.2",
        "models": ["economy", "large"],
        "expires": "2100-01-31T00:00:00+00:00",
        "labels": {"a": "b", "c": "d"},
    }


def test_none_takes_a_limit_away_and_the_rest_stays(done):
    id, token = made(
        done,
        *("a", "--usd-per-day", "5", "--concurrency", "2", "--model", "large", "--usd-total", "9"),
        *("--expires", "2100-01-31", "--label", "a=b"),
    )
    out, err = done(
        *("keys", "limit", id, "--usd-per-day", "none", "--model", "none", "--expires", "none"),
        *("--concurrency", "3"),
    )
    assert out == ""
    assert err == f"key {id}: usd_total=9 concurrency=3\n"
    fields = held(id).fields()
    assert (fields["usd_per_day"], fields["models"], fields["expires"]) == (None, None, None)
    assert (fields["usd_total"], fields["concurrency"], fields["labels"]) == ("9", 3, {"a": "b"})
    _, err = done("keys", "limit", id, "--usd-total", "none", "--concurrency", "none")
    assert err == f"key {id}: no limits\n"
    assert opens(token).id == id


def test_none_is_no_limit_where_a_key_is_made(done):
    id, _ = made(done, "a", "--usd-total", "none", "--model", "none")
    assert (held(id).fields()["usd_total"], held(id).fields()["models"]) == (None, None)


def test_a_revoked_key_stays_in_the_list(done):
    id, token = made(done, "a")
    out, err = done("keys", "revoke", id)
    assert (out, id in err) == ("", True)
    _, ((listed, _, state, *_),) = table(done("keys", "list")[0])
    assert (listed, state) == (id, "revoked")
    with pytest.raises(Exception, match="revoked"):
        opens(token)


def test_a_rotated_key_s_token_is_alone_on_stdout(done):
    id, old = made(done, "a")
    out, err = done("keys", "rotate", id)
    assert TOKEN.fullmatch(out)[1] == id
    assert out.strip() != old
    assert id in err and out.strip() not in err
    assert opens(out.strip()).id == id
    with pytest.raises(Exception, match="not an API key"):
        opens(old)
    new, _ = done("keys", "rotate", id, "--grace-s", "60")
    assert opens(out.strip()).id == opens(new.strip()).id == id


def test_the_list_shows_states_amounts_and_limits_whole(done):
    long = "a key whose name is as long as a name may be, " + "x" * 82
    limits = ["--usd-per-minute", "1.000000000001", "--usd-per-day", "2.000000000002"]
    limits += ["--usd-per-month", "3.000000000003", "--usd-total", "4.000000000004"]
    models = [part for n in range(20) for part in ("--model", f"model-of-some-length-{n}")]
    first, _ = made(done, long, *limits, *models)
    made(done, "the admin", "--admin")
    made(done, "gone", "--expires", "2020-01-01")
    spend(first, 123_456_789_012)
    out, err = done("keys", "list")
    assert err == ""
    headings, *rows = out.splitlines()
    assert headings.split() == [
        *("id", "name", "state", "spent", "of", "which", "today", "held", "limits")
    ]
    assert len(rows) == 3
    assert rows[0].split()[0] == first
    assert long in rows[0]
    for whole in ("0.123456789012", "usd_per_day=2.000000000002", "model-of-some-length-19"):
        assert whole in rows[0]
    assert "\u2026" not in out
    assert " admin " in rows[1] and " expired " in rows[2]


@pytest.mark.parametrize(
    "name", ["[red]", "[/]", "[bold]x[/bold]", ":smile:", "'; DROP TABLE keys; --", "日本", "\\["]
)
def test_a_name_is_shown_as_it_is(done, name):
    made(done, name)
    assert name in done("keys", "list")[0]


def test_without_keys_the_list_is_empty(done):
    assert len(done("keys", "list")[0].splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("create", ""), "name: "),
        (("create", "a\nb"), "name: must be printable"),
        (("create", "a", "--usd-total", "lots"), "usd_total: must be an amount of USD"),
        (("create", "a", "--usd-total", "-1"), "usd_total: must be an amount of USD"),
        (("create", "a", "--usd-per-day", "1e999999999"), "usd_per_day: must be an amount"),
        (("create", "a", "--concurrency", "0"), "concurrency: "),
        (("create", "a", "--requests-per-minute", "many"), "requests_per_minute: "),
        (("create", "a", "--expires", "soon"), "expires: must look like 2027-01-31"),
        (("create", "a", "--label", "team"), "--label: must look like NAME=VALUE"),
        (("create", "a", "--label", "=b"), "labels"),
        (
            ("create", "a", "--default-budget-usd", "2", "--max-budget-usd", "1"),
            "max_budget_usd: must not be below default_budget_usd",
        ),
        (("revoke", "0123456789ab"), "There is no API key '0123456789ab'"),
        (("rotate", "nope"), "There is no API key 'nope'"),
        (("limit", "nope", "--usd-total", "1"), "There is no API key 'nope'"),
        (("limit", "nope"), "nothing to change"),
        (("rotate", "nope", "--grace-s", "inf"), "grace_s: must be 0 to 2592000 seconds"),
        (("rotate", "nope", "--grace-s", "1e300"), "grace_s: must be 0 to 2592000 seconds"),
    ],
)
def test_a_mistake_about_keys_is_one_line(mistaken, args, said):
    assert mistaken("keys", *args).startswith(said)
    assert asked(lambda accounts: accounts.keyring.all()) == []


def test_a_mistaken_change_changes_nothing(done, mistaken):
    id, _ = made(done, "a", "--usd-total", "5")
    before = held(id)
    mistaken("keys", "limit", id, "--usd-total", "6", "--concurrency", "x")
    assert held(id) == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--by", "hour"), "by: must be some of day, model, policy, key, tenant"),
        (("--since", "yesterday"), "--since: must be a day, like 2027-01-31, not 'yesterday'"),
        (("--until", "2027-02-30"), "--until: must be a day"),
        (("--csv", "/nowhere/usage.csv"), "--csv: /nowhere/usage.csv cannot be written"),
    ],
)
def test_a_mistake_about_usage_is_one_line(mistaken, args, said):
    assert mistaken("usage", *args).startswith(said)


COMMANDS = [
    *(("keys", "list"), ("keys", "create", "a"), ("keys", "revoke", "a"), ("usage",)),
    *(("keys", "rotate", "a"), ("keys", "limit", "a", "--usd-total", "1")),
]


@pytest.mark.parametrize("args", COMMANDS)
def test_without_a_ledger_there_are_no_keys(mistaken, monkeypatch, args):
    monkeypatch.setenv("FARTHING_LEDGER", "off")
    assert "FARTHING_LEDGER=off" in mistaken(*args)


@pytest.mark.parametrize("args", COMMANDS)
def test_a_ledger_that_cannot_be_used_is_one_line(mistaken, monkeypatch, args, tmp_path):
    monkeypatch.setenv("FARTHING_LEDGER", "mysql://h/d")
    assert "FARTHING_LEDGER" in mistaken(*args)
    monkeypatch.setenv("FARTHING_LEDGER", "postgresql://u:sw0rdfish@127.0.0.1:1/d")
    said = mistaken(*args)
    assert "cannot be opened" in said and "sw0rdfish" not in said
    monkeypatch.delenv("FARTHING_LEDGER")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FARTHING_STATE_DIR", str(tmp_path / "file"))
    assert "FARTHING_STATE_DIR" in mistaken(*args)


def test_another_secret_is_refused(done, mistaken, monkeypatch):
    made(done, "a")
    monkeypatch.setenv("FARTHING_KEY_SECRET", "another secret of 16 characters")
    assert "FARTHING_KEY_SECRET" in mistaken("keys", "list")


@pytest.fixture
def spent(done):
    """The ids of two keys that have spent something, today."""
    ids = [made(done, name)[0] for name in ("ann", "bob")]
    spend(ids[0], 5 * 10**6)
    spend(ids[1], 123_456_789_012, "small", "acme")
    spend(ids[1], 10**12, "large", "acme", gpu_us=2_500_000)
    return ids


TODAY = str(datetime.now(UTC).date())


def test_usage_is_shown_whole(done, spent):
    out, err = done("usage")
    assert err == ""
    headings, rows = table(out)
    counts = ["requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd"]
    assert headings == ["day", "key", "model", "policy", *counts, "gpu_seconds"]
    assert sorted(rows) == sorted(
        [
            [TODAY, spent[0], "large", "direct", "1", "5", "1", "7", "0.000005"],
            [TODAY, spent[1], "small", "direct", "1", "5", "1", "7", "0.123456789012"],
            [TODAY, spent[1], "large", "direct", "1", "5", "1", "7", "1", "2.5"],
        ]
    )


def test_usage_of_one_key_by_other_groups(done, spent):
    out, _ = done("usage", "--key", spent[1], "--by", "tenant")
    headings, rows = table(out)
    assert headings[0] == "tenant"
    assert rows == [["acme", "2", "10", "2", "14", "1.123456789012", "2.5"]]
    assert table(done("usage", "--key", "nobody")[0])[1] == []


def test_usage_of_some_days(done, spent):
    for args, count in (
        (("--since", TODAY, "--until", TODAY), 1),
        (("--since", "9999-12-31"), 0),
        (("--until", "2020-01-01"), 0),
        (("--since", "0001-01-01", "--until", "9999-12-31"), 1),
    ):
        assert len(table(done("usage", "--by", "day", *args)[0])[1]) == count


def test_csv_goes_to_stdout_or_into_a_file(done, spent, tmp_path):
    out, err = done("usage", "--csv", "-", "--by", "key,tenant")
    assert err == ""
    headings, *rows = csv.reader(io.StringIO(out, newline=""))
    assert headings[:2] == ["key", "tenant"]
    assert {row[0]: row[-2:] for row in rows} == {
        spent[0]: ["0.000005", ""],
        spent[1]: ["1.123456789012", "2.5"],
    }
    path = tmp_path / "usage.csv"
    assert done("usage", "--csv", str(path), "--by", "key,tenant") == ("", "")
    assert path.read_bytes().decode() == out
    assert out.count("\r\n") == 3
