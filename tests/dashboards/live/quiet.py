"""What the load does not bring about, and why: of each of these it is seen that it did not."""

from __future__ import annotations

from collections.abc import Mapping

HONEST = "budgets are kept"
LATE = "it asks for twenty late answers, and so many come of a busy machine alone"
METRICS: Mapping[str, str] = {"farthing_budget_overshoot_usd_total": HONEST}
"""Metrics that stay at 0."""
PANELS: Mapping[str, str] = {"Overshoot": HONEST, "Overshoot by preset": HONEST}
"""Panels that show 0."""
ALERTS: Mapping[str, str] = {
    "FarthingOvershoot": HONEST,
    "FarthingLedgerLag": "the ledger comes back within its minute",
    "FarthingRefusals": "it compares with the time before the last ten minutes, and there was none",
    "FarthingQueueGrows": "it asks for ten minutes without one moment in which nobody waits",
    "FarthingPlanDrift": "it asks for more than twenty answers of a way of auto's",
}
"""Alerts that never are pending."""
PERHAPS: Mapping[str, str] = {
    "FarthingOverhead": "it is up to what else the machine does",
    "FarthingFirstTokenBurnFast": LATE,
    "FarthingFirstTokenBurnSlow": LATE,
}
"""Alerts of which nothing can be said."""
