"""Budget headers are read exactly, or refused by name; they can only lower a limit."""

from decimal import ROUND_DOWN, Decimal, localcontext

import http_sf
import pytest
from fastapi.datastructures import Headers
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import BadRequest
from routers.terms import BudgetField, pico_usd, terms


def exactly(text):
    """The same amount by way of the decimal module."""
    with localcontext() as context:
        context.prec = 300
        return int((Decimal(text) * 10**12).to_integral_value(rounding=ROUND_DOWN))


@pytest.mark.parametrize(
    ("text", "pico"),
    [
        ("0", 0),
        ("0.000", 0),
        ("1", 10**12),
        ("0.002", 2 * 10**9),
        ("1e-12", 1),
        ("9.99e-13", 0),
        ("1.0000000000019", 10**12 + 1),
        ("2E+3", 2000 * 10**12),
        ("0e999999999", 0),
        ("1e-999999999", 0),
        ("999999999.999999999999", 10**21 - 1),
        ("00000001.50", 15 * 10**11),
    ],
)
def test_amounts_are_exact_and_rounded_down(text, pico):
    assert pico_usd(text, "X-Budget-Usd") == pico


BAD_AMOUNTS = [
    *("", " ", "-1", "-0", "+1", "nan", "NaN", "inf", "Infinity", "-inf", "1e400", "1e9"),
    *("1000000000", "0x1", "1_000", "1,5", "1.", ".5", "1e", "e5", "1e1.5", "1 2", "$1", "1USD"),
    *("1" * 101, "1e9999999999", "\u0661", "\xb2", "0.1, 0.2", "true", "None"),
]


@pytest.mark.parametrize("text", BAD_AMOUNTS)
def test_what_is_no_amount_is_refused_by_name(text):
    with pytest.raises(BadRequest) as refusal:
        pico_usd(text, "X-Budget-Usd")
    assert refusal.value.param == "X-Budget-Usd"
    assert "X-Budget-Usd" in refusal.value.message


@given(
    st.integers(0, 10**8),
    st.text("0123456789", max_size=30),
    st.none() | st.integers(-40, 0),
    st.sampled_from(["e", "E"]),
)
def test_every_decimal_is_read_as_the_decimal_module_does(whole, fraction, exponent, letter):
    text = f"{whole}.{fraction}" if fraction else str(whole)
    text += "" if exponent is None else f"{letter}{exponent}"
    assert pico_usd(text, "x") == exactly(text)


@given(st.text(max_size=120))
@example("1e-400000000")
@example("9" * 100)
def test_random_text_is_an_amount_or_a_refusal(text):
    try:
        assert 0 <= pico_usd(text, "x") == exactly(text) < 10**21
    except BadRequest as refusal:
        assert refusal.param == "x"


@pytest.mark.parametrize(
    ("header", "body", "pico"),
    [
        ("0.1", None, 10**11),
        (None, 0.1, 10**11),
        (None, "0.1", 10**11),
        (None, 1, 10**12),
        ("0.1", 0.2, 10**11),
        ("0.3", 0.2, 2 * 10**11),
        ("0", 5, 0),
        (None, None, None),
    ],
)
def test_of_header_and_body_the_smaller_budget_counts(header, body, pico):
    headers = Headers({} if header is None else {"x-budget-usd": header})
    assert terms(headers, BudgetField(usd=body)).usd == pico


@pytest.mark.parametrize(
    ("header", "body", "seconds"),
    [("250", None, 0.25), (None, 1500, 1.5), ("100", 50.5, 0.0505), ("1e3", 2000, 1.0)],
)
@pytest.mark.parametrize("field", ["latency", "ttft"])
def test_of_header_and_body_the_earlier_time_counts(header, body, seconds, field):
    headers = Headers({} if header is None else {f"x-budget-{field}-ms": header})
    found = terms(headers, BudgetField(**{f"{field}_ms": body}))
    assert getattr(found, field) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("header", "body", "strict"),
    [
        ("strict", None, True),
        ("cheapest", "strict", True),
        ("strict", "cheapest", True),
        ("cheapest", None, False),
        (None, None, False),
    ],
)
def test_strict_wins(header, body, strict):
    headers = Headers({} if header is None else {"x-budget-fallback": header})
    assert terms(headers, BudgetField(fallback=body)).strict is strict


