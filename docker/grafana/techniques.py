"""Policies: how often models hand over, how well guesses do, and what prediction saves."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from docker.grafana.around import around
from docker.grafana.boards import TTFT, VISIBLE, Row, board
from docker.grafana.panels import HALF, TILE, Said, graph, heat, stat
from docker.grafana.queries import (
    NOW,
    Query,
    mean,
    quantile,
    rate,
    ratio,
    series,
    share,
    spread,
    total,
)

TOKENS = "farthing_tokens_total"
ANSWERS = "farthing_answers_total"
SWITCHES = "farthing_switches_total"
GAP = "farthing_hand_over_gap_seconds"
ENTROPY = "farthing_entropy_bits"
PASSES = "farthing_verification_passes_total"
DRAFTS = "farthing_draft_length_tokens"
ACCEPTED = "farthing_accepted_length_tokens"
PROMPTS = "farthing_predicted_prompts_total"
SAVED = "farthing_ttft_saved_seconds"
FALLBACKS = "farthing_fallbacks_total"
BITS = "suffix: bits"


def techniques() -> dashboard.Dashboard:
    return board(
        "policies",
        "Policies",
        "Which model writes what, and whether switching, speculation and KV prediction pay.",
        [
            Row("", _tiles()),
            Row("Switching", _switching()),
            Row("Speculation", _speculation(), collapsed=True),
            Row("KV prediction", _prediction(), collapsed=True),
            Row("Whole answers", around(), collapsed=True),
        ],
    )


def _kind(kind: str, by: tuple[str, ...] = ()) -> str:
    return rate(TOKENS, f'kind="{kind}"', by=by)


def _buckets(name: str) -> str:
    return total(f"rate({series(f'{name}_bucket')}[{NOW}])", ("le",))


def _tiles() -> list[dashboard.Panel]:
    return [
        stat(
            Said(
                "Switches per answer",
                "Hand-overs in mid-answer, over all answers, also of policies that never switch.",
                "Several an answer: models take the pen from each other, and each time costs.",
                "none",
                TILE,
            ),
            ratio(rate(SWITCHES), rate(ANSWERS)),
        ),
        stat(
            Said(
                "Hand-over gap p95",
                "From the last token before a hand-over to the first one after it.",
                "Readers see it as a stutter. Long: the model that takes over must read it all.",
                "s",
                TILE,
            ),
            quantile(0.95, GAP),
        ),
        stat(
            Said(
                "Approximate",
                "Share of answers that are not distributed as the best model's.",
                "It is what presets with switching or predicted keys and values promise: no more.",
                "percentunit",
                TILE,
            ),
            share(ANSWERS, 'fidelity="approximate"'),
        ),
        stat(
            Said(
                "Fallbacks / s",
                "Answers that a policy could not give as it meant to, and gave otherwise.",
                "Often: clients ask what the policy cannot do, or a draft or predictor is missing.",
                "reqps",
                TILE,
            ),
            f"{rate(FALLBACKS)} or 0 * {rate(ANSWERS)}",
        ),
        stat(
            Said(
                "Acceptance",
                "Share of guessed tokens that the large model kept.",
                "Below about 50 % guesses seldom pay for themselves.",
                "percentunit",
                TILE,
            ),
            ratio(_kind("accepted"), _kind("drafted")),
        ),
        stat(
            Said(
                "Acceptance length",
                "Tokens written for each pass of the large model: 1 and the guesses it kept.",
                "At 1 it gains nothing; the draft costs all the same.",
                "none",
                TILE,
            ),
            f"1 + {ratio(_kind('accepted'), rate(PASSES))}",
        ),
        stat(
            Said(
                "Predicted prompts / s",
                "Answers that began on predicted keys and values of their prompt.",
                "Nothing: no prompt is long enough, or the engine has no predictor.",
                "reqps",
                TILE,
            ),
            rate(PROMPTS),
        ),
        stat(
            Said(
                "TTFT saved",
                "What a prediction saved before the first token: the mean, as estimated.",
                "Near 0 the answers are approximate for nothing.",
                "s",
                TILE,
            ),
            mean(SAVED),
        ),
    ]


def _switching() -> list[dashboard.Panel]:
    switch_entropy = "farthing_switch_entropy_bits"
    return [
        graph(
            Said(
                "Who writes",
                "Share of visible tokens by the model that wrote them.",
                "The large one writes nearly all: the preset saves little. Nearly none: raise_at is"
                " so high that it never helps.",
                "count:tok/s",
            ),
            Query(rate(VISIBLE, by=("model",)), "{{model}}"),
            stack="percent",
        ),
        graph(
            Said(
                "Hand-overs by kind",
                "switch: the policy decided; steer: the budget no longer buys the model;"
                " failover: its engine broke off.",
                "`failover` is never meant: look at *Engines*. `steer`: budgets are tight.",
                "cps",
            ),
            Query(rate(SWITCHES, by=("kind", "to")), "{{kind}} to {{to}}"),
            stack="normal",
        ),
        graph(
            Said(
                "Hand-over gap",
                "How long readers wait while one model takes over from another.",
                "Far above *Time between tokens*: no prefix is cached where the answer goes on.",
                "s",
            ),
            *spread(GAP),
        ),
        heat(
            Said(
                "Entropy of tokens",
                "How unsure the writer was of each token, or could least have been.",
                "The band between lower_at and raise_at is where a policy decides.",
                BITS,
                HALF,
            ),
            _buckets(ENTROPY),
        ),
        graph(
            Said(
                "Entropy by model",
                "Median and p95 of the tokens that each model wrote.",
                "A small model whose median comes near raise_at is too small for these prompts.",
                BITS,
                HALF,
            ),
            Query(quantile(0.5, ENTROPY, by=("model",)), "p50 {{model}}"),
            Query(quantile(0.95, ENTROPY, by=("model",)), "p95 {{model}}"),
        ),
        graph(
            Said(
                "Entropy at switches",
                "Median of the rolling means at which a switch was decided, by who took over.",
                "To the large model it is above raise_at, and higher where a budget paces it.",
                BITS,
            ),
            Query(quantile(0.5, switch_entropy, by=("to",)), "to {{to}}"),
        ),
        graph(
            Said(
                "Discarded tokens",
                "Share of written tokens that a hand-over or a stop threw away, by writer.",
                "They are paid for. Much above 10 %: it switches too often.",
                "percentunit",
            ),
            Query(
                ratio(_kind("discarded", ("model",)), _kind("completion", ("model",))), "{{model}}"
            ),
            most=1,
        ),
        graph(
            Said(
                "Fallbacks by kind",
                "plain: nothing was guessed or predicted; whole: one model answered alone; repair:"
                " what was predicted was computed after all.",
                "One kind that never stops: a preset asks for what its engines do not have.",
                "reqps",
            ),
            Query(rate(FALLBACKS, by=("preset", "kind")), "{{preset}} {{kind}}"),
            stack="normal",
        ),
    ]


def _speculation() -> list[dashboard.Panel]:
    by = ("model",)
    return [
        graph(
            Said(
                "Acceptance by model",
                "Share of guessed tokens that the model kept.",
                "It falls when prompts change and the draft does not know them.",
                "percentunit",
            ),
            Query(ratio(_kind("accepted", by), _kind("drafted", by)), "{{model}}"),
            most=1,
        ),
        graph(
            Said(
                "Acceptance length by model",
                "Tokens written for each pass of the model: 1 and the guesses it kept.",
                "Below the draft's cost in passes it is slower than without.",
                "none",
            ),
            Query(f"1 + {ratio(_kind('accepted', by), rate(PASSES, by=by))}", "{{model}}"),
        ),
        graph(
            Said(
                "Draft length",
                "Guesses a pass: how far the rule for draft lengths lets the draft go.",
                "Far above the accepted length: too many guesses are in vain.",
                "none",
            ),
            Query(quantile(0.5, DRAFTS), "p50"),
            Query(quantile(0.95, DRAFTS), "p95"),
            Query(mean(DRAFTS), "mean"),
            Query(mean(ACCEPTED), "accepted, mean"),
        ),
        heat(
            Said(
                "Guesses kept a pass",
                "How many guesses of each pass stood.",
                "Much at 0: most passes gain nothing.",
                "none",
                HALF,
            ),
            _buckets(ACCEPTED),
        ),
        graph(
            Said(
                "Guesses",
                "Tokens a second: drafted, of these accepted; wasted: paid for and not kept.",
                "`wasted` near `drafted`: turn it off for this preset, or train the draft.",
                "count:tok/s",
                HALF,
            ),
            *(Query(_kind(kind), kind) for kind in ("drafted", "accepted", "wasted")),
        ),
        graph(
            Said(
                "Output from guesses",
                "Share of written tokens that were guesses of a draft.",
                "It says how much of the writing is sped up at all.",
                "percentunit",
                HALF,
            ),
            Query(ratio(_kind("accepted", by), _kind("completion", by)), "{{model}}"),
            most=1,
        ),
        graph(
            Said(
                "Passes / s",
                "Passes of a model that may have read guesses.",
                "Compare with visible tokens: fewer passes for the same tokens is the gain.",
                "cps",
                HALF,
            ),
            Query(rate(PASSES, by=by), "{{model}}"),
        ),
    ]


def _prediction() -> list[dashboard.Panel]:
    by = ("model",)
    return [
        graph(
            Said(
                "Predicted prompts",
                "Answers that began on predicted keys and values, by model.",
                "None, in a preset that asks for it: prompts are shorter than its least length.",
                "reqps",
            ),
            Query(rate(PROMPTS, by=by), "{{model}}"),
        ),
        graph(
            Said(
                "Share of prompts predicted",
                "Prompt tokens whose keys and values were predicted, of all that the model read.",
                "It bounds what can be saved.",
                "percentunit",
            ),
            Query(ratio(_kind("predicted", by), _kind("prompt", by)), "{{model}}"),
            most=1,
        ),
        graph(
            Said(
                "TTFT saved",
                "Estimated, for each prompt that was predicted.",
                "p50 near 0: prompts are too short for it to gain.",
                "s",
            ),
            *spread(SAVED),
        ),
        graph(
            Said(
                "TTFT by policy",
                "Median time to first token of each policy, as clients saw it.",
                "`kv_prediction` should lie below `direct` on prompts of the same length.",
                "s",
                HALF,
            ),
            Query(quantile(0.5, TTFT, by=("policy",)), "{{policy}}"),
        ),
        heat(
            Said(
                "TTFT saved, all of it",
                "How the savings are spread.",
                "Two bands: two kinds of prompts, of which one may not be worth it.",
                "s",
                HALF,
            ),
            _buckets(SAVED),
        ),
    ]
