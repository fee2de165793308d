"""Results for readers: lines in the terminal, the summary, and the tables of docs/performance.md.

python -m bench.report            writes the tables again from bench/results/
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import results
from bench.load import COUNTED
from bench.results import Measurement, Results, Row, Summary
from bench.systems import SYSTEMS

SUMMARY = results.FOLDER / "summary.json"
SOAK = results.FOLDER / "soak.json"  # measured in a run of its own
PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN = "<!-- bench: the text up to the next such line is written by python -m bench.report -->"
END = "<!-- bench: end -->"

MIN_ROUNDS = 3  # of a median among the headline figures

OURS = "parley"
CPU = "cpu_us_per_token"

# --- The summary ------------------------------------------------------------------------------


def summary(found: Results) -> Summary:
    """The results as they are stored."""
    return Summary(
        figures=headline_figures(found),
        machine=found.machine,
        rounds=found.rounds,
        minutes=found.minutes,
        absent=found.absent,
        failures=found.failures,
        measurements=[one.row() for one in found.measurements if one.rounds],
    )


def headline_figures(found: Results) -> dict[str, float]:
    """The figures of issue and release notes: medians over the clean rounds of a measurement.

    A figure with fewer than MIN_ROUNDS clean rounds is left out. Ratios are Parley's figure divided by
    the peer's, round by round. For `lost`, `doubled` and `out_of_order` it is the worst round of all
    of Parley's measurements together, which no median exceeds.
    """
    at_10, at_200, at_500 = (found.get("stream", OURS, users) for users in (10, 200, 500))
    first = found.get("ttft", OURS, 10)
    statements = found.get("statements", OURS, 10)
    wanted: dict[str, float | None] = {
        "cpu_ratio_proxy": ratio(found, "proxy"),
        "cpu_ratio_chainlit": ratio(found, "chainlit"),
        "ttft_p50_ms_10": median(first, "ttft_ms.p50"),
        "ttft_p95_ms_10": median(first, "ttft_ms.p95"),
        "delay_p50_ms_10": median(at_10, "delay_ms.p50"),
        "delay_p99_ms_200": median(at_200, "delay_ms.p99"),
        "delay_p99_ms_500": median(at_500, "delay_ms.p99"),
        **{name: worst(found, name) for name in ("lost", "doubled", "out_of_order")},
        "db_statements_per_message": median(statements, "statements_per_message"),
        "db_statements_per_token": median(statements, "statements_per_token"),
        "worker_rss_mb_500": median(at_500, "rss_mb.worker"),
        "resume_ms_4000": median(found.get("resume", OURS, 1), "resume_ms.p50"),
        "loop_blocks_over_100ms_200": median(at_200, "loop_blocks.web", "loop_blocks.worker"),
    }
    return {name: round(value, 4) for name, value in wanted.items() if value is not None}


def median(measurement: Measurement, *names: str) -> float | None:
    """The median over the clean rounds of a figure, or of the sum of several."""
    sums = [
        sum(one[name] for name in names)
        for one in measurement.clean_rounds
        if all(name in one for name in names)
    ]
    return statistics.median(sums) if len(sums) >= MIN_ROUNDS else None


def ratio(found: Results, peer: str) -> float | None:
    """Parley's CPU per token at 200 users, divided by the peer's in the same round."""
    ours, theirs = (found.get("stream", system, 200) for system in (OURS, peer))
    ratios = [
        mine[CPU] / other[CPU]
        for mine, is_clean, other, other_is_clean in zip(
            ours.rounds, ours.clean, theirs.rounds, theirs.clean, strict=False
        )
        if is_clean and other_is_clean and CPU in mine and CPU in other
    ]
    return statistics.median(ratios) if len(ratios) >= MIN_ROUNDS else None


def worst(found: Results, fault: str) -> float | None:
    """The most tokens with this fault in one round of all of Parley's measurements, clean or not."""
    ours = [
        one.rounds
        for one in found.measurements
        if one.system.startswith(OURS) and any(fault in each for each in one.rounds)
    ]
    longest = max(map(len, ours), default=0)
    if longest < MIN_ROUNDS:
        return None
    return max(
        sum(rounds[n].get(fault, 0) for rounds in ours if n < len(rounds)) for n in range(longest)
    )


