"""The order of measurements: rounds in turn, so that other load on the machine affects all systems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.systems import ON_DEMAND, SYSTEMS
from bench.targets import fairness, idle, pages, requests, runs, soak, statements, streaming
from bench.targets.base import Target

TARGETS = {
    target.name: target
    for module in (streaming, runs, pages, requests, idle, fairness, statements, soak)
    for target in module.TARGETS
}


# The order in which streams of so many users are measured for report.ratio: peers in turn.
COMPARED = ("parley-two-webs", "parley-api", "parley", "proxy", "chainlit")
COMPARED_USERS = 200


@dataclass(frozen=True)
class Step:
    """One start of one system, and its measurements: targets with numbers of users."""

    system: str
    measurements: tuple[tuple[Target, int], ...]

    @property
    def users(self) -> int:
        """The number of users that the system must have."""
        # Idle sockets share users: a thousand of them are a few tabs each.
        return min(500, max(users for _, users in self.measurements))


def steps(
    names: Sequence[str], systems: Sequence[str] = (), users: Sequence[int] = ()
) -> Iterator[Step]:
    """The steps of one round: all targets of a system that share a setup share its start.

    The measurements of the ratios come first, on one system directly after the other: the speed of a
    shared machine changes within minutes. Without names all targets that are measured by default;
    `systems` and `users` replace a target's own.
    """
    wanted = [
        target
        for name, target in TARGETS.items()
        if name in names or (not names and target.by_default)
    ]
    asked = [name for name in SYSTEMS if (name in systems if systems else name not in ON_DEMAND)]

    def measurements_of(target: Target, system: str) -> list[tuple[Target, int]]:
        sizes = target.sizes.get(system, ())
        return [(target, size) for size in (users if users and sizes else sizes)]

    compared = [
        (system, (target, size))
        for system in sorted(asked, key=COMPARED.index)
        for target in wanted
        for _, size in measurements_of(target, system)
        if (target.name, size) == ("stream", COMPARED_USERS)
    ]
    for system, measurement in compared:
        yield Step(system, (measurement,))
    for system in asked:
        groups: defaultdict[str, list[tuple[Target, int]]] = defaultdict(list)
        for target in wanted:
            groups[str(target.setup)] += [
                one for one in measurements_of(target, system) if (system, one) not in compared
            ]
        for group in filter(None, groups.values()):
            yield Step(system, tuple(group))
