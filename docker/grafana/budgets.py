"""Budgets and cost: what was promised, what was spent, and on whose work."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from docker.grafana.boards import VISIBLE, Row, board
from docker.grafana.panels import (
    HALF,
    NEVER,
    THIRD,
    TILE,
    WIDE,
    Column,
    Said,
    graph,
    stat,
    table,
)
from docker.grafana.queries import RANGE, Query, grown, mean, quantile, rate, ratio, share

ADMITTED = "farthing_budget_admitted_usd_total"
SPENT = "farthing_budget_spent_usd_total"
OVERSHOOT = "farthing_budget_overshoot_usd_total"
OUTCOMES = "farthing_budget_outcomes_total"
UTILIZATION = "farthing_budget_utilization_ratio"
COST = "farthing_cost_usd_total"
GPU = "farthing_gpu_seconds_total"
TOKENS = "farthing_tokens_total"
HONEST = "It must be 0. Anything else is a bug in how calls are bounded: report it."


def budgets() -> dashboard.Dashboard:
    return board(
        "budgets",
        "Budgets and cost",
        "Whether budgets are kept, how they end, and what models and policies cost.",
        [
            Row("", [*_honesty(), *_cost_tiles()]),
            Row("Budgets", _kept()),
            Row("Cost", [_lines(), *_cost()]),
            Row("What was billed", _tokens(), collapsed=True),
        ],
    )


def _outcome(title: str, outcome: str, tells: str, worry: str) -> dashboard.Panel:
    said = Said(title, tells, worry, "percentunit", TILE)
    return stat(said, share(OUTCOMES, f'outcome="{outcome}"', window=RANGE), over_range=True)


def _honesty() -> list[dashboard.Panel]:
    return [
        stat(
            Said(
                "Admitted",
                "USD that answers with a budget were allowed, in the time shown.",
                "It is a promise: compare it with what was spent.",
                "currencyUSD",
                TILE,
            ),
            grown(ADMITTED),
            over_range=True,
        ),
        stat(
            Said(
                "Spent",
                "USD that answers with a budget cost, in the time shown.",
                "Never more than was admitted.",
                "currencyUSD",
                TILE,
            ),
            grown(SPENT),
            over_range=True,
        ),
        stat(
            Said(
                "Utilisation",
                "Spent, of what was admitted, in the time shown.",
                "Far below 100 %: budgets are wider than answers need. Near it: many are cut.",
                "percentunit",
                TILE,
            ),
            ratio(grown(SPENT), grown(ADMITTED)),
            over_range=True,
        ),
        stat(
            Said(
                "Overshoot",
                "USD spent beyond what answers were admitted with, in the time shown.",
                HONEST,
                "currencyUSD",
                TILE,
            ),
            grown(OVERSHOOT),
            NEVER,
            over_range=True,
        ),
        _outcome(
            "Steered",
            "steered",
            "Of answers with a budget, those that went on with a cheaper model to stay within it.",
            "It is what presets are for. Near 100 %: budgets are too small for the large model.",
        ),
        _outcome(
            "Cut",
            "cut",
            "Of answers with a budget, those that ended because it did.",
            "Clients see `finish_reason: length`. Many: budgets are too small for the answers.",
        ),
        _outcome(
            "Refused",
            "refused",
            "Of requests with a budget, those it could not even pay the prompt of.",
            "Clients see 402. Many: budgets are too small for the prompts.",
        ),
        _outcome(
            "Past deadline",
            "deadline",
            "Of answers with a budget, those that ended because their deadline came first.",
            "Many: engines are slower than clients will wait.",
        ),
    ]


def _cost_tiles() -> list[dashboard.Panel]:
    wide = (6, 4)
    return [
        stat(
            Said(
                "Cost",
                "USD billed for all answers in the time shown, with a budget or without.",
                "It is by the prices of the catalog: as right as those are.",
                "currencyUSD",
                wide,
            ),
            grown(COST),
            over_range=True,
        ),
        stat(
            Said(
                "USD an hour",
                "What an hour costs if it goes on as now.",
                "Worry when it grows and visible tokens do not.",
                "currencyUSD",
                wide,
            ),
            f"3600 * {rate(COST)}",
        ),
        stat(
            Said(
                "USD per million visible tokens",
                "Cost of what clients got to read: prompts, drafts and discarded tokens included.",
                "A policy is worth it where this is lower than with its best model alone.",
                "currencyUSD",
                wide,
            ),
            ratio(f"1e6 * {grown(COST)}", grown(VISIBLE)),
            over_range=True,
        ),
        stat(
            Said(
                "Accelerators busy",
                "Idealized accelerator-seconds a second: how many accelerators the work would fill,"
                " of models whose card says what they take.",
                "Above what you have, answers wait.",
                "none",
                wide,
            ),
            rate(GPU),
        ),
    ]


def _kept() -> list[dashboard.Panel]:
    by = ("preset", "policy")
    return [
        graph(
            Said(
                "Admitted and spent",
                "USD an hour of answers with a budget: what they might have cost, what they did.",
                "The second line is never above the first.",
                "currencyUSD",
                HALF,
            ),
            Query(f"3600 * {rate(ADMITTED)}", "admitted"),
            Query(f"3600 * {rate(SPENT)}", "spent"),
        ),
        graph(
            Said(
                "How budgets end",
                "kept: the answer ended by itself; steered: a cheaper model went on; cut: the"
                " budget ended first; deadline, refused, failed; closed: the client left.",
                "Worry when `cut` or `refused` grow beside `kept`.",
                "reqps",
                HALF,
            ),
            Query(rate(OUTCOMES, by=("outcome",)), "{{outcome}}"),
            stack="normal",
        ),
        graph(
            Said(
                "Utilisation of each answer",
                "How much of its own budget an answer spent.",
                "p50 near 1: half of all budgets are used up. Above 1: see *Overshoot*.",
                "percentunit",
                THIRD,
            ),
            *(Query(quantile(q, UTILIZATION), f"p{100 * q:g}") for q in (0.5, 0.95)),
            Query(mean(UTILIZATION), "mean"),
        ),
        graph(
            Said(
                "Utilisation by preset",
                "Mean share of their budgets that answers spent.",
                "It tells whose budgets are too wide, or too tight.",
                "percentunit",
                THIRD,
            ),
            Query(mean(UTILIZATION, by=by), "{{preset}} {{policy}}"),
        ),
        graph(
            Said(
                "Overshoot by preset",
                "USD a second spent beyond what was admitted.",
                HONEST,
                "currencyUSD",
                THIRD,
            ),
            Query(rate(OVERSHOOT, by=by), "{{preset}} {{policy}}"),
        ),
    ]


def _lines() -> dashboard.Panel:
    by = ("model", "preset", "policy")
    kind = 'kind="{}"'.format
    return table(
        Said(
            "By model and policy",
            "What each model did and cost in the time shown, for each preset and policy.",
            "A line with much cost and few visible tokens drafts or discards more than it helps.",
            "short",
            WIDE,
        ),
        {"model": "Model", "preset": "Preset", "policy": "Policy"},
        Column("USD", "currencyUSD", grown(COST, by=by)),
        Column("Prompt tokens", "short", grown(TOKENS, kind("prompt"), by=by)),
        Column("Cached", "short", grown(TOKENS, kind("cached"), by=by)),
        Column("Completion tokens", "short", grown(TOKENS, kind("completion"), by=by)),
        Column("Visible tokens", "short", grown(VISIBLE, by=by)),
        Column(
            "USD / M visible",
            "currencyUSD",
            ratio(f"1e6 * {grown(COST, by=by)}", grown(VISIBLE, by=by)),
        ),
        Column("GPU-seconds", "s", grown(GPU, by=by)),
    )


def _cost() -> list[dashboard.Panel]:
    return [
        graph(
            Said(
                "USD an hour by model",
                "Cost of the work that each model did.",
                "The large model's part is what policies should lower.",
                "currencyUSD",
                HALF,
            ),
            Query(f"3600 * {rate(COST, by=('model',))}", "{{model}}"),
            stack="normal",
        ),
        graph(
            Said(
                "USD an hour by policy",
                "Cost of all models together, for each preset and policy.",
                "`none direct`: a model was named, and answered alone.",
                "currencyUSD",
                HALF,
            ),
            Query(f"3600 * {rate(COST, by=('preset', 'policy'))}", "{{preset}} {{policy}}"),
            stack="normal",
        ),
        graph(
            Said(
                "USD per million visible tokens by policy",
                "Cost of what clients got to read.",
                "A preset above its best model alone costs more than it saves.",
                "currencyUSD",
                HALF,
            ),
            Query(
                ratio(
                    f"1e6 * {rate(COST, by=('preset', 'policy'))}",
                    rate(VISIBLE, by=("preset", "policy")),
                ),
                "{{preset}} {{policy}}",
            ),
        ),
        graph(
            Said(
                "Accelerators busy by model",
                "Idealized accelerator-seconds a second, where a model's card says what it takes.",
                "Above what a model has, its calls wait.",
                "none",
                HALF,
            ),
            Query(rate(GPU, by=("model",)), "{{model}}"),
            stack="normal",
        ),
    ]


def _tokens() -> list[dashboard.Panel]:
    return [
        graph(
            Said(
                "Tokens by kind",
                "prompt includes cached and predicted, completion includes discarded and accepted."
                " Kinds are counted beside each other and are no sum.",
                "`discarded` or `wasted` near `completion`: policies throw away what was paid for.",
                "count:tok/s",
                THIRD,
            ),
            Query(rate(TOKENS, by=("kind",)), "{{kind}}"),
        ),
        graph(
            Said(
                "Prompts from the cache",
                "Share of prompt tokens that a prefix cache had already, by model.",
                "It falls when replicas change or prompts no longer begin alike.",
                "percentunit",
                THIRD,
            ),
            Query(
                ratio(
                    rate(TOKENS, 'kind="cached"', by=("model",)),
                    rate(TOKENS, 'kind="prompt"', by=("model",)),
                ),
                "{{model}}",
            ),
            most=1,
        ),
        graph(
            Said(
                "Discarded",
                "Share of written tokens that no client saw, by model: those a hand-over rewrote,"
                " those beyond a stop.",
                "They are paid for. Much above 10 %: the policy switches too often.",
                "percentunit",
                THIRD,
            ),
            Query(
                ratio(
                    rate(TOKENS, 'kind="discarded"', by=("model",)),
                    rate(TOKENS, 'kind="completion"', by=("model",)),
                ),
                "{{model}}",
            ),
            most=1,
        ),
    ]
