"""The policy `entropy_switch` is class `EntropySwitch` in policies/entropy_switch.py.

A package in that folder is no policy: `answers` is what several of them do with whole answers."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from pydantic import ValidationError

from app.errors import BadRequest
from policies.base import Policy


@cache
def names() -> list[str]:
    """Every policy: the files are the register, as they were when first asked for."""
    found = [each.name for each in iter_modules(__path__) if not each.ispkg]
    return sorted(name for name in found if name != "base")


@cache
def described() -> Mapping[str, Mapping[str, Any]]:
    """The options of every policy, as JSON Schema has it."""
    return {name: _kind(name).model_json_schema() for name in names()}


@cache
def _kind(name: str) -> type[Policy]:
    module = import_module(f"policies.{name}")
    kind: type[Policy] = getattr(module, name.title().replace("_", ""))
    return kind


def load(name: str, options: Mapping[str, Any], param: str = "policy") -> Policy:
    """The policy of this name with these options.

    Raises BadRequest, naming `param`, for a name or an option that there is not.
    """
    # Names come from clients: only what the folder holds may be imported.
    if name not in names():
        raise BadRequest(f"no policy {name!r}; there are: {', '.join(names())}", param=param)
    try:
        return _kind(name)(**options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = ".".join(str(part) for part in first["loc"]) or "options"
        raise BadRequest(f"policy {name}: {option}: {first['msg']}", param=param) from error
