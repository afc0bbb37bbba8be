"""Header by header: any value is taken for what it says, or refused by that header's name."""

from __future__ import annotations

import ipaddress
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from app.errors import BadRequest, Forbidden, InvalidKey
from routers.doors import TENANT, Door
from routers.terms import DEBUG, FALLBACK, LATENCY, POLICY, TTFT, USD, BudgetField, terms

any_value = st.text(st.characters(codec="latin-1"), max_size=60)
numbers = st.from_regex(r"[0-9.eE+_-]{1,14}", fullmatch=True)
_BARE = r"(\?[01]|-?[0-9.]{1,9}|\"?[a-z\\]{0,6}\"?|:[A-Za-z=]{0,4}:|@[0-9]{1,3}|%\"[a-f0-9%]*\")"
_OPTION = rf" ?;[ ]?[a-z_*]{{1,9}}(={_BARE})?"
items = st.from_regex(rf"[a-z*\"][a-z0-9_./:\"]{{0,10}}({_OPTION}){{0,3}}", fullmatch=True)
headers = st.dictionaries(
    st.sampled_from([USD, LATENCY, TTFT, FALLBACK, POLICY, DEBUG]),
    any_value | numbers | items,
    max_size=3,
)
budgets = st.none() | st.builds(
    BudgetField.model_construct,
    usd=st.none() | st.integers() | st.floats() | any_value | numbers,
    latency_ms=st.none() | st.integers(-1, 10**12) | st.floats(),
    ttft_ms=st.none() | st.integers(-1, 10**12) | st.floats(),
)
policies = st.none() | any_value | items | st.dictionaries(any_value, st.none() | any_value)


def raw(found: dict[str, str]) -> Headers:
    return Headers(raw=[(k.lower().encode(), v.encode("latin-1")) for k, v in found.items()])


@settings(max_examples=400)
@given(headers, budgets, policies)
def test_terms_are_what_they_say_or_refused_by_name(sent, budget, policy):
    try:
        agreed = terms(raw(sent), budget, policy)
    except BadRequest as error:
        assert error.param and error.message.startswith(error.param)
        named = error.param.partition(".")[0]
        assert named in {*sent, "budget", "policy"}
        return
    assert agreed.usd is None or 0 <= agreed.usd < 10**21
    for wait in (agreed.latency, agreed.ttft):
        assert wait is None or (math.isfinite(wait) and wait >= 0)
    assert (agreed.policy is None) == (POLICY not in sent and policy is None)


class NoKeys:
    """A ledger in which there are keys, of which none was sent."""

    def __init__(self):
        self.keyring = self

    async def any(self):
        return True

    def of(self, key, tenant):
        raise AssertionError("it opened")

    async def authenticate(self, token):
        assert token is None or token.isascii()
        raise InvalidKey("no")


@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", TENANT, "Origin"])
@given(value=any_value | st.from_regex(r"(Bearer|bearer|Basic) ?[ -~]{0,50}", fullmatch=True))
async def test_whatever_opens_no_door_says_so(name, value):
    peers = [ipaddress.ip_network("127.0.0.0/8")]
    with pytest.raises(InvalidKey):
        await Door(NoKeys(), peers=peers).account(raw({name: value}), "127.0.0.1")
    try:
        await Door().account(raw({name: value}), "127.0.0.1")
    except Forbidden:
        assert name == "Origin"
