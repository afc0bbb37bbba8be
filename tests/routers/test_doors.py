"""Who may come in: with a key, without one, from where, and what they say of themselves."""

import pytest

from app.accounts.keys import new_id, new_token
from app.errors import LedgerUnavailable
from app.storage.keys import KeyStore
from routers.doors import Door
from tests.routers.conftest import CHAT, bearer
from tests.routers.reading import asking
from tests.routers.test_bad_input import refused

EVIL = "https://evil.example"


def unauthorized(answer):
    error = refused(answer, 401, code="invalid_api_key")
    assert error["type"] == "invalid_request_error"
    assert answer.headers["www-authenticate"] == "Bearer"
    return error["message"]


async def test_without_keys_the_door_is_open_and_what_is_spent_is_recorded(house):
    answer = await house.ask()
    assert answer.status_code == 200
    usage = (await house.get("/v1/usage")).json()
    assert usage["total"]["requests"] == 1
    assert usage["total"]["cost"] == pytest.approx(answer.json()["usage"]["cost"])
    assert await house.spent() == round(usage["total"]["cost"] * 10**12) > 0


@pytest.mark.parametrize("url", ["/v1/models", "/v1/models/small", "/v1/usage"])
async def test_the_first_key_closes_the_door(house, url):
    assert (await house.get(url)).status_code == 200
    id, token = await house.key()
    unauthorized(await house.get(url))
    unauthorized(await house.ask())
    unauthorized(await house.visitor.post("/v1/completions", json={"model": "small"}))
    assert (await house.get(url, token)).status_code == 200
    assert (await house.ask(token)).status_code == 200
    await house.accounts.keyring.revoke(id)
    assert "revoked" in unauthorized(await house.get(url, token))
    unauthorized(await house.get(url))


async def test_with_a_key_the_key_pays(house):
    id, token = await house.key()
    answer = await house.ask(token)
    assert await house.spent(id) == round(answer.json()["usage"]["cost"] * 10**12) > 0
    assert await house.spent() == 0


@pytest.mark.parametrize("url", ["/health", "/health/live", "/health/ready", "/metrics"])
async def test_who_watches_needs_no_key(house, url):
    await house.key()
    assert (await house.get(url)).status_code == 200


async def test_nothing_is_read_of_a_body_before_the_door(house):
    await house.key()
    for content in (b"", b"{", b"[" * 1000, b" " * 200_000):
        unauthorized(await house.visitor.post(CHAT, content=content))


WRONG = [
    *("Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "Token {}", "{}", "bearer:{}", "BEARER{}"),
    *("Bearer {} {}", "Bearer {}, Bearer {}", "Bearer {},", "Bearer\t{}", 'Bearer "{}"'),
    *("Bearer {}\x00", "Bearer {}\r\nX: y", "Bearer \x1b[31m{}", "Bearer {}\x7f", "\x00"),
    *("Bearer {}é", "Bearer \xff\xfe", "Bearer ' OR '1'='1", "Bearer %s%s%n", "Bearer ../../"),
    *("Bearer sk-farthing-{}", "Bearer " + "a" * 10_000, "Bearer sk-farthing-" + "a" * 10_000),
]


@pytest.mark.parametrize("value", WRONG)
async def test_whatever_is_no_key_is_401(house, value):
    token = await house.token()
    raw = [(b"authorization", value.replace("{}", token).encode("latin-1"))]
    message = unauthorized(await house.visitor.post(CHAT, json=asking(), headers=raw))
    assert token not in message
    unauthorized(await house.visitor.get("/v1/models", headers=raw))
    unauthorized(await house.visitor.get("/admin/keys", headers=raw))
    assert (await house.ask(token)).status_code == 200


async def test_two_keys_are_none(house):
    tokens = [await house.token() for _ in range(2)]
    for pair in (tokens, tokens[:1] * 2):
        headers = [("Authorization", f"Bearer {token}") for token in pair]
        unauthorized(await house.visitor.post(CHAT, json=asking(), headers=headers))


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "Bearer   {}", "Bearer {} "])
async def test_a_bearer_token_may_be_written_as_clients_do(house, form):
    token = await house.token()
    headers = {"Authorization": form.format(token)}
    assert (await house.visitor.get("/v1/models", headers=headers)).status_code == 200


async def test_a_key_may_come_as_anthropics_clients_send_it(house):
    token = await house.token()
    assert (await house.ask(headers={"X-Api-Key": token})).status_code == 200
    assert (await house.ask(headers={"X-Api-Key": new_token("feedfacecafe")})).status_code == 401
    twice = [("X-Api-Key", token), ("X-Api-Key", token)]
    assert (await house.visitor.post(CHAT, json=asking(), headers=twice)).status_code == 401