# --- The terminal -----------------------------------------------------------------------------


def lines(row: Row) -> list[str]:
    """A line for each stored figure: the median, and the range over the rounds."""
    found = [f"{row.name}, {row.rounds} rounds"]
    for name, value in row.figures.items():
        span = f"   {value.min:.2f} to {value.max:.2f}" if value.min < value.max else ""
        found.append(f"  {name:34}{value.median:12.2f}{span}")
    return found


HEADLINE = (
    "cpu_us_per_token", "delay_ms.p50", "delay_ms.p99", "ttft_ms.p50", "ttft_ms.p95", "resume_ms.p50",
    "stopped_ms.p50", "page_ms.p50", "page_ms.p95", "create_ms.p50", "kb_per_socket", "wait_ratio",
    "statements_per_message", "statements_per_token", "lost", "doubled", "out_of_order", "failed",
)  # fmt: skip


def headline(figures: Mapping[str, float]) -> str:
    """The most telling figures of a round, in one line."""
    return ", ".join(f"{name} {figures[name]:.4g}" for name in HEADLINE if name in figures)


# --- The page ---------------------------------------------------------------------------------

Cell = Callable[[Mapping[str, float]], str]
Column = tuple[str, Cell]


def cell(*names: str, digits: int = 0) -> Cell:
    """The text of a cell: these figures, with slashes between them and - for a missing one."""
    return lambda figures: " / ".join(
        f"{figures[name]:,.{digits}f}" if name in figures else "-" for name in names
    )


FAULTS: Column = ("lost / doubled / out of order", cell("lost", "doubled", "out_of_order"))
REQUESTS = {
    "new chat": "new", "list of chats": "list", "a run": "run", "active run": "active_run",
    "first message": "create", "sign up": "sign_up", "sign in": "sign_in",
}  # fmt: skip
SOAKED = ("web", "worker", "clock")

