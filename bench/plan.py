"""What is measured in which order: rounds in turn, so that whatever the machine does meets everybody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.systems import ON_DEMAND, SYSTEMS
from bench.targets import fairness, idle, pages, runs, soak, statements, streaming
from bench.targets.base import Target

TARGETS = {
    target.name: target
    for module in (streaming, runs, pages, idle, fairness, statements, soak)
    for target in module.TARGETS
}


@dataclass(frozen=True)
class Step:
    """One start of one system, and what is measured on it: targets with numbers of users."""

    system: str
    measurements: tuple[tuple[Target, int], ...]

    @property
    def users(self) -> int:
        """How many users the system must know."""
        # Idle sockets share users: a thousand of them are a few tabs each.
        return min(500, max(users for _, users in self.measurements))


def steps(
    names: Sequence[str], systems: Sequence[str] = (), users: Sequence[int] = ()
) -> Iterator[Step]:
    """The steps of one round: all targets of a system that share a setup share its start.

    Without names all targets that are measured by default; `systems` and `users` replace those that
    a target is for by itself.
    """
    wanted = [
        target
        for name, target in TARGETS.items()
        if name in names or (not names and target.by_default)
    ]
    for system in SYSTEMS:
        if system not in systems if systems else system in ON_DEMAND:
            continue
        groups: list[list[tuple[Target, int]]] = []
        for target in wanted:
            sizes = target.sizes.get(system)
            if sizes is None:
                continue
            measurements = [(target, size) for size in (users or sizes)]
            for group in groups:
                if group[0][0].setup == target.setup:
                    group += measurements
                    break
            else:
                groups.append(measurements)
        for group in groups:
            yield Step(system, tuple(group))
