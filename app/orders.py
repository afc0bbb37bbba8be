"""What a request asks for, and which policy answers it with which options."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import policies
from app.budget import Account
from app.catalog import Catalog, GpuSeconds
from app.errors import BadRequest, Forbidden
from app.profile import Way
from app.types import Call
from policies.base import Policy

GPU_BUDGET, QUALITY = "X-Budget-Gpu-Seconds", "X-Budget-Quality"


@dataclass(frozen=True, slots=True)
class Order:
    """What a request asks for."""

    call: Call  # its model as the client named it: model, alias, preset or policy/model
    policy: str | None = None  # a preset's or a policy's name, beside the model
    options: Mapping[str, Any] = field(default_factory=dict)
    policy_param: str = "policy"  # where the two came from, for errors
    usd: int | None = None  # most that it may cost, 1e-12 USD
    gpu: int | None = None  # most that it may take, 1e-12 accelerator-seconds
    strict: bool = False  # refuse what the budget might cut
    echo: bool = False  # show each choice's prompt before it
    best_of: int | None = None  # choices to draw of each prompt, to give the best; None: no more
    request_id: str = ""  # what its client knows it by
    stream: bool = False  # whether its client reads it as it comes
    arrived: float = field(default_factory=time.monotonic, compare=False)
    trace: Mapping[str, str] = field(default_factory=dict)  # headers: whose trace it is part of
    span: object = None  # the observer's own, of the request


@dataclass(frozen=True, slots=True)
class Plan:
    """A policy that fits the fleet, and the name under which the client knows it."""

    preset: str  # empty where the client asked for none
    policy_name: str  # the policy's own
    policy: Policy
    model: str  # the model that the client named; empty where a preset stands for it

    @property
    def name(self) -> str:
        return self.preset or self.policy_name

    @property
    def target(self) -> str:
        """The model that is asked for, of a preset its best one."""
        return self.policy.best_first(self.model)[0]

    @property
    def first(self) -> str:
        """The model that is asked first."""
        return next(iter(self.policy.worst_case(self.model, 0, 0)))

    def narrowed(self, may: Callable[[Way], bool]) -> Plan | None:
        """With those of its measured ways only that may be taken; None: there are none."""
        policy = self.policy.narrowed(may)
        return None if policy is None else replace(self, policy=policy)


def planned(order: Order, catalog: Catalog) -> Plan:
    """Which policy answers, with which options.

    Raises UnknownModel, and BadRequest for what cannot be.
    """
    named, param = order.call.model, order.policy_param
    model: str | None = None
    if named in catalog.offered:
        preset, policy, options = _preset(named, order, catalog)
    elif "/" in named:
        policy, _, model = named.partition("/")
        if policy not in policies.names():
            catalog.model(named)
        if order.policy not in (None, policy):
            raise BadRequest(f"model {named!r} names another policy", param=param)
        preset, options = "", dict(order.options)
    else:
        model = catalog.model(named).name
        preset, policy, options = _beside(order, catalog)
    chosen = policies.load(policy, options, param)
    if order.call.embeds and (preset or policy != "direct"):
        raise BadRequest("model: a vector is one model's; name a model", param="model")
    if order.call.goals.quality is not None and not chosen.chooses:
        what = "is for the model `auto`, which chooses by quality"
        raise BadRequest(f"{QUALITY}: {what}", param=QUALITY)
    if model is not None:
        model = catalog.model(model).name
    return Plan(preset, policy, chosen.fit(catalog, model), model or "")


def allowed(order: Order, plan: Plan, account: Account, catalog: Catalog) -> Plan:
    """The plan, of several ways with those that the account may name.

    A preset as it is brings its own models along; else each of them must be allowed. Raises
    Forbidden.
    """
    changed = plan.model or order.options or order.policy not in (None, order.call.model)
    if not changed and account.allows(order.call.model):
        return plan

    def may(model: str) -> bool:
        return any(map(account.allows, (model, *catalog.model(model).aliases)))

    if plan.policy.chooses:

        def may_go(way: Way) -> bool:
            as_it_is = not way.options and account.allows(way.preset)
            return as_it_is or all(map(may, way.models))

        left = plan.narrowed(may_go)
        if left is None:
            raise Forbidden(
                f"This API key may use none of the ways among which {plan.name!r} chooses",
                param="model",
            )
        return left
    for model in plan.policy.worst_case(plan.model, 0, 0):
        if not may(model):
            raise Forbidden(f"This API key may not use the model {model!r}", param="model")
    return plan


def ranked(order: Order, plan: Plan, catalog: Catalog) -> tuple[Order, Plan]:
    """With what it takes to tell the best of several choices. Raises BadRequest."""

    def foreign(model: str) -> bool:
        return catalog.model(model).engine == "openai"

    plan = plan.narrowed(lambda way: not any(map(foreign, way.models))) or plan
    for model in plan.policy.worst_case(plan.model, 0, 0):
        if foreign(model):
            raise BadRequest(
                f"best_of: {model} is another server's, whose choices cannot be compared",
                param="best_of",
            )
    sampling = order.call.sampling
    scored = replace(sampling, logprobs=sampling.logprobs or 0)
    return replace(order, call=replace(order.call, sampling=scored)), plan


def _preset(named: str, order: Order, catalog: Catalog) -> tuple[str, str, dict[str, Any]]:
    preset = catalog.offered[named]
    if order.policy is None:
        return named, preset.policy, {**preset.options, **order.options}
    beside, policy, options = _beside(order, catalog)
    if policy != preset.policy:
        raise BadRequest(
            f"{order.policy!r} is not the policy of preset {named!r} ({preset.policy});"
            " name a model instead of the preset",
            param=order.policy_param,
        )
    return beside, policy, {**preset.options, **options}


def _beside(order: Order, catalog: Catalog) -> tuple[str, str, dict[str, Any]]:
    """The preset, if one is named beside the model, and the policy: none means direct."""
    if order.policy is None:
        return "", "direct", dict(order.options)
    if order.policy in catalog.offered:
        preset = catalog.offered[order.policy]
        return preset.name, preset.policy, {**preset.options, **order.options}
    return "", order.policy, dict(order.options)


def bound(order: Order, account: Account) -> int | None:
    """A request may name less than its account's ceiling, never more."""
    named = account.default if order.usd is None else order.usd
    return min((usd for usd in (named, account.ceiling) if usd is not None), default=None)


def gpu_bound(most: int, plan: Plan, known: Mapping[str, GpuSeconds]) -> tuple[Plan, int]:
    """What of these 1e-12 accelerator-seconds may be spent, so that the bill keeps to them; of a
    plan with several ways by those of which it is known what they take.

    Raises BadRequest where a model does not say what its tokens take.
    """
    plan = plan.narrowed(lambda way: all(model in known for model in way.models)) or plan
    models = plan.policy.worst_case(plan.model, 0, 0)
    for model in models:
        if model not in known:
            raise BadRequest(
                f"{GPU_BUDGET}: it is not known what tokens of {model} take of accelerators",
                param=GPU_BUDGET,
            )
    # Bills are in microseconds, and each model's line is rounded up.
    return plan, max(most // 10**6 - (len(models) - 1), 0) * 10**6
