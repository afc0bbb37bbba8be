"""What an answer cost and who wrote it: headers, and members of its JSON."""

from __future__ import annotations

from typing import Any

from app.catalog import PICO, usd
from app.gateway import Answer
from app.reasons import STRATEGIES, Decision
from app.types import Usage
from routers.edge import rate_headers


def start_headers(answer: Answer) -> dict[str, str]:
    """What is known when the first chunk has come."""
    headers = {
        "X-Farthing-Policy": answer.policy,
        "X-Farthing-Fidelity": answer.fidelity,
        "X-Farthing-Estimate-Usd": usd(answer.estimate),
    }
    if answer.promise is not None:
        headers["X-Farthing-Preset"] = answer.promise.preset
    if answer.budget is not None:
        headers["X-Farthing-Budget-Usd"] = usd(answer.budget)
    return headers | rate_headers(answer.rates)


def end_headers(answer: Answer) -> dict[str, str]:
    """What is known when the answer is whole."""
    bill = answer.bill
    return {
        "X-Farthing-Cost-Usd": usd(bill.cost),
        "X-Farthing-Overhead-Ms": f"{bill.overhead * 1000:.3f}",
    }


def cost(answer: Answer) -> dict[str, Any]:
    """Members of its usage: what it cost, and how that came about."""
    bill = answer.bill
    models = {
        line.model: {
            "prompt_tokens": line.usage.prompt,
            "cached_tokens": line.usage.cached,
            "completion_tokens": line.usage.completion,
            "discarded_tokens": max(line.usage.completion - line.visible, 0),
            **_predicted(line.usage),
            **_guesses(line.usage),
            "cost": line.cost / PICO,
            **gpu_seconds(line.gpu_us),
        }
        for line in bill.lines
    }
    return {
        "cost": bill.cost / PICO,
        "cost_details": {
            "models": models,
            "currency": "USD",
            **gpu_seconds(bill.gpu_us),
            "price_version": bill.prices,
        },
    }


def gpu_seconds(us: int | None) -> dict[str, float]:
    """Idealized accelerator time as a member of JSON, where it is known."""
    return {} if us is None else {"gpu_seconds": us / 10**6}


def summary(answer: Answer, debug: bool) -> dict[str, Any]:
    """Its `farthing`: who answered, and what was decided."""
    told: dict[str, Any] = {
        "policy": answer.policy,
        **({} if answer.promise is None else {"preset": answer.promise.preset}),
        "fidelity": answer.fidelity,
        "models": {line.model: line.visible for line in answer.bill.lines},
    }
    if answer.shown.entropy is not None:
        told["entropy"] = answer.shown.entropy
    failed = next((d for d in answer.decisions if d.kind == "failover"), None)
    if failed is not None:
        told["failover"] = {"token": failed.token, "model": failed.model}
    whole = next((d for d in answer.decisions if d.kind == "whole"), None)
    if whole is not None:
        told["whole"] = whole.model
    around = [d for d in answer.decisions if d.kind in STRATEGIES]
    if around:  # of several choices: the last one's
        told["decided"] = {"kind": around[-1].kind, "model": around[-1].model, **_why(around[-1])}
    for kind, said in (("plain", "plain"), ("repair", "repaired")):
        if any(d.kind == kind for d in answer.decisions):
            told[said] = True
    if answer.notes.shortened:
        told["compressed"] = _shortened(answer, debug)
    if debug:
        told["switches"] = [switch(decision) for decision in answer.decisions]
    return told


def _shortened(answer: Answer, debug: bool) -> dict[str, Any]:
    """How many tokens were read of each prompt, of how many; to see it, what was read."""
    call = answer.order.call
    each = call.choices // (1 + len(call.beside))
    found = {index // each: one for index, one in sorted(answer.notes.shortened.items())}
    told: dict[str, Any] = {
        "before": sum(one.before for one in found.values()),
        "after": sum(one.after for one in found.values()),
    }
    if debug:
        prompts = [prompt for one in found.values() for prompt in one.prompts]
        messages = [message for one in found.values() for message in one.messages]
        told |= {"prompts": prompts} if prompts else {"messages": messages}
    return told


def _guesses(usage: Usage) -> dict[str, int]:
    """What was guessed ahead, where a model was asked to."""
    if not usage.passes and not usage.drafted:
        return {}
    return {
        "drafted_tokens": usage.drafted,
        "accepted_tokens": usage.accepted,
        "wasted_tokens": usage.wasted,
        "verification_passes": usage.passes,
    }


def _predicted(usage: Usage) -> dict[str, int]:
    """How much of the prompt has predicted keys and values, where any has."""
    return {"predicted_tokens": usage.predicted} if usage.predicted else {}


def switch(decision: Decision) -> dict[str, Any]:
    return {
        "kind": decision.kind,
        "token": decision.token,
        "model": decision.model,
        "entropy": decision.entropy,
        "threshold": decision.threshold,
        "rest_usd": decision.rest_usd,
        **_why(decision),
        **({"saves_s": decision.saves} if decision.saves is not None else {}),
        **({"choice": decision.choice} if decision.choice else {}),
    }


def _why(decision: Decision) -> dict[str, Any]:
    """What is told of a decision around a whole answer."""
    said = {
        "confidence": decision.confidence,
        "answers": decision.answers,
        "dropped_tokens": decision.dropped,
        "detail": decision.detail or None,
        "steered": decision.steered or None,
    }
    return {name: value for name, value in said.items() if value is not None}
