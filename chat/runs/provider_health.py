"""The health of the providers over the last hour, from the rows of the replies that have ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from django.db import connection

MOST = 20_000  # newest replies that are read


@dataclass(slots=True)
class Health:
    """The replies of one provider in the last hour; those of a fallback count for its provider.

    `failures` are numbers by Run.error_cause. `median` and `slow` (95th percentile) are seconds from
    the start of a reply to its first token, None without one.
    """

    replies: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    median: float | None = None
    slow: float | None = None
    last_success: datetime | None = None
    last_failure: datetime | None = None
    last_cause: str = ""

    @property
    def summary(self) -> str:
        """The health in one line."""
        words = [f"{self.replies:,} {'reply' if self.replies == 1 else 'replies'}"]
        words += [f"{number:,} failed: {cause}" for cause, number in self.failures.items()]
        if self.median is not None and self.slow is not None:
            words.append(f"first token {self.median:.1f} s, 95 % within {self.slow:.1f} s")
        return "; ".join(words)


# One range of the index run_ended, for all providers.
LAST_HOUR = """
WITH recent AS (
    SELECT provider_id, status, error_cause, ended_at,
        EXTRACT(EPOCH FROM first_token_at - started_at) AS waited
    FROM chat_run WHERE ended_at > now() - interval '1 hour'
    ORDER BY ended_at DESC LIMIT %s
)
SELECT provider_id, GROUPING(error_cause), error_cause, count(*), max(ended_at),
    max(ended_at) FILTER (WHERE status = 'done'),
    percentile_cont(0.5) WITHIN GROUP (ORDER BY waited),
    percentile_cont(0.95) WITHIN GROUP (ORDER BY waited)
FROM recent WHERE provider_id IS NOT NULL
GROUP BY GROUPING SETS ((provider_id), (provider_id, error_cause))
ORDER BY 2 DESC, 4 DESC
"""


def last_hour() -> dict[int, Health]:
    """Return the health of the providers that had replies, by their keys, with one statement."""
    found: dict[int, Health] = {}
    with connection.cursor() as cursor:
        cursor.execute(LAST_HOUR, [MOST])
        for pk, is_total, cause, number, last, success, median, slow in cursor.fetchall():
            health = found.setdefault(pk, Health())
            if is_total:
                health.replies, health.last_success = number, success
                health.median, health.slow = median, slow
            elif cause:
                health.failures[cause] = number
                if health.last_failure is None or last > health.last_failure:
                    health.last_failure, health.last_cause = last, cause
    return found
