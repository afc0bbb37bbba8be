"""Keys managed over HTTP, by administrators only."""

import json
import re

import pytest

from tests.routers.conftest import bearer
from tests.routers.test_bad_input import refused

KEYS = "/admin/keys"
EVERYTHING = {
    "name": "team search",
    "admin": False,
    "usd_per_minute": "0.000000000001",
    "usd_per_day": "5",
    "usd_per_month": "100.5",
    "usd_total": "9000000",
    "requests_per_minute": 600,
    "tokens_per_minute": 100_000,
    "concurrency": 8,
    "models": ["economy", "large"],
    "default_budget_usd": "0.01",
    "max_budget_usd": "0.05",
    "expires": "2100-01-31T12:00:00+00:00",
    "labels": {"team": "search"},
}
ROUTES = [
    *(("GET", KEYS), ("POST", KEYS), ("GET", f"{KEYS}/ID"), ("PATCH", f"{KEYS}/ID")),
    *(("DELETE", f"{KEYS}/ID"), ("POST", f"{KEYS}/ID/rotate"), ("GET", "/admin/usage")),
]


class Admin:
    def __init__(self, house, token):
        self._house, self._headers = house, bearer(token)

    async def __call__(self, method, url, body=None, **more):
        content = None if body is None else json.dumps(body).encode()
        return await self._house.visitor.request(
            method, url, headers=self._headers, content=content, **more
        )

    async def create(self, **fields):
        answer = await self("POST", KEYS, {"name": "a key", **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()


@pytest.fixture
async def admin(house):
    return Admin(house, await house.token(name="the admin", admin=True))


async def test_a_key_is_made_with_everything_and_shown_as_it_was_asked_for(admin, house):
    made = await admin.create(**EVERYTHING)
    token = made.pop("token")
    assert re.fullmatch(f"sk-farthing-{made['id']}-[A-Za-z0-9_-]{{43}}", token)
    assert {name: made[name] for name in EVERYTHING} == EVERYTHING
    assert (made["object"], made["revoked"], made["running"]) == ("key", None, 0)
    assert made["spent_usd"] == dict.fromkeys(("minute", "day", "month", "total"), 0)
    shown = (await admin("GET", f"{KEYS}/{made['id']}")).json()
    assert shown == made
    assert (await house.get("/v1/models", token)).status_code == 200


async def test_a_key_needs_a_name_and_nothing_else(admin, house):
    made = await admin.create()
    unset = set(EVERYTHING) - {"name", "admin", "labels"}
    assert {made[name] for name in unset} == {None}
    assert (made["admin"], made["labels"]) == (False, {})
    assert (await house.ask(made["token"])).status_code == 200


async def test_all_keys_are_listed_oldest_first_with_what_they_spent(admin, house):
    made = [await admin.create(name=name) for name in ("b", "a", "c")]
    answer = await house.ask(made[1]["token"], "large")
    listed = (await admin("GET", KEYS)).json()
    assert listed["object"] == "list"
    assert [key["name"] for key in listed["data"]] == ["the admin", "b", "a", "c"]
    spent = [key["spent_usd"]["total"] for key in listed["data"]]
    assert spent == [0, 0, answer.json()["usage"]["cost"], 0]


async def test_a_token_is_shown_once(admin):
    made = await admin.create(name="once")
    secret = made["token"][-43:]
    id = made["id"]
    rotated = (await admin("POST", f"{KEYS}/{id}/rotate")).json()["token"][-43:]
    later = [
        await admin("GET", KEYS),
        await admin("GET", f"{KEYS}/{id}"),
        await admin("PATCH", f"{KEYS}/{id}", {"name": "twice"}),
        await admin("GET", "/admin/usage"),
        await admin("DELETE", f"{KEYS}/{id}"),
    ]
    for answer in later:
        assert answer.status_code == 200
        assert secret not in answer.text and rotated not in answer.text
        assert "token" not in answer.json() and "digest" not in answer.text


async def test_a_change_sets_some_fields_and_keeps_the_rest(admin, house):
    made = await admin.create(**EVERYTHING)
    token = made.pop("token")
    url = f"{KEYS}/{made['id']}"
    changes = {"name": "renamed", "usd_per_day": None, "models": ["small"], "expires": None}
    changed = await admin("PATCH", url, {**changes, "max_budget_usd": 0.5})
    assert changed.status_code == 200
    assert changed.json() == {**made, **changes, "max_budget_usd": "0.5"}
    refused(await house.ask(token, "large"), 403, "model", "not_allowed")
    assert (await admin("PATCH", url, {})).json() == changed.json()


async def test_a_limit_below_what_is_spent_stops_the_key(admin, house):
    made = await admin.create()
    assert (await house.ask(made["token"])).status_code == 200
    await admin("PATCH", f"{KEYS}/{made['id']}", {"usd_per_month": "0.000001"})
    answer = await house.ask(made["token"])
    refused(answer, 402, "usd_per_month", "budget_exceeded")


async def test_a_rotated_key_has_a_new_token(admin, house):
    made = await admin.create()
    answer = await admin("POST", f"{KEYS}/{made['id']}/rotate")
    assert (answer.status_code, answer.json()["id"]) == (200, made["id"])
    assert (await house.get("/v1/models", made["token"])).status_code == 401
    assert (await house.get("/v1/models", answer.json()["token"])).status_code == 200


async def test_with_grace_both_tokens_open(admin, house):
    made = await admin.create()
    answer = await admin("POST", f"{KEYS}/{made['id']}/rotate?grace_s=60")
    for token in (made["token"], answer.json()["token"]):
        assert (await house.get("/v1/models", token)).status_code == 200


@pytest.mark.parametrize("grace", ["-1", "nan", "inf", "1e300", "2592001"])
async def test_a_grace_that_is_none_is_400(admin, house, grace):
    made = await admin.create()
    refused(await admin("POST", f"{KEYS}/{made['id']}/rotate?grace_s={grace}"), 400, "grace_s")
    refused(await admin("POST", f"{KEYS}/{made['id']}/rotate?grace_s=x"), 400, "grace_s")
    assert (await house.get("/v1/models", made["token"])).status_code == 200


async def test_a_revoked_key_opens_nothing_and_stays_in_the_list(admin, house):
    made = await admin.create()
    url = f"{KEYS}/{made['id']}"
    revoked = [(await admin("DELETE", url)).json()["revoked"] for _ in range(2)]
    assert revoked[0] == revoked[1] is not None
    refused(await house.ask(made["token"]), 401, code="invalid_api_key")
    assert made["id"] in [key["id"] for key in (await admin("GET", KEYS)).json()["data"]]


@pytest.mark.parametrize(("method", "url"), ROUTES)
async def test_who_is_no_administrator_gets_nowhere(house, method, url):
    id, token = await house.key()
    url = url.replace("ID", id)
    for body in (None, {"name": "mine", "admin": True}):
        content = json.dumps(body).encode() if body else None
        request = {"method": method, "url": url, "content": content}
        answer = await house.visitor.request(**request)
        refused(answer, 401, code="invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        answer = await house.visitor.request(**request, headers=bearer(token))
        refused(answer, 403, code="not_allowed")
    (only,) = await house.accounts.keyring.all()
    assert (only.key.name, only.key.admin, only.key.revoked) == ("a key", False, None)
    assert (await house.get("/v1/models", token)).status_code == 200


@pytest.mark.parametrize(("method", "url"), ROUTES)
async def test_without_any_key_there_is_no_administrator(house, method, url):
    answer = await house.visitor.request(method, url)
    refused(answer, 401, code="invalid_api_key")


async def test_an_administrator_who_is_none_any_more_is_403_at_once(admin, house):
    made = await admin.create(admin=True)
    assert (await house.get(KEYS, made["token"])).status_code == 200
    await admin("PATCH", f"{KEYS}/{made['id']}", {"admin": False})
    refused(await house.get(KEYS, made["token"]), 403, code="not_allowed")


@pytest.mark.parametrize(
    "id",
    ["0123456789ab", "anonymous", "x" * 1000, "%00", "'%20OR%201=1;--", "%F0%9F%94%91", "%ff", "*"],
)
async def test_a_key_that_is_not_there_is_404(admin, id):
    for method, url in ROUTES:
        if "ID" in url:
            answer = await admin(method, url.replace("ID", id), {})
            refused(answer, 404, "id", "key_not_found")


BAD = [
    ({"name": ""}, "name"),
    ({"name": "a\nb"}, "name"),
    ({"name": None}, "name"),
    ({"admin": "perhaps"}, "admin"),
    ({"usd_total": -1}, "usd_total"),
    ({"usd_total": "1e999999999"}, "usd_total"),
    ({"usd_per_day": True}, "usd_per_day"),
    ({"usd_per_month": "0.0000000000001"}, "usd_per_month"),
    ({"requests_per_minute": 0}, "requests_per_minute"),
    ({"tokens_per_minute": 1.5}, "tokens_per_minute"),
    ({"concurrency": True}, "concurrency"),
    ({"models": "large"}, "models"),
    ({"models": ["large", ""]}, "models.1"),
    ({"default_budget_usd": 2, "max_budget_usd": 1}, "max_budget_usd"),
    ({"expires": "soon"}, "expires"),
    ({"expires": "9999-12-31T23:59:59-23:59"}, "expires"),
    ({"labels": ["a"]}, "labels"),
    ({"labels": {"a": 5}}, "labels.a"),
    ({"id": "0123456789ab"}, "id"),
    ({"digest": "00"}, "digest"),
    ({"token": "sk-farthing-mine"}, "token"),
    ({"spent_usd": 0}, "spent_usd"),
]


@pytest.mark.parametrize(("fields", "param"), BAD)
async def test_a_bad_field_is_400_by_its_name_and_changes_nothing(admin, fields, param):
    made = await admin.create()
    before = (await admin("GET", KEYS)).json()
    error = refused(await admin("POST", KEYS, {"name": "new", **fields}), 400, param)
    assert error["type"] == "invalid_request_error"
    refused(await admin("PATCH", f"{KEYS}/{made['id']}", fields), 400, param)
    assert (await admin("GET", KEYS)).json() == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"usd_total": NaN}', b"5"])
async def test_a_body_that_is_no_json_object_is_400(admin, house, content):
    made = await admin.create()
    for method, url in (("POST", KEYS), ("PATCH", f"{KEYS}/{made['id']}")):
        headers = admin._headers
        answer = await house.visitor.request(method, url, headers=headers, content=content)
        refused(answer, 400, "body")


async def test_a_name_is_missing(admin):
    refused(await admin("POST", KEYS, {}), 400, "name")


@pytest.mark.parametrize("name", ["'; DROP TABLE keys; --", '" OR 1=1', "%s %d {} $1", "日本\\"])
async def test_text_is_text_and_never_sql(admin, name):
    made = await admin.create(name=name, labels={name: name}, models=[name])
    shown = (await admin("GET", f"{KEYS}/{made['id']}")).json()
    assert (shown["name"], shown["labels"], shown["models"]) == (name, {name: name}, [name])
    assert len((await admin("GET", KEYS)).json()["data"]) == 2


async def test_a_token_may_not_be_cached(admin):
    """Nobody between us and the administrator may keep it."""
    made = await admin("POST", KEYS, {"name": "a"})
    rotated = await admin("POST", f"{KEYS}/{made.json()['id']}/rotate")
    for answer in (made, rotated):
        assert answer.headers["cache-control"] == "no-store"
