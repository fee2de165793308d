"""What a bench found, as it is kept in JSON, and how two of them compare."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench import figures

FOLDER = Path(__file__).resolve().parent / "results"

# Figures of which more is worse; of the others (rates, window lengths) a change says nothing.
LOWER_IS_BETTER = (
    "cpu_", "delay_ms.p", "ttft_ms.p", "resume_ms.p", "stopped_ms.p", "provider_left_ms.p",
    "page_ms.p", "new_ms.p", "list_ms.p", "run_ms.p", "active_run_ms.p", "create_ms.p", "sign_up_ms.p",
    "sign_in_ms.p", "growth_ratio.", "rss_mb.", "kb_per_socket", "statements_per_", "beside_ms.p", "wait_ratio",
    "loop_blocks.", "seconds",
)  # fmt: skip
# None of these may become more than it was, however much it varied.
FAULTS = ("lost", "doubled", "out_of_order", "garbled", "failed")
# What the load itself and the provider cost is no property of what is measured.
NOT_OURS = (".load", ".provider")

LEAST_NOISE = 0.05  # of a figure: a smaller change is never told from noise


class Measurement(msgspec.Struct):
    """One target on one system with so many users: the figures of each round, in order."""

    target: str
    system: str
    users: int
    rounds: list[dict[str, float]] = []
    failures: list[str] = []
    # One for each round: whether everything in it was as it must be.
    clean: list[bool] = []

    @property
    def name(self) -> str:
        return f"{self.target} {self.system} {self.users}"

    @property
    def medians(self) -> dict[str, float]:
        """Of the clean rounds; empty when there is none."""
        return figures.medians(self.clean_rounds)

    @property
    def clean_rounds(self) -> list[dict[str, float]]:
        return [one for one, is_clean in zip(self.rounds, self.clean, strict=True) if is_clean]


class Results(msgspec.Struct):
    """A whole bench."""

    machine: dict[str, str] = {}
    rounds: int = 0
    minutes: float = 0.0
    measurements: list[Measurement] = []
    absent: dict[str, str] = {}  # systems that could not be measured, and why

    def get(self, target: str, system: str, users: int) -> Measurement:
        """The measurement of these; a new one when there is none."""
        for found in self.measurements:
            if (found.target, found.system, found.users) == (target, system, users):
                return found
        made = Measurement(target, system, users)
        self.measurements.append(made)
        return made

    @property
    def failures(self) -> list[str]:
        return [f"{one.name}: {failure}" for one in self.measurements for failure in one.failures]


def save(results: Results, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def load(path: Path) -> Results:
    """Raises OSError, or msgspec.DecodeError for a file that is no result."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def regressions(old: Results, new: Results) -> list[str]:
    """What became worse by more than the noise between the rounds of both; a line for each.

    Raises ValueError when nothing can be compared, or when one of them has too few rounds to know
    its own noise: such a comparison could not fail.
    """
    lines: list[str] = []
    compared = 0
    before = {one.name: one for one in old.measurements}
    for one in new.measurements:
        other = before.get(one.name)
        if other is None:
            continue
        if min(len(one.rounds), len(other.rounds)) < 2:
            raise ValueError(f"{one.name} has one round, which does not tell its noise")
        for figure in one.rounds[0]:
            was = [each[figure] for each in other.rounds if figure in each]
            now = [each[figure] for each in one.rounds if figure in each]
            if len(was) < 2 or len(now) < 2 or not is_judged(figure):
                continue
            compared += 1
            if is_worse(figure, was, now):
                lines.append(
                    f"{one.name}: {figure} was {figures.median(was):.2f}"
                    f" ({min(was):.2f} to {max(was):.2f})"
                    f" and is {figures.median(now):.2f} ({min(now):.2f} to {max(now):.2f})"
                )
    if not compared:
        raise ValueError("the two have no figure in common")
    return lines


def is_judged(figure: str) -> bool:
    return figure in FAULTS or (
        figure.startswith(LOWER_IS_BETTER) and not figure.endswith(NOT_OURS)
    )


def is_worse(figure: str, was: list[float], now: list[float]) -> bool:
    """Whether the median rose by more than the rounds of either differ among themselves."""
    if figure in FAULTS:
        return max(now) > max(was)
    noise = max(max(was) - min(was), max(now) - min(now), LEAST_NOISE * figures.median(was))
    return figures.median(now) - figures.median(was) > noise
