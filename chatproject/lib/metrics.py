"""Metrics of this process, in the default registry of prometheus_client."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

MONEY_RETRIES = Counter(
    "parley_money_retries_total",
    "Money transactions that were retried after a lock error.",
    ["sqlstate"],
)
MONEY_BUSY = Counter(
    "parley_money_busy_total", "Money transactions that failed after all their tries."
)
MONEY_SHORTFALL = Counter(
    "parley_money_shortfall_microcredits_total",
    "Cost of runs that could not be charged.",
)
LOOP_LAG = Histogram(
    "parley_loop_lag_seconds",
    "Lag of the event loop's beat.",
    ["role"],
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
LOOP_BLOCKS = Counter("parley_loop_blocks_total", "Blocks of the event loop.", ["role"])
SLOW_RUNS = Counter("parley_slow_runs_total", "Runs that came close to their time limit.")
DELIVERY = Histogram(
    "parley_delivery_seconds",
    "Time from the worker's tick to the follower's socket, for a sample of the events.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
RATE_LIMITED = Counter(
    "parley_rate_limited_total", "Requests, messages and frames refused by a limit.", ["limit"]
)
RATE_LIMITS_UNCOUNTED = Counter(
    "parley_rate_limits_uncounted_total",
    "Uses of a limit that were not counted, as Redis was unreachable.",
    ["limit", "outcome"],
)
