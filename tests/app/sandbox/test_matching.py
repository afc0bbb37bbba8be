"""Texts against clients' schemas and patterns: what fits, and what must not hold the gateway up."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from app.errors import SandboxUnavailable
from app.sandbox import matching
from app.sandbox.matching import fits, matches, pattern_of, schema_of

POINT = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"x": 1}', True),
        (' {"x": 1.5, "y": null}\n', True),
        ('{"y": 1}', False),
        ('{"x": "1"}', False),
        ("[]", False),
        ("", False),
        ('Sure: {"x": 1}', False),
        ('{"x": NaN}', False),
        ('{"x": 1' + "0" * 5000 + "}", False),
        ("[" * 100_000, False),
        ('{"x": "\ud800"}', False),
    ],
)
async def test_the_whole_text_is_json_as_the_schema_says(text: str, expected: bool) -> None:
    assert await fits(POINT, text) is expected


async def test_references_within_a_schema_are_followed() -> None:
    tree = schema_of({"type": "array", "items": {"$ref": "#"}})
    assert await fits(tree, "[[], [[]]]")
    assert not await fits(tree, "[[], [[1]]]")


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("#/$defs/none", "does not exist"),
        ("http://127.0.0.1:1/x.json", "disabled"),
        ("file:///etc/passwd", "disabled"),
    ],
)
async def test_no_reference_leads_out_of_a_schema(reference: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        await fits(schema_of({"$ref": reference}), "{}")


def endless() -> dict[str, Any]:
    """Takes for ever to compile."""
    kinds = {
        f"a{i}": {
            "unevaluatedProperties": {"$ref": f"#/$defs/a{(i + 1) % 25}"},
            "allOf": [{"$ref": f"#/$defs/a{(i + k) % 25}"} for k in range(3)],
        }
        for i in range(25)
    }
    return {"$defs": kinds, "$ref": "#/$defs/a0"}


def doubling() -> dict[str, Any]:
    """Takes for ever to hold anything against it."""
    kinds: dict[str, Any] = {
        f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(60)
    }
    return {"$defs": {**kinds, "a60": {"type": "object"}}, "$ref": "#/$defs/a0"}


@pytest.mark.parametrize("schema", [endless(), doubling()])
async def test_a_schema_that_takes_for_ever_fits_nothing(
    monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any]
) -> None:
    monkeypatch.setattr(matching, "_SECONDS", 0.3)
    turns = 0
    task = asyncio.create_task(fits(schema_of(schema), "{}"))
    while not task.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert task.result() is False
    assert turns > 2  # nobody else waited for it


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("b+", "aabb", True),
        ("^b", "ab", False),
        (r"^#### -?\d+$", "#### 18", True),
        (r"^#### -?\d+$", "so\n#### 18", False),
        (r"(?m)^#### -?\d+$", "so\n#### 18\n", True),
        ("(?i)yes", "YES", True),
        ("a.b", "a\nb", False),
        ("^(a+)+$", "a" * 5000 + "b", False),
        ("null", "null", True),  # text, not JSON
    ],
)
async def test_a_pattern_is_searched_for(pattern: str, text: str, expected: bool) -> None:
    assert await matches(pattern_of(pattern), text) is expected


@pytest.mark.parametrize("pattern", ["(", "(?=a)", r"(a)\1", "a{1000}{1000}{1000}"])
def test_a_pattern_that_would_cost_too_much_is_none(pattern: str) -> None:
    with pytest.raises(ValueError, match="must be a regular expression"):
        pattern_of(pattern)


def nested(levels: int) -> dict[str, Any]:
    return {} if not levels else {"not": nested(levels - 1)}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (3, "an object"),
        ({"type": "point"}, "no JSON schema"),
        ({"enum": [object()]}, "JSON's values"),
        ({"maximum": float("nan")}, "JSON compliant"),
        ({"$schema": "http://127.0.0.1:1/x.json"}, r"\$schema"),
        ({"$schema": 3}, r"\$schema"),
        ({"enum": ["x" * 70_000]}, "at most 65536 bytes"),
        (nested(64), "64 levels"),
    ],
)
def test_what_is_no_schema_is_refused(value: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        schema_of(value)


def test_a_schema_s_numbers_may_be_toml_s() -> None:
    assert schema_of({"maximum": Decimal("1.5")}) == {"maximum": 1.5}
    assert schema_of(nested(62)) == nested(62)


async def test_where_no_process_can_be_had_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_MATCHER", ("/nonexistent",))
    with pytest.raises(SandboxUnavailable, match="could be started"):
        await fits(POINT, "{}")
    monkeypatch.setattr(matching, "_MATCHER", ("/bin/sh", "-c", "echo broken >&2; exit 3"))
    with pytest.raises(SandboxUnavailable, match="broken"):
        await fits(POINT, "{}")
