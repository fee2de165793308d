"""The cost of open sockets without traffic."""

from __future__ import annotations

import asyncio

from bench import load, processes
from bench.load import Round
from bench.targets.base import Place, Target

WAIT = 2.0  # seconds after the last one was opened


async def idle(place: Place) -> Round:
    """Measure the memory of each socket and the CPU of all; some tabs belong to the same user."""
    roles = place.system.roles()
    before = processes.memory(roles)
    users = [number % place.system.users for number in range(place.users)]
    clients = await load.connect(place.system, users)
    await asyncio.sleep(WAIT)
    used = processes.cpu(roles)
    await asyncio.sleep(place.seconds)
    after = processes.memory(roles)
    used = {role: seconds - used[role] for role, seconds in processes.cpu(roles).items()}
    # They must still be open, and answer.
    found = load.judge(await load.ask(clients[: place.system.users][:20], 5))
    await load.close(clients)
    found.figures |= {
        "kb_per_socket": 1000 * (after["web"] - before["web"]) / place.users,
        **{f"rss_mb.{role}": megabytes for role, megabytes in after.items()},
        **{f"cpu_percent.{role}": 100 * seconds / place.seconds for role, seconds in used.items()},
    }
    return found


TARGETS = (Target("idle", idle, {"parley": (1000,)}),)