async def test_where_a_bearer_token_comes_too_it_counts(house):
    token = await house.token()
    refused = {"Authorization": "Bearer nonsense", "X-Api-Key": token}
    assert (await house.ask(headers=refused)).status_code == 401
    assert (await house.ask(token, headers={"X-Api-Key": "nonsense"})).status_code == 200


async def test_an_unknown_key_and_a_wrong_one_are_told_the_same(house):
    id, token = await house.key()
    sent = [new_token(new_id()), new_token(id), token + "a", "nonsense"]
    said = {unauthorized(await house.get("/v1/models", one)) for one in sent}
    assert said == {"This is not an API key of this gateway"}


async def test_an_expired_key_is_told_so(house):
    token = await house.token(expires="2020-01-01")
    assert "expired" in unauthorized(await house.ask(token))


@pytest.mark.parametrize(
    "origin",
    [
        *(EVIL, "http://evil.example:8080", "null", "", "file://", "nonsense", "http://["),
        *("http://localhost.evil.example", "http://127.0.0.1.evil.example", "http://10.0.0.1"),
        *("http://localhost@evil.example", "http://[::ffff:8.8.8.8]", "http://127.1"),
    ],
)
async def test_while_no_key_is_needed_a_foreign_page_is_refused(house, origin):
    answer = await house.ask(headers={"Origin": origin})
    refused(answer, 403, code="not_allowed")
    refused(await house.get("/v1/models", headers={"Origin": origin}), 403, code="not_allowed")
    assert await house.spent() == 0
    token = await house.token()
    assert (await house.ask(token, headers={"Origin": origin})).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://127.0.0.1", "http://127.9.9.9:1", "http://[::1]:5"]
)
async def test_a_page_of_this_machine_may_ask(house, origin):
    assert (await house.ask(headers={"Origin": origin})).status_code == 200


async def test_without_a_ledger_a_foreign_page_is_refused_too(client):
    answer = await client.post(CHAT, json=asking(), headers={"Origin": EVIL})
    refused(answer, 403, code="not_allowed")
    refused(await client.get("/v1/usage"), 403, code="not_allowed")
    refused(await client.get("/admin/keys"), 403, code="not_allowed")


async def test_no_auth_asks_for_no_key_but_admin_does(serve):
    house = await serve(no_auth=True, host="0.0.0.0")
    id, token = await house.key()
    admin = await house.token(admin=True)
    for sent in (None, token, "nonsense"):
        assert (await house.ask(sent, headers={"Origin": EVIL})).status_code == 200
    assert await house.spent(id) == 0 < await house.spent()
    unauthorized(await house.get("/admin/keys"))
    refused(await house.get("/admin/keys", token), 403, code="not_allowed")
    assert (await house.get("/admin/keys", admin)).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gateway.example"])
async def test_beyond_this_machine_a_key_is_needed_even_where_there_are_none(serve, host):
    house = await serve(host=host)
    unauthorized(await house.ask())
    unauthorized(await house.get("/v1/models"))
    assert (await house.ask(await house.token())).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_on_this_machine_none_is(serve, host):
    assert (await (await serve(host=host)).ask()).status_code == 200


async def test_a_key_made_by_another_gateway_opens_at_once_and_soon_closes_the_door(serve):
    here, there = await serve(), await serve()
    assert (await here.ask()).status_code == 200
    id, token = await there.key()
    assert (await here.ask(token)).status_code == 200
    assert await here.spent(id) > 0
    here.accounts.keyring._any_until = 0  # two seconds later
    unauthorized(await here.ask())


