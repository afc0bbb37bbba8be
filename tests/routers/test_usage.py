"""What was spent, by day, model, policy, key and tenant, and to whom it is told."""

import asyncio
import csv
import io
from datetime import UTC, date, datetime, timedelta

import pytest

from app.accounts.reports import as_csv, groups, period
from app.catalog import PICO
from app.errors import BadRequest
from app.storage.ledger import milliseconds
from app.storage.records import UsageRow
from tests.conftest import LARGE, SMALL
from tests.routers.conftest import CHAT, bearer
from tests.routers.reading import asking, events
from tests.routers.test_bad_input import refused

COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
DAY_MS = 86_400_000
LONG, SHORT = len(LARGE.split()), len(SMALL.split())


def cost(answer):
    """1e-12 USD, as the client was told."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        return round(events(answer.text)[-1]["usage"]["cost"] * PICO)
    return round(answer.json()["usage"]["cost"] * PICO)


async def rows(house, token=None, url="/v1/usage", **query):
    answer = await house.visitor.get(url, headers=bearer(token), params=query)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["object"] == "list"
    return body["data"], body["total"]


def pico(row):
    return round(row["cost"] * PICO)


async def test_an_answer_counts_once_with_its_tokens_and_its_cost(house):
    token = await house.token()
    first, second = [await house.ask(token, "large") for _ in range(2)]
    (row,), total = await rows(house, token)
    today = str(datetime.now(UTC).date())
    assert row == {
        "day": today,
        "model": "large",
        "policy": "direct",
        "requests": 2,
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "completion_tokens": 2 * LONG,
        "cost": pytest.approx((cost(first) + cost(second)) / PICO),
    }
    assert total == {name: row[name] for name in (*COUNTS, "cost")}


async def test_sums_are_what_clients_were_told(house):
    id, token = await house.key()
    told = []
    for model in ("small", "large", "economy", "big", "entropy_switch/large"):
        for fields in ({}, {"max_tokens": 3}, {"stream": True}):
            if fields.get("stream"):
                fields = {**fields, "stream_options": {"include_usage": True}}
            told.append(cost(await house.ask(token, model, **fields)))
        headers = {"X-Budget-Usd": "0.0002"}
        told.append(cost(await house.ask(token, model, headers)))
    for by in ("", "day", "model", "policy", "day,model,policy,tenant", "policy,model"):
        data, total = await rows(house, token, by=by)
        assert pico(total) == sum(map(pico, data)) == sum(told) == await house.spent(id)
        assert total["requests"] == len(told)
    by_policy = {
        row["policy"]: row["requests"] for row in (await rows(house, token, by="policy"))[0]
    }
    assert by_policy == {"direct": 12, "economy": 4, "entropy_switch": 4}


async def test_an_answer_of_two_models_is_a_row_of_each_and_one_request_in_all(house):
    token = await house.token()
    answer = await house.ask(token, "economy")
    lines = answer.json()["usage"]["cost_details"]["models"]
    data, total = await rows(house, token, by="model")
    assert {row["model"]: pico(row) for row in data} == {
        name: round(line["cost"] * PICO) for name, line in lines.items()
    }
    assert [row["requests"] for row in data] == [1, 1]
    assert total["requests"] == 1


async def test_a_refused_request_is_no_usage(house):
    token = await house.token(models=["small"], max_budget_usd="1e-9")
    assert (await house.ask(token, "small")).status_code == 402
    assert (await house.ask(token, "large")).status_code == 403
    data, total = await rows(house, token)
    assert pico(total) == 0


async def test_a_key_sees_only_its_own(house):
    ann, bob = await house.key("ann"), await house.key("bob", admin=True)
    costs = [cost(await house.ask(token, "large")) for _, token in (ann, bob, bob)]
    for query in ({}, {"by": "model"}, {"key": bob[0]}, {"key": ann[0], "by": ""}):
        assert pico((await rows(house, ann[1], **query))[1]) == costs[0]
        assert pico((await rows(house, bob[1], **query))[1]) == sum(costs[1:])
    refused(await house.get("/v1/usage?by=key", ann[1]), 400, "by")
    refused(await house.get("/admin/usage", ann[1]), 403, code="not_allowed")


async def test_an_administrator_sees_all_or_one(house):
    ann, bob = await house.key("ann"), await house.key("bob", admin=True)
    costs = {id: cost(await house.ask(token)) for id, token in (ann, bob)}
    data, total = await rows(house, bob[1], "/admin/usage", by="key")
    assert {row["key"]: pico(row) for row in data} == costs
    assert pico(total) == sum(costs.values())
    for id, spent in costs.items():
        (row,), total = await rows(house, bob[1], "/admin/usage", key=id)
        assert (row["key"], pico(row), pico(total)) == (id, spent, spent)
        assert row["day"] == str(datetime.now(UTC).date())


async def test_a_key_that_spent_nothing_has_no_usage(serve, ledger_url):
    house = await serve(ledger=ledger_url)
    token = await house.token(admin=True)
    await house.ask(token)
    for key in ("0123456789ab", "' OR '1'='1", "", "%", "anonymous", "é", "x" * 1000):
        data, total = await rows(house, token, "/admin/usage", key=key)
        assert (data, total) == ([], dict.fromkeys((*COUNTS, "cost"), 0))
    refused(await house.get("/admin/usage?key=%00", token), 400, "key")


async def test_what_was_spent_before_there_were_keys_is_anonymous(house):
    spent = cost(await house.ask())
    token = await house.token(admin=True)
    (row,), _ = await rows(house, token, "/admin/usage", by="key")
    assert (row["key"], pico(row)) == ("anonymous", spent)
    assert await rows(house, token) == ([], dict.fromkeys((*COUNTS, "cost"), 0))


async def test_by_tenant(serve):
    house = await serve(trusted_peers="127.0.0.1")
    token = await house.token()
    told = {}
    for tenant, model in (("b", "small"), ("a", "large"), ("a", "small"), ("", "small")):
        headers = {"X-Tenant-Id": tenant} if tenant else {}
        spent = cost(await house.ask(token, model, headers))
        told[tenant] = told.get(tenant, 0) + spent
    data, _ = await rows(house, token, by="tenant")
    assert [row["tenant"] for row in data] == ["", "a", "b"]
    assert {row["tenant"]: pico(row) for row in data} == told


async def test_since_and_until_are_both_counted(house):
    token, now = await house.token(), milliseconds()
    days = [date.fromtimestamp(0) + timedelta(now // DAY_MS + ago) for ago in (-2, -1, 0)]
    for ago in (2, 1, 0):
        house.accounts.ledger._clock = lambda ago=ago: now - ago * DAY_MS
        await house.ask(token)
    for since, until, expected in (
        (None, None, days),
        (days[1], None, days[1:]),
        (None, days[1], days[:2]),
        (days[1], days[1], days[1:2]),
        (days[0], days[2], days),
        (days[2], days[0], []),
        (date(1, 1, 1), date(9999, 12, 31), days),
    ):
        query = {"since": since, "until": until}
        query = {name: str(day) for name, day in query.items() if day is not None}
        data, total = await rows(house, token, by="day", **query)
        assert [row["day"] for row in data] == [str(day) for day in expected]
        assert total["requests"] == len(expected)


async def test_a_request_counts_on_the_day_on_which_it_began(house, fake):
    midnight = milliseconds() // DAY_MS * DAY_MS
    moments = iter([midnight - 1])
    house.accounts.ledger._clock = lambda: next(moments, midnight + 1)
    token = await house.token()
    await house.ask(token)
    (row,), _ = await rows(house, token, by="day")
    assert row["day"] == str(datetime.fromtimestamp(midnight / 1000 - 1, UTC).date())


@pytest.mark.parametrize(
    "query",
    [
        *("by=nope", "by=day,day", "by=day;DROP TABLE settlements", "by=key_id", "by=*"),
        *("since=yesterday", "until=2027-02-30", "since=10000-01-01", "format=xml", "by=%00"),
    ],
)
async def test_a_question_that_cannot_be_is_400_by_the_field(house, query):
    token = await house.token(admin=True)
    name = query.partition("=")[0]
    for url in ("/v1/usage", "/admin/usage"):
        answer = await house.get(f"{url}?{query}", token)
        refused(answer, 400, name)
    await house.ask(token)
    assert (await rows(house, token))[1]["requests"] == 1


async def test_csv_is_a_table_with_exact_amounts(house):
    token = await house.token(admin=True)
    spent = cost(await house.ask(token, "small"))
    for url in ("/v1/usage", "/admin/usage"):
        answer = await house.get(f"{url}?format=csv&by=model,policy", token)
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        headings, row = csv.reader(io.StringIO(answer.text))
        assert headings == ["model", "policy", *COUNTS, "cost_usd", "gpu_seconds"]
        assert row[:-2] == ["small", "direct", "1", "5", "0", str(SHORT)]
        assert row[-2:] == [f"{spent / PICO:.12f}".rstrip("0"), ""]
    assert answer.text.count("\r\n") == 2


def test_names_that_a_spreadsheet_would_run_are_made_inert():
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "plain", "a=1", ""]
    made = as_csv(["model"], [UsageRow({"model": name}, 1, 2, 3, 4, -5) for name in names])
    _, *read = csv.reader(io.StringIO(made, newline=""))
    assert [row[0] for row in read] == [*(f"'{name}" for name in names[:6]), *names[6:]]
    assert read[0][1:] == ["1", "2", "3", "4", "-0.000000000005", ""]


def test_a_name_with_commas_and_quotes_stays_one_cell():
    name = 'a "b", c\nd'
    made = as_csv(["policy"], [UsageRow({"policy": name}, 1, 0, 0, 0, 0)])
    assert [*csv.reader(io.StringIO(made, newline=""))][1][0] == name


def test_days_become_seconds_both_counted():
    day = date(2027, 1, 31)
    since = int(datetime(2027, 1, 31, tzinfo=UTC).timestamp())
    assert period(day, day) == {"since": since, "until": since + 86_400}
    assert period(None, None) == {"since": None, "until": None}
    assert period(date.min, date.max)["until"] > period(date.min, date.max)["since"]


def test_groups_are_names_with_commas_between():
    assert groups(" day , model,", ("day", "model")) == ["day", "model"]
    assert groups("", ("day",)) == []
    with pytest.raises(BadRequest):
        groups("day,hour", ("day",))


async def test_many_at_once_are_each_counted_once(house):
    id, token = await house.key()
    answers = await asyncio.gather(*(house.ask(token, "large", max_tokens=2) for _ in range(50)))
    _, total = await rows(house, token)
    assert (total["requests"], pico(total)) == (50, sum(map(cost, answers)))
    assert await house.spent(id) == pico(total)


async def test_an_answer_that_failed_is_paid_for_as_far_as_it_came(house, fake):
    script = fake.scripts["large"]
    fake.scripts = {**fake.scripts, "large": type(script)(script.words, fails_after=2)}
    id, token = await house.key()
    body = asking(stream=True)
    answer = await house.visitor.post(CHAT, json=body, headers=bearer(token))
    assert "the script says: fail" in answer.text
    _, total = await rows(house, token)
    assert (total["requests"], total["completion_tokens"]) == (1, 2)
    assert pico(total) == await house.spent(id) == (50 + 40) * 10**6
