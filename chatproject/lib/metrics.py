"""Counters of this process, in the default registry of prometheus_client."""

from __future__ import annotations

from prometheus_client import Counter

MONEY_RETRIES = Counter(
    "parley_money_retries_total",
    "Money transactions that were begun again after a lock error.",
    ["sqlstate"],
)
MONEY_BUSY = Counter(
    "parley_money_busy_total", "Money transactions that were given up after all their tries."
)
MONEY_SHORTFALL = Counter(
    "parley_money_shortfall_microcredits_total",
    "What runs cost beyond all that could be charged for them.",
)
