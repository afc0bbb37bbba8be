"""Which tokens open the door, in both databases, and how keys change."""

import asyncio
import hmac

import pytest

from app.accounts import keyring as module
from app.accounts.keyring import checked
from app.accounts.keys import KeySpec, digest, new_id, new_token
from app.errors import BadRequest, InvalidKey, UnknownKey
from tests.app.accounts.conftest import SECRET, opens, wrong

SPEC = KeySpec(name="a key")
NASTY = [
    *("'; DROP TABLE keys; --", "' OR '1'='1", '" OR ""="', "1); DELETE FROM keys; --"),
    *("%", "_", "\\", ":id", "$1", "?", "%(id)s", "{id}", "NULL", "<script>"),
]


async def refused(ring, token):
    with pytest.raises(InvalidKey) as refusal:
        await ring.authenticate(token)
    return refusal.value.message


async def test_the_right_token_opens(ring):
    key, token = await ring.create(checked({"name": "ann", "models": ["a"], "labels": {"x": "y"}}))
    found = await ring.authenticate(token)
    assert found == key
    assert (found.name, found.models, found.labels) == ("ann", ("a",), {"x": "y"})


async def test_nothing_else_opens(ring):
    key, token = await ring.create(SPEC)
    other, _ = await ring.create(SPEC)
    secret = token[-43:]
    tokens = [wrong(token), new_token(new_id()), new_token(key.id), token + "a", token[:-1]]
    tokens += ["nonsense", secret, f"sk-farthing-{other.id}-{secret}", token.upper(), key.id]
    for one in tokens:
        assert "not an API key of this gateway" in await refused(ring, one)
    for none in ("", None):
        assert "needed" in await refused(ring, none)
    assert await opens(ring, token)


async def test_a_token_under_another_secret_does_not_open(ring, rings):
    _, token = await ring.create(SPEC)
    assert not await opens(await rings(b"another secret of 16 bytes"), token)


async def test_the_database_holds_no_token(ring):
    key, token = await ring.create(SPEC)
    (row,) = await ring.store.all()
    assert row.digest == digest(token, SECRET)
    assert token[-43:] not in repr(row)


async def test_a_revoked_key_does_not_open_and_stays_revoked(ring, clock):
    key, token = await ring.create(SPEC)
    await ring.revoke(key.id)
    assert "revoked" in await refused(ring, token)
    first = (await ring.show(key.id)).key.revoked
    clock.now += 5
    await ring.revoke(key.id)
    await ring.change(key.id, {"name": "still revoked"})
    assert (await ring.show(key.id)).key.revoked == first
    assert "revoked" not in await refused(ring, wrong(token))


async def test_an_expired_key_does_not_open(ring, clock):
    _, token = await ring.create(checked({"name": "a", "expires": "1970-01-01T00:20:00Z"}))
    clock.now = 1199.9
    assert await opens(ring, token)
    clock.now = 1200.0
    assert "expired" in await refused(ring, token)


async def test_a_rotated_token_opens_and_the_old_one_does_not(ring):
    key, old = await ring.create(SPEC)
    new = await ring.rotate(key.id)
    assert (await opens(ring, old), await opens(ring, new)) == (False, True)
    assert (await ring.authenticate(new)).id == key.id


async def test_with_grace_the_old_token_opens_until_its_end(ring, clock):
    key, old = await ring.create(SPEC)
    new = await ring.rotate(key.id, 60)
    clock.now += 59.9
    assert (await opens(ring, old), await opens(ring, new)) == (True, True)
    clock.now += 0.1
    assert (await opens(ring, old), await opens(ring, new)) == (False, True)


async def test_rotating_twice_leaves_one_old_token(ring):
    key, first = await ring.create(SPEC)
    second = await ring.rotate(key.id, 60)
    third = await ring.rotate(key.id, 60)
    assert [await opens(ring, t) for t in (first, second, third)] == [False, True, True]
    fourth = await ring.rotate(key.id)
    assert [await opens(ring, t) for t in (second, third, fourth)] == [False, False, True]


