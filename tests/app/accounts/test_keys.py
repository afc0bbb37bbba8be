"""What may be said of a key, and what its token looks like."""

import re
import time
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from pydantic import ValidationError

from app.accounts.keyring import checked
from app.accounts.keys import (
    MOST_USD,
    KeySpec,
    described,
    digest,
    fingerprint,
    id_of,
    new_id,
    new_token,
)
from app.catalog import PICO
from app.errors import BadRequest

SECRET = b"a secret of 16 bytes or more"
AMOUNTS = [
    *("usd_per_minute", "usd_per_day", "usd_per_month", "usd_total"),
    *("default_budget_usd", "max_budget_usd"),
]
COUNTS = ["requests_per_minute", "tokens_per_minute", "concurrency"]


def spec(**fields):
    return KeySpec(name="a key", **fields)


def at_fault(fields):
    """The field that is refused."""
    with pytest.raises(BadRequest) as refusal:
        checked({"name": "a key", **fields})
    assert refusal.value.message.startswith(f"{refusal.value.param}: ")
    return refusal.value.param


@pytest.mark.parametrize(
    ("said", "pico"),
    [
        ("0.000000000001", 1),
        ("1e-12", 1),
        ("0.1", PICO // 10),
        (0.1, PICO // 10),
        (5, 5 * PICO),
        (Decimal("8999999.999999999999"), 9 * 10**18 - 1),
        ("9000000", MOST_USD * PICO),
        ("9e6", MOST_USD * PICO),
        (0, 0),
        (None, None),
    ],
)
@pytest.mark.parametrize("field", AMOUNTS)
def test_an_amount_is_exact_to_twelve_decimals(field, said, pico):
    assert getattr(spec(**{field: said}), field) == pico


@pytest.mark.parametrize(
    "said",
    [
        *("1e-13", "0.0000000000001", 0.1 + 0.2, "-1", -0.01, "9000000.000000000001", 9_000_001),
        *("NaN", "sNaN", "inf", "-Infinity", float("nan"), float("inf"), "", "lots", "1,5", "0x1"),
        *("1e999999999", "1e-999999999", "1e99999999999999999999", "9" * 10_000),
        *(True, False, [], {}, b"1"),
        pytest.param(10**5000, id="long"),
    ],
)
@pytest.mark.parametrize("field", AMOUNTS)
def test_what_is_no_amount_is_refused_at_once(field, said):
    began = time.monotonic()
    assert at_fault({field: said}) == field
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("said", [0, -1, 10**9 + 1, 1.5, "many", True, False, "inf", [1]])
@pytest.mark.parametrize("field", COUNTS)
def test_a_count_is_a_whole_number_above_zero(field, said):
    assert at_fault({field: said}) == field
    assert getattr(spec(**{field: "7"}), field) == 7


NAMES = ["team search", "Zoë", "日本", "'; DROP TABLE keys; --", "[red]", "x" * 128]
NO_NAMES = ["", "x" * 129, "a\nb", "a\0", "\x1b[31mred", "\x7f", "a\u202eb", "\ud800", None, 5]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_any_text_that_can_be_printed(name):
    assert KeySpec(name=name).name == name
    assert spec(labels={name: name}).labels == {name: name}
    assert spec(models=[name]).models == [name]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_cannot_be_printed_is_refused(name):
    assert at_fault({"name": name}) == "name"
    assert at_fault({"labels": {"a": name}}) == "labels.a"
    assert at_fault({"models": ["large", name]}) == "models.1"
    with pytest.raises(BadRequest):
        checked({"name": "a key", "labels": {name: "a"}})


def test_a_key_needs_a_name():
    with pytest.raises(ValidationError):
        KeySpec()


def test_what_is_no_field_is_refused_by_its_name():
    assert at_fault({"usd_per_year": 1}) == "usd_per_year"


def test_labels_and_models_have_an_end():
    assert at_fault({"labels": {str(n): "a" for n in range(33)}}) == "labels"
    assert at_fault({"models": ["a"] * 1001}) == "models"


def test_the_default_budget_is_not_above_the_greatest():
    assert at_fault({"default_budget_usd": "0.02", "max_budget_usd": "0.01"}) == "max_budget_usd"
    same = spec(default_budget_usd="0.01", max_budget_usd="0.01")
    assert same.default_budget_usd == same.max_budget_usd
    assert spec(default_budget_usd="0.01").max_budget_usd is None
    assert spec(max_budget_usd="0.01").default_budget_usd is None


@pytest.mark.parametrize(
    ("said", "moment"),
    [
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T12:00", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00:00Z", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00:00+02:00", datetime(2027, 1, 31, 10, tzinfo=UTC)),
        ("2027-01-31 12:00:00.123-05:00", datetime(2027, 1, 31, 17, 0, 0, 123000, UTC)),
    ],
)
def test_a_moment_without_a_zone_is_utc(said, moment):
    assert spec(expires=said).expires == moment
    assert spec(expires=said).columns()["expires"] == round(moment.timestamp() * 1000)


@pytest.mark.parametrize(
    "said", ["tomorrow", "", "31.1.2027", "2027-02-30", "2027-01-31T25:00", True, [], "1e9"]
)
def test_what_is_no_moment_is_refused(said):
    assert at_fault({"expires": said}) == "expires"


@pytest.mark.parametrize(
    "said", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "9999-12-31", "0001-01-01"]
)
def test_a_moment_at_the_ends_of_the_calendar_is_refused(said):
    assert at_fault({"expires": said}) == "expires"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict.fromkeys(AMOUNTS, "0.000000000001"),
        dict.fromkeys(AMOUNTS, "9000000"),
        {"usd_total": "8999999.999999999999", "usd_per_day": "1e-7"},
        {"expires": "2027-01-31T12:00:00.001Z", "models": ["a", "b"], "admin": True},
        {"expires": "2027-01-31T12:00:00.999999Z", "models": [], "labels": {"a": "b"}},
        {"requests_per_minute": 5, "tokens_per_minute": 10**9, "concurrency": 1},
    ],
)
def test_what_is_shown_of_a_key_may_be_sent_again_and_changes_nothing(fields):
    first = checked({"name": "a key", **fields})
    shown = described(first.row("a", b"", 0), first.limits())
    again = checked(shown)
    assert again.columns() == first.columns()
    assert again.limits() == first.limits()
    assert described(again.row("a", b"", 0), again.limits()) == shown