async def test_while_the_database_is_away_an_unknown_key_is_503_and_not_401(house, monkeypatch):
    known, unknown = await house.token(), await house.token(admin=True)
    assert (await house.ask(known)).status_code == 200

    async def away(*_):
        raise LedgerUnavailable("The ledger does not answer; try again")

    monkeypatch.setattr(KeyStore, "find", away)
    for answer in (await house.ask(unknown), await house.get("/admin/keys", unknown)):
        refused(answer, 503, code="ledger_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert "www-authenticate" not in answer.headers
    assert (await house.ask(known)).status_code == 200
    unauthorized(await house.ask("nonsense"))


async def test_while_it_is_not_known_whether_there_are_keys_nobody_comes_in(serve, monkeypatch):
    async def away(*_):
        raise LedgerUnavailable("The ledger does not answer; try again")

    house = await serve()
    monkeypatch.setattr(KeyStore, "count", away)
    for _ in range(3):
        refused(await house.ask(), 503, code="ledger_unavailable")


async def test_x_farthing_headers_of_a_client_count_for_nothing(house, monkeypatch):
    seen = []

    async def account(self, headers, address):
        seen.append(headers)
        return await real(self, headers, address)

    real = Door.account
    monkeypatch.setattr(Door, "account", account)
    headers = {
        "X-Farthing-Cost-Usd": "0",
        "X-Farthing-Budget-Usd": "17.5",
        "x-farthing-nonsense": "echo-me",
        "X-FARTHING-Policy": "forged",
    }
    plain = await house.ask()
    sent = await house.ask(headers=headers | {"X-Budget-Usd": "1"})
    assert seen[-1]["x-budget-usd"] == "1"
    assert not [name for name in seen[-1] if name.startswith("x-farthing")]
    ours = {name for name in plain.headers if name.startswith("x-farthing-")}
    told = {name for name in sent.headers if name.startswith("x-farthing-")}
    assert told == ours | {"x-farthing-budget-usd"}
    assert sent.headers["x-farthing-budget-usd"] == "1"
    assert sent.headers["x-farthing-policy"] == "direct"
    for value in headers.values():
        assert value == "0" or value not in [*sent.headers.values()]


async def tenants(house, token):
    usage = (await house.get("/v1/usage?by=tenant", token)).json()
    return {row["tenant"]: row["requests"] for row in usage["data"]}


@pytest.mark.parametrize("address", ["10.1.2.3", "::1", "fd00::5"])
async def test_a_trusted_peer_says_on_whose_behalf_it_asks(serve, address):
    house = await serve(trusted_peers="10.0.0.0/8, ::1,fd00::/8", host="0.0.0.0")
    token = await house.token()
    peer = await house.client(address)
    for tenant in ("acme", "acme", "team/search:1@eu.example"):
        headers = bearer(token) | {"X-Tenant-Id": tenant}
        assert (await peer.post(CHAT, json=asking(), headers=headers)).status_code == 200
    assert await tenants(house, token) == {"acme": 2, "team/search:1@eu.example": 1}


@pytest.mark.parametrize("address", ["11.1.2.3", "127.0.0.1", "::2", "testclient", ""])
async def test_anybody_else_says_nothing(serve, address):
    house = await serve(trusted_peers="10.0.0.0/8,::1", host="0.0.0.0")
    token = await house.token()
    other = await house.client(address)
    for forged in (
        {},
        {"X-Forwarded-For": "10.1.2.3", "X-Real-Ip": "10.1.2.3"},
        {"X-Forwarded-For": "::1, 10.1.2.3"},
        {"Forwarded": "for=10.1.2.3;by=10.1.2.3"},
        {"X-Farthing-Tenant": "acme", "X-Farthing-Peer": "10.1.2.3"},
    ):
        headers = bearer(token) | {"X-Tenant-Id": "acme"} | forged
        assert (await other.post(CHAT, json=asking(), headers=headers)).status_code == 200
    assert await tenants(house, token) == {"": 5}


@pytest.mark.parametrize("said", ["", " ", "a" * 129, "=cmd()", "é", "a b", "a\x00", "-1", "a,b"])
async def test_a_tenant_that_is_no_name_is_none(serve, said):
    house = await serve(trusted_peers="127.0.0.1")
    headers = [("X-Tenant-Id", said.encode("latin-1"))]
    assert (await house.visitor.post(CHAT, json=asking(), headers=headers)).status_code == 200
    twice = [("X-Tenant-Id", "a"), ("X-Tenant-Id", "b")]
    assert (await house.visitor.post(CHAT, json=asking(), headers=twice)).status_code == 200
    assert await tenants(house, None) == {"": 2}


async def test_without_trusted_peers_there_are_no_tenants(house):
    assert (await house.ask(headers={"X-Tenant-Id": "acme"})).status_code == 200
    assert await tenants(house, None) == {"": 1}


async def test_nothing_that_a_client_sends_becomes_a_label(serve):
    house = await serve(trusted_peers="127.0.0.1")
    id, token = await house.key("Zanzibar", labels={"team": "Quagga"}, models=["small"])
    headers = {"X-Tenant-Id": "Okapi", "X-Request-Id": "Axolotl", "X-Policy": "Numbat"}
    await house.ask(token, headers={"X-Tenant-Id": "Okapi", "X-Request-Id": "Axolotl"})
    await house.ask(token, headers=headers)
    await house.ask(token, "Pangolin", headers={"Origin": "http://Tapir.example"})
    await house.ask(new_token("feedfacecafe"))
    await house.get(f"/v1/Dugong/{token}", token)
    await house.get(f"/admin/keys/{id}", token)
    await house.get("/v1/models/Narwhal", token)
    text = (await house.get("/metrics")).text
    assert 'endpoint="/v1/chat/completions"' in text
    animals = ("Quagga", "Okapi", "Axolotl", "Numbat", "Pangolin", "Tapir", "Dugong", "Narwhal")
    for sent in (id, token, token[-43:], "sk-farthing", "feedface", "Zanzibar", *animals):
        assert sent.lower() not in text.lower()
