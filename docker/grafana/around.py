"""Policies that decide around whole answers: how often they keep, choose, refine and compress."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from docker.grafana.panels import Said, graph
from docker.grafana.queries import Query, mean, rate, ratio

STRATEGIES = "farthing_strategies_total"
MADE = "farthing_answers_made_total"
DROPPED = "farthing_prompt_dropped_tokens_total"
PLANS = "farthing_plans_total"
DRIFT = "farthing_plan_drift_ratio"


def around() -> list[dashboard.Panel]:
    return [
        graph(
            Said(
                "Decisions around answers",
                "keep, escalate: a cascade's; select: of several answers; refine: of its versions;"
                " compress: a shorter prompt; precision, plan, route: which one answers.",
                "Mostly `escalate`: the cascade's first model is too weak for these prompts.",
                "cps",
            ),
            Query(rate(STRATEGIES, by=("preset", "kind")), "{{preset}} {{kind}}"),
            stack="normal",
        ),
        graph(
            Said(
                "Answers made for one",
                "How many answers are made for each that a client sees, where several are.",
                "They are all paid for: as many as best_of_n's `most` only where votes are close.",
                "none",
            ),
            Query(
                ratio(
                    rate(MADE, by=("preset",)),
                    rate(STRATEGIES, 'kind=~"keep|select|refine"', by=("preset",)),
                ),
                "{{preset}}",
            ),
        ),
        graph(
            Said(
                "Prompt tokens dropped / s",
                "What compression left out of prompts.",
                "Nothing, in a preset that compresses: prompts are shorter than its least length.",
                "count:tok/s",
            ),
            Query(rate(DROPPED, by=("preset",)), "{{preset}}"),
        ),
        graph(
            Said(
                "What the planner chose",
                "Answers to `auto` by the way that was taken. best: it should be; explored: to"
                " learn of it; short: nothing keeps to what is asked; failover: another one"
                " failed first.",
                "Much is `short`: budgets or times are below what any way is sure to keep.",
                "cps",
            ),
            Query(rate(PLANS, by=("way", "kind")), "{{way}} {{kind}}"),
            stack="normal",
        ),
        graph(
            Said(
                "Drift of the planner",
                "What answers cost and took of what was expected of them, in the mean.",
                "Far from 1 for long: the fleet is another one than was measured; calibrate anew.",
                "none",
            ),
            Query(mean(DRIFT, by=("way", "kind")), "{{way}} {{kind}}"),
        ),
    ]