def test_a_token_holds_its_key_s_id_and_32_random_bytes():
    id = new_id()
    token = new_token(id)
    assert re.fullmatch("[0-9a-f]{12}", id)
    assert re.fullmatch(f"sk-farthing-{id}-[A-Za-z0-9_-]{{43}}", token)
    assert id_of(token) == id
    assert len({new_token(id) for _ in range(100)}) == 100
    assert len({new_id() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "change",
    [
        *(lambda t: t + "\n", lambda t: t + "a", lambda t: t[:-1], lambda t: " " + t),
        *(lambda t: t.upper(), lambda t: t[3:], lambda t: t.replace("-", "_"), lambda t: ""),
        *(lambda t: t[:-1] + "é", lambda t: t[:-1] + "\0", lambda t: t * 200),
        lambda t: "sk-proj-abcdefghijkl",
        lambda t: "sk-farthing-" + "\u0661" * 12 + t[24:],  # digits, but none of ours
    ],
)
def test_what_is_no_token_of_ours_has_no_id(change):
    assert id_of(change(new_token("0123456789ab"))) is None


def test_a_digest_is_keyed_and_tells_nothing():
    token = new_token(new_id())
    assert digest(token, SECRET) == digest(token, SECRET)
    assert digest(token, SECRET) != digest(token, SECRET + b"!")
    assert digest(token, SECRET) != digest(token + "a", SECRET)
    assert len(digest(token, SECRET)) == 32
    assert token[-43:].encode() not in digest(token, SECRET)


def test_a_fingerprint_tells_secrets_apart_and_is_no_digest():
    assert fingerprint(SECRET) == fingerprint(SECRET) != fingerprint(SECRET + b"!")
    assert SECRET.hex() not in fingerprint(SECRET)
    assert fingerprint(SECRET) not in digest("", SECRET).hex()
