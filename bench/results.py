"""Results of a bench: the figures of its rounds, the summary that is stored, and its comparison."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec

FOLDER = Path(__file__).resolve().parent / "results"

# Figures of which more is worse; for the others (rates, numbers of messages) neither is.
LOWER_IS_BETTER = (
    "cpu_", "delay_ms.p", "ttft_ms.p", "resume_ms.p", "stopped_ms.p", "provider_left_ms.p",
    "page_ms.p", "new_ms.p", "list_ms.p", "run_ms.p", "active_run_ms.p", "create_ms.p", "sign_up_ms.p",
    "sign_in_ms.p", "growth_ratio.", "rss_mb.", "kb_per_socket", "statements_per_", "beside_ms.p", "wait_ratio",
    "loop_blocks.", "seconds",
)  # fmt: skip
# None of these may exceed the baseline, however much it varies.
FAULTS = ("lost", "doubled", "out_of_order", "garbled", "failed")
# Shown, but not compared: the costs of the load and the provider are not the measured system's.
NOT_OURS = (".load", ".provider")
NOT_STORED = (".min", "window_s")  # neither compared nor shown

MIN_NOISE = 0.05  # of a figure: a smaller change always counts as noise
DIGITS = 6  # significant ones, of a stored figure


class Spread(msgspec.Struct, array_like=True, frozen=True):
    """A figure over the rounds."""

    min: float
    median: float
    max: float


class Measured(msgspec.Struct):
    """One target on one system with so many users."""

    target: str
    system: str
    users: int

    @property
    def name(self) -> str:
        return f"{self.target} {self.system} {self.users}"


class Row(Measured):
    """A measurement as it is stored: its number of clean rounds, and each figure over them.

    FAULTS spread over all rounds, clean or not.
    """

    rounds: int
    figures: dict[str, Spread]

    @property
    def medians(self) -> dict[str, float]:
        return {name: spread.median for name, spread in self.figures.items()}


class Measurement(Measured):
    """A measurement while the bench runs: the figures of each round, in order."""

    rounds: list[dict[str, float]] = []
    failures: list[str] = []
    clean: list[bool] = []  # for each round, whether nothing in it failed

    @property
    def clean_rounds(self) -> list[dict[str, float]]:
        return [one for one, is_clean in zip(self.rounds, self.clean, strict=True) if is_clean]

    def row(self) -> Row:
        """The row to store, with the figures that every clean round has."""
        clean = self.clean_rounds
        found = {}
        for name in dict.fromkeys(name for one in self.rounds for name in one):
            rounds = self.rounds if name in FAULTS else clean
            if rounds and not name.endswith(NOT_STORED) and all(name in one for one in rounds):
                found[name] = spread([one[name] for one in rounds])
        return Row(self.target, self.system, self.users, len(clean), found)


def spread(values: list[float]) -> Spread:
    """The figure in so many rounds. Raises ValueError without a round."""
    rounded = (min(values), statistics.median(values), max(values))
    return Spread(*(float(f"{value:.{DIGITS}g}") for value in rounded))


class Results(msgspec.Struct):
    """The measurements of a bench, while it runs."""

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


class Summary(msgspec.Struct):
    """A bench as it is stored; `figures` has the result of `report.headline_figures`."""

    figures: dict[str, float] = {}
    machine: dict[str, str] = {}
    rounds: int = 0
    minutes: float = 0.0
    absent: dict[str, str] = {}
    failures: list[str] = []
    measurements: list[Row] = []


def save(summary: Summary, path: Path) -> None:
    """Write a summary as JSON, with a line for each measurement."""
    path.parent.mkdir(exist_ok=True)
    head = msgspec.json.encode(msgspec.structs.replace(summary, measurements=[]))
    text = msgspec.json.format(head, indent=1).decode().removesuffix("[]\n}")
    rows = ",\n".join(f"  {msgspec.json.encode(row).decode()}" for row in summary.measurements)
    path.write_text(f"{text}[\n{rows}\n ]\n}}\n")


def load(path: Path) -> Summary:
    """Read a summary. Raises OSError, or msgspec.DecodeError for a file that is none."""
    return msgspec.json.decode(path.read_bytes(), type=Summary)


def regressions(old: Summary, new: Summary) -> list[str]:
    """Return a line for each figure that is worse by more than the noise between the rounds.

    Raises ValueError when nothing can be compared, or when one of them has too few rounds to measure
    its own noise: such a comparison could not fail.
    """
    lines: list[str] = []
    compared = 0
    before = {one.name: one for one in old.measurements}
    for one in new.measurements:
        other = before.get(one.name)
        if other is None:
            continue
        if min(one.rounds, other.rounds) < 2:
            raise ValueError(f"{one.name} has fewer than two clean rounds, which show no noise")
        for figure in filter(is_judged, one.figures.keys() & other.figures.keys()):
            was, now = other.figures[figure], one.figures[figure]
            compared += 1
            if is_worse(figure, was, now):
                lines.append(
                    f"{one.name}: {figure} was {was.median:.2f} ({was.min:.2f} to {was.max:.2f})"
                    f" and is {now.median:.2f} ({now.min:.2f} to {now.max:.2f})"
                )
    if not compared:
        raise ValueError("the two have no figure in common")
    return sorted(lines)


def is_judged(figure: str) -> bool:
    return figure in FAULTS or (
        figure.startswith(LOWER_IS_BETTER) and not figure.endswith(NOT_OURS)
    )


def is_worse(figure: str, was: Spread, now: Spread) -> bool:
    """Whether the median rose by more than either's rounds differ among themselves."""
    if figure in FAULTS:
        return now.max > was.max
    noise = max(was.max - was.min, now.max - now.min, MIN_NOISE * was.median)
    return now.median - was.median > noise