# Title, target, and columns.
SECTIONS: tuple[tuple[str, str, tuple[Column, ...]], ...] = (
    ("Streams at 20 tokens a second", "stream", (
        ("CPU per token, µs", cell("cpu_us_per_token")),
        *((role, cell(f"cpu_us_per_token.{role}")) for role in (*COUNTED, "clock")),
        ("CPU per message, ms", cell("cpu_ms_per_message")),
        ("delay p50 / p99, ms", cell("delay_ms.p50", "delay_ms.p99")),
        ("tokens/s", cell("tokens_per_s")),
        FAULTS,
    )),
    ("Memory and event loops under them", "stream", (
        *((f"{role}, MB", cell(f"rss_mb.{role}")) for role in COUNTED),
        ("blocks over 100 ms, web / worker", cell("loop_blocks.web", "loop_blocks.worker")),
        ("longest, ms", cell("loop_block_ms.web", "loop_block_ms.worker")),
    )),
    ("Time to the first token", "ttft", (
        ("first token p50 / p95, ms", cell("ttft_ms.p50", "ttft_ms.p95", digits=1)),
        ("p99 / max, ms", cell("ttft_ms.p99", "ttft_ms.max", digits=1)),
        FAULTS,
    )),
    ("All at once", "burst", (
        ("first token p50 / p95 / max, ms", cell("ttft_ms.p50", "ttft_ms.p95", "ttft_ms.max")),
        ("all answered in, s", cell("seconds", digits=1)),
        ("messages/s", cell("messages_per_s", digits=1)),
        FAULTS,
    )),
    ("Coming back to a running reply", "resume", (
        ("4,000 tokens p50 / max, ms", cell("resume_ms.p50", "resume_ms.max")),
    )),
    ("Stopping", "stop", (
        ("`run.stopped` p50 / max, ms", cell("stopped_ms.p50", "stopped_ms.max")),
        ("provider left p50 / max, ms", cell("provider_left_ms.p50", "provider_left_ms.max")),
    )),
    ("The page of 200 messages, by readers at once", "pages", (
        ("page p50 / p95 / p99, ms", cell("page_ms.p50", "page_ms.p95", "page_ms.p99")),
        ("requests/s", cell("requests_per_s")),
    )),
    ("Other requests, p50 / p95, by readers at once", "requests", tuple(
        (f"{words}, ms", cell(f"{name}_ms.p50", f"{name}_ms.p95"))
        for words, name in REQUESTS.items()
    )),
    ("Open sockets", "idle", (
        ("kB per socket", cell("kb_per_socket")),
        ("web, MB", cell("rss_mb.web")),
        ("web CPU, %", cell("cpu_percent.web", digits=1)),
        ("worker CPU, %", cell("cpu_percent.worker", digits=1)),
    )),
    ("Fairness", "fairness", (
        ("alone p50 / max, ms", cell("alone_ms.p50", "alone_ms.max")),
        ("beside 100 requests p50 / max, ms", cell("beside_ms.p50", "beside_ms.max")),
        ("ratio of p50", cell("wait_ratio", digits=2)),
    )),
    ("Database statements", "statements", (
        ("per message", cell("statements_per_message", digits=1)),
        ("web", cell("statements_per_message.web", digits=1)),
        ("worker", cell("statements_per_message.worker", digits=1)),
        ("per token", cell("statements_per_token", digits=4)),
    )),
    ("Soak, in a run of its own", "soak", (
        ("messages", cell("messages")),
        *((f"{role}, MB", cell(f"rss_mb.{role}", digits=1)) for role in SOAKED),
        *((f"{role}, last by second quarter", cell(f"growth_ratio.{role}", digits=3)) for role in SOAKED),
        FAULTS,
    )),
)  # fmt: skip


def markdown(found: Summary, soak: Summary | None = None) -> str:
    """The tables: medians over the clean rounds of each measurement."""
    measurements = [*found.measurements, *(soak.measurements if soak else ())]
    machine = ", ".join(f"{name} {value}" for name, value in found.machine.items())
    parts = [
        f"Measured on {machine}; {found.rounds} rounds in turn, {found.minutes:.0f} minutes. Each"
        " figure is the median of the rounds.",
        table(["figure", "median"], [[f"`{k}`", f"{v:g}"] for k, v in found.figures.items()]),
    ]
    for title, target, columns in SECTIONS:
        rows = [
            [one.system, f"{one.users:,}", *(show(one.medians) for _, show in columns)]
            for one in sorted(measurements, key=order)
            if one.target == target
        ]
        if rows:
            heads = ["system", "users", *(name for name, _ in columns)]
            parts += [f"### {title}", table(heads, rows)]
    for name, reason in found.absent.items():
        parts.append(f"Not measured: {name}. {reason}")
    if found.failures:
        parts.append(f"{len(found.failures)} failures; the first: {found.failures[0]}")
    return "\n\n".join(parts)


def order(one: Row) -> tuple[int, int]:
    """The order of measurements in a table: by system, then by users."""
    names = [*SYSTEMS]
    return names.index(one.system) if one.system in names else len(names), one.users


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    out = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*out, *(f"| {' | '.join(row)} |" for row in rows)])


def in_page(page: str, tables: str) -> str:
    """The page with these tables between its two marks. Raises ValueError when it has none."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(page):
        raise ValueError("the page has lost the marks around its tables")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{tables}\n\n{END}", page)


def stored_tables() -> str:
    """The tables of the stored results."""
    soak = results.load(SOAK) if SOAK.exists() else None
    return markdown(results.load(SUMMARY), soak)


def write() -> None:
    """Write the tables of the stored results into the page."""
    PAGE.write_text(in_page(PAGE.read_text(), stored_tables()))


if __name__ == "__main__":
    write()