@pytest.mark.parametrize("grace", [-1, float("inf"), float("nan"), 1e300, 30 * 86400 + 1])
async def test_a_grace_that_is_none_is_refused(ring, grace):
    key, token = await ring.create(SPEC)
    with pytest.raises(BadRequest):
        await ring.rotate(key.id, grace)
    assert await opens(ring, token)


async def test_changing_revoking_and_rotating_need_a_key(ring):
    for id in (new_id(), "", "\0", "x" * 1000, "é", "\ud800", *NASTY):
        for ask in (ring.show, ring.revoke, ring.rotate, lambda id: ring.change(id, {})):
            with pytest.raises(UnknownKey):
                await ask(id)


async def test_a_change_keeps_the_rest(ring):
    key, token = await ring.create(
        checked({"name": "ann", "usd_total": "5", "concurrency": 2, "labels": {"a": "b"}})
    )
    held = await ring.change(key.id, {"usd_total": None, "usd_per_day": "0.000000000001"})
    assert held == await ring.show(key.id)
    assert (held.account.limits["total"], held.account.limits["day"]) == (None, 1)
    assert (held.key.name, held.key.concurrency, held.key.labels) == ("ann", 2, {"a": "b"})
    with pytest.raises(BadRequest):
        await ring.change(key.id, {"concurrency": 0, "name": "bob"})
    assert await ring.show(key.id) == held
    assert await opens(ring, token)


@pytest.mark.parametrize("kind", ["right", "wrong", "unknown", "malformed", "rotated"])
async def test_every_token_is_compared_equally_often(ring, monkeypatch, kind):
    key, token = await ring.create(SPEC)
    new = await ring.rotate(key.id, 60)
    await ring.authenticate(new)
    sent = {"right": new, "rotated": token, "unknown": new_token(new_id())}
    compared = []
    compare = hmac.compare_digest

    def counted(a, b):
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(module.hmac, "compare_digest", counted)
    await opens(ring, {**sent, "wrong": wrong(new), "malformed": "nonsense"}[kind])
    assert compared == [(32, 32), (32, 32)]


async def test_digests_are_compared_by_compare_digest_alone(ring, monkeypatch):
    class Bytes(bytes):
        def __eq__(self, other):
            raise AssertionError("compared with ==")

        __ne__ = __lt__ = __eq__
        __hash__ = bytes.__hash__

    monkeypatch.setattr(module, "digest", lambda *args: Bytes(digest(*args)))
    key, old = await ring.create(SPEC)
    new = await ring.rotate(key.id, 60)
    for token in (old, new, wrong(new), new_token(new_id())):
        row = await ring._find(key.id)
        assert ring._opens(token, row) is (token in (old, new))


async def test_a_thousand_keys(ring):
    tokens = {}
    for n in range(1000):
        id = new_id()
        tokens[id] = new_token(id)
        row = SPEC.row(id, digest(tokens[id], SECRET), n)
        assert await ring.store.add(row, {"total": n})
    held = await ring.all()
    assert [one.key.id for one in held] == list(tokens)
    assert [one.account.limits["total"] for one in held] == list(range(1000))
    found, given = [], list(tokens.values())
    for at in range(0, 1000, 10):  # who waits too long behind others is refused
        found += await asyncio.gather(*map(ring.authenticate, given[at : at + 10]))
    assert [row.id for row in found] == list(tokens)
    assert not await opens(ring, wrong(tokens[id]))


async def test_an_id_is_taken_once(ring):
    key, token = await ring.create(SPEC)
    again = SPEC.row(key.id, bytes(32), 0)
    assert not await ring.store.add(again, {})
    assert await opens(ring, token)


@pytest.mark.parametrize("text", NASTY)
async def test_text_is_text_and_never_sql(ring, text):
    _, other = await ring.create(SPEC)
    key, token = await ring.create(
        checked({"name": text, "labels": {text: text}, "models": [text]})
    )
    found = await ring.authenticate(token)
    assert (found.name, found.labels, found.models) == (text, {text: text}, (text,))
    renamed = await ring.change(key.id, {"name": text * 2})
    assert renamed.key.name == text * 2
    assert not await opens(ring, text)
    assert not await opens(ring, f"sk-farthing-{text}-{token[-43:]}")
    assert await opens(ring, other)
    assert len(await ring.all()) == 2