NO_POLICIES = [
    *(";raise_at=2", "policy/model", "*any", "2.0", "?1", ":aGk=:", "@1700000000", '""', '"a b"'),
    *(
        "entropy_switch;raise_at=",
        "entropy_switch;",
        "entropy_switch;;",
        "entropy_switch ;window=3",
    ),
    *("entropy_switch;raise_at=2;raise_at=3", "economy, swift", "(economy swift)", "economy swift"),
    *(
        "entropy_switch;raise_at=-inf",
        "economy;raise_at=1e3",
        "economy;raise_at=2.",
        "economy;a=.5",
    ),
    *("economy;raise_at=2.0005", "economy;window=1000000000000000", "economy;Window=3"),
    *('economy;a="b', "economy;a='b'", "economy;a=:Yg==:", "economy;a=@1", "economy;a=(1 2)"),
    *("economy;a=b,c", "economy;a=b;\tc=d", "econom\xef", 'economy;a="\xef"', 'economy;a=%"%ff"'),
]
BAD_HEADERS = [
    ("X-Budget-Latency-Ms", "0"),
    ("X-Budget-Latency-Ms", "-5"),
    ("X-Budget-Latency-Ms", "nan"),
    ("X-Budget-Latency-Ms", "1e400"),
    ("X-Budget-Latency-Ms", "1e-400"),
    ("X-Budget-Latency-Ms", "soon"),
    ("X-Budget-Latency-Ms", ""),
    ("X-Budget-Ttft-Ms", "0"),
    ("X-Budget-Ttft-Ms", "1e999"),
    ("X-Budget-Fallback", "Strict"),
    ("X-Budget-Fallback", ""),
    ("X-Debug", "true"),
    ("X-Debug", ""),
    ("X-Policy", ""),
    *(("X-Policy", text) for text in NO_POLICIES),
]


@pytest.mark.parametrize(("name", "value"), BAD_HEADERS)
def test_a_bad_header_is_refused_by_name(name, value):
    with pytest.raises(BadRequest) as refusal:
        terms(Headers({name: value}))
    assert refusal.value.param == name
    assert name in refusal.value.message


@pytest.mark.parametrize(
    "name",
    ["x-budget-gpu-second", "x-budget-qualities", "x-budget-", "x-budget-us"],
)
def test_a_budget_that_is_not_built_is_refused_not_ignored(name):
    with pytest.raises(BadRequest) as refusal:
        terms(Headers({name: "1"}))
    assert refusal.value.param == name


@pytest.mark.parametrize(
    "name",
    [
        "x-budget-usd",
        "x-budget-latency-ms",
        "x-budget-ttft-ms",
        "x-budget-fallback",
        "x-policy",
        "x-debug",
    ],
)
def test_a_header_sent_twice_is_refused(name):
    value = {"x-budget-fallback": b"strict", "x-policy": b"direct"}.get(name, b"1")
    raw = [(name.encode(), value), (name.encode(), value)]
    with pytest.raises(BadRequest) as refusal:
        terms(Headers(raw=raw))
    assert refusal.value.param.lower() == name


def test_a_policy_is_named_with_its_options():
    asked = terms(Headers({"x-policy": "entropy_switch; raise_at=2.0;window=3"}))
    assert (asked.policy, asked.policy_param) == ("entropy_switch", "X-Policy")
    assert asked.options == {"raise_at": Decimal("2.0"), "window": 3}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("12", 12),
        ("-12", -12),
        ("999999999999.999", Decimal("999999999999.999")),
        ("-0.5", Decimal("-0.5")),
        ("?0", False),
        ("?1", True),
        ("smollm2-135m", "smollm2-135m"),
        ("Qwen/Qwen2.5-7B:free", "Qwen/Qwen2.5-7B:free"),
        ('"7b; \\"quoted\\", \\\\"', '7b; "quoted", \\'),
        ('"12"', "12"),
        ('%"f%c3%bcr Elise"', "f\xfcr Elise"),
    ],
)
def test_an_option_keeps_its_type(said, meant):
    options = terms(Headers({"x-policy": f"economy;one;it={said};last=2"})).options
    assert options == {"one": True, "it": meant, "last": 2}
    assert type(options["it"]) is type(meant)


@pytest.mark.parametrize("name", ["4bit", "my-preset_2.0", "a:b"])
def test_any_name_of_a_preset_can_be_said_as_a_string(name):
    assert terms(Headers({"x-policy": f'"{name}";window=3'})).policy == name


