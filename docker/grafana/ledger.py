"""The ledger and the gateway's own processes over time."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from docker.grafana.panels import Said, graph
from docker.grafana.queries import NOW, SERVED, Query, rate, ratio, series, spread, total

WRITES = "farthing_ledger_write_seconds"


def ledger() -> list[dashboard.Panel]:
    here = ("instance",)

    def gauge(name: str, how: str = "sum") -> Query:
        return Query(total(series(name), here, how), "{{instance}}")

    return [
        graph(
            Said(
                "Reservations",
                "Money held for answers under way: how many.",
                "It grows while requests do not: answers never end, or are not settled.",
                "none",
            ),
            gauge("farthing_ledger_reservations"),
        ),
        graph(
            Said(
                "Owed",
                "Settlements of answers that are over and not in the ledger yet.",
                "It grows: the database takes less than is served.",
                "none",
            ),
            gauge("farthing_ledger_owed"),
        ),
        graph(
            Said(
                "Lag",
                "Age of the oldest settlement that is owed.",
                "It grows second by second: nothing is written at all.",
                "s",
            ),
            gauge("farthing_ledger_lag_seconds", "max"),
        ),
        graph(
            Said(
                "Away",
                "1 while a gateway cannot reach the ledger's database.",
                "Of one gateway: its network. Of all: the database.",
                "none",
            ),
            gauge("farthing_ledger_away", "max"),
            most=1,
        ),
        graph(
            Said(
                "Write time",
                "One transaction of the ledger.",
                "Above 0.1 s keys wait for their leases: look at the database's disk.",
                "s",
            ),
            *spread(WRITES),
        ),
        graph(
            Said(
                "Settled / s",
                "Settlements written to the ledger.",
                "It follows answers a second; below them for long, what is owed grows.",
                "cps",
            ),
            Query(rate("farthing_ledger_settled_total", by=here), "{{instance}}"),
        ),
    ]


def processes() -> list[dashboard.Panel]:
    here = ("instance",)
    ours = 'instance=~"$instance"'
    cpu = total(f"rate({series('process_cpu_seconds_total')}[{NOW}])", here)
    memory = total(series("process_resident_memory_bytes"), here)
    files = [total(series(f"process_{which}_fds"), here) for which in ("open", "max")]
    start = total(series("process_start_time_seconds"), here, "min")
    requests = total(f"rate(farthing_requests_total{{{SERVED}, {ours}}}[{NOW}])", here)
    shown = (
        ("Workers", "Processes that serve.", "A dip: one died and was replaced.", "none",
         total(series("farthing_workers"), here)),
        ("CPU", "Cores that all workers of a gateway use together.",
         "Near the number of workers: each is full, start more.", "none", cpu),
        ("CPU a request", "CPU time of the workers, embedded engines included, for each request.",
         "It grows with the same traffic: something costs more than it did.", "s",
         ratio(cpu, requests)),
        ("Memory", "Resident memory of all workers of a gateway together.",
         "It grows for days and never falls: report it.", "bytes", memory),
        ("Open files", "Sockets and files of all workers, of those they may have open.",
         "It grows while requests in flight do not: connections leak. Near 100 %: clients are"
         " turned away.", "percentunit", ratio(*files)),
        ("Up for", "Since the first of the workers started.",
         "It begins again by itself: the gateway restarts, see its log.", "s",
         f"time() - {start}"),
    )  # fmt: skip
    return [
        graph(Said(title, tells, worry, unit), Query(expr, "{{instance}}"))
        for title, tells, worry, unit, expr in shown
    ]
