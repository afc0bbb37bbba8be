"""Tables that say at a glance how each model and each preset did."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from docker.grafana.boards import DURATION, ITL, REQUESTS, TTFT, VISIBLE
from docker.grafana.panels import HALF, WIDE, Column, Said, rising, table
from docker.grafana.queries import RANGE, grown, quantile, rate, ratio, series, share

FAILED = 'status=~"5.."'
ERRORS = rising(0.001, 0.01)
ONLY = "/d/farthing-overview?${datasource:queryparam}&${__url_time_range}"


def models() -> dashboard.Panel:
    by = ("model",)
    return table(
        Said(
            "Models",
            "Each model over the time shown. Requests, latency and errors are of those that asked"
            " for it (or for a preset whose best model it is), tokens and cost are its own work."
            " Click on a model to see it alone.",
            "A model without requests still works for presets; one without tokens does nothing.",
            "short",
            WIDE,
        ),
        {"model": "Model"},
        Column("Req/s", "reqps", rate(REQUESTS, by=by, window=RANGE)),
        Column("Visible tok/s", "count:tok/s", rate(VISIBLE, by=by, window=RANGE)),
        Column("TTFT p95", "s", quantile(0.95, TTFT, by, RANGE)),
        Column("ITL p95", "s", quantile(0.95, ITL, by, RANGE)),
        Column("Request p95", "s", quantile(0.95, DURATION, by, RANGE)),
        Column("Errors", "percentunit", share(REQUESTS, FAILED, by, RANGE), ERRORS),
        Column(
            "USD an hour",
            "currencyUSD",
            f"3600 * {rate('farthing_cost_usd_total', by=by, window=RANGE)}",
        ),
        link=f"{ONLY}&${{preset:queryparam}}&var-model=${{__value.raw}}",
    )


def presets() -> dashboard.Panel:
    by = ("preset", "policy")
    visible = grown(VISIBLE, by=by)
    return table(
        Said(
            "Presets and policies",
            "Each preset with its policy over the time shown; `none`: a model was named. Click on a"
            " preset to see it alone.",
            "A preset that costs as much as its best model alone, and is no faster, earns nothing.",
            "short",
            WIDE,
        ),
        {"preset": "Preset", "policy": "Policy"},
        Column("Answers/s", "reqps", rate("farthing_answers_total", by=by, window=RANGE)),
        Column("Visible tok/s", "count:tok/s", rate(VISIBLE, by=by, window=RANGE)),
        Column("TTFT p95", "s", quantile(0.95, TTFT, by, RANGE)),
        Column("ITL p95", "s", quantile(0.95, ITL, by, RANGE)),
        Column(
            "USD / M visible",
            "currencyUSD",
            ratio(f"1e6 * {grown('farthing_cost_usd_total', by=by)}", visible),
        ),
        Column(
            "Approximate",
            "percentunit",
            share("farthing_answers_total", 'fidelity="approximate"', by, RANGE),
        ),
        link=f"{ONLY}&${{model:queryparam}}&var-preset=${{__value.raw}}",
    )


def builds() -> dashboard.Panel:
    return table(
        Said(
            "Versions",
            "How many gateways run which version, with which table of prices.",
            "Two price tables at once: the same request costs differently here and there.",
            "none",
            HALF,
        ),
        {"version": "Version", "prices": "Prices"},
        Column("Gateways", "none", f"count by (version, prices) ({series('farthing_build_info')})"),
    )