KEYS = st.from_regex(r"[a-z*][a-z0-9_*.-]{0,20}", fullmatch=True)
TOKENS = st.from_regex(r"[A-Za-z*][A-Za-z0-9:/!#$%&'*+.^_`|~-]{0,30}", fullmatch=True)
ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126))
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(10**15) + 1, 10**15 - 1),
    st.decimals(-(10**12) + 1, 10**12 - 1, allow_nan=False, places=3),
    ASCII,
    TOKENS.map(http_sf.Token),
)


@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_whatever_options_a_library_writes_are_read_back(options):
    text = http_sf.ser((http_sf.Token("economy"), options))
    asked = terms(Headers({"x-policy": text}))
    assert asked.policy == "economy"
    assert asked.options == {key: unmarked(value) for key, value in options.items()}


def unmarked(value):
    return str(value) if isinstance(value, http_sf.Token) else value


@given(st.text(max_size=60) | st.text('economy;=?10".-:@%()\\, \ud800', max_size=40))
@example("economy;" * 10_000)
@example("economy;a=" + '"' * 10_000)
@example("economy;a=\ud8001")
def test_random_text_is_a_policy_or_a_refusal(text):
    try:
        asked = terms(Headers({}), policy=text)
    except BadRequest as refusal:
        assert refusal.param == "policy"
    else:
        assert text.lstrip(' "').startswith(asked.policy)
        assert all(isinstance(v, str | bool | int | Decimal) for v in asked.options.values())


def test_a_policy_in_the_body_is_text_or_an_object():
    text = terms(Headers({}), policy="economy;raise_at=2")
    tree = terms(Headers({}), policy={"name": "economy", "raise_at": 2})
    assert text == tree
    assert (tree.policy, tree.options, tree.policy_param) == ("economy", {"raise_at": 2}, "policy")


@pytest.mark.parametrize("policy", [{}, {"name": 5}, {"name": ""}, {"name": "a b"}])
def test_a_policy_without_a_name_is_refused(policy):
    with pytest.raises(BadRequest) as refusal:
        terms(Headers({}), policy=policy)
    assert refusal.value.param == "policy.name"


def test_two_policies_are_one_too_many():
    with pytest.raises(BadRequest) as refusal:
        terms(Headers({"x-policy": "direct"}), policy="direct")
    assert refusal.value.param == "X-Policy"


def test_accelerator_time_is_read_like_money_and_the_smaller_counts():
    header = Headers({"X-Budget-Gpu-Seconds": "0.0025"})
    assert terms(header).gpu == 25 * 10**8 and terms(header).usd is None
    for said, pico in (("0.002", 2 * 10**9), (1, 25 * 10**8), ("1e-13", 0)):
        assert terms(header, BudgetField(gpu_seconds=said)).gpu == pico
    assert terms(Headers(), BudgetField(gpu_seconds=0.5)).gpu == 5 * 10**11


@pytest.mark.parametrize("text", [text for text in BAD_AMOUNTS if text.isascii()])
def test_what_is_no_time_is_refused_by_name(text):
    for asked, param in (
        ((Headers({"X-Budget-Gpu-Seconds": text}),), "X-Budget-Gpu-Seconds"),
        ((Headers(), BudgetField(gpu_seconds=text)), "budget.gpu_seconds"),
    ):
        with pytest.raises(BadRequest) as refusal:
            terms(*asked)
        assert refusal.value.param == param and param in refusal.value.message


def test_of_two_qualities_the_higher_one_counts():
    def quality(header=None, field=None):
        headers = {} if header is None else {"X-Budget-Quality": header}
        return terms(Headers(headers), BudgetField(quality=field)).quality

    assert (quality(), quality("0.9"), quality(None, 0.5)) == (None, 0.9, 0.5)
    assert quality("0.25", 0.5) == 0.5 and quality("1", 0) == 1.0


@pytest.mark.parametrize(
    "value", ["-0.1", "1.01", "1e999999999", "NaN", "inf", "", "high", "1" * 200]
)
def test_a_quality_that_cannot_be_is_refused_by_its_name(value):
    with pytest.raises(BadRequest) as refusal:
        terms(Headers({"X-Budget-Quality": value}))
    assert refusal.value.param == "X-Budget-Quality"


@pytest.mark.parametrize("value", [-0.5, 2, float("nan"), float("inf")])
def test_so_is_one_in_the_body(value):
    with pytest.raises(BadRequest) as refusal:
        terms(Headers({}), BudgetField(quality=value))
    assert refusal.value.param == "budget.quality"
