"""Database statements per message and per token, counted in the log of Postgres."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path

from bench import load
from bench.load import Round
from bench.targets.base import Place, Target

MESSAGES = 5  # of each user, in one conversation
SHORT, LONG = 20, 420  # tokens
RATE = 200.0  # so that a long reply takes hardly longer than a short one
SETTLE = 2.0  # seconds until the work after a message is done, and Postgres has logged it

# The log line's prefix is the application's name, which tells the processes apart.
ROLES = ("web", "worker")
SETUP = {"postgres_settings": {"log_statement": "all", "log_line_prefix": "%a|"}}

# A statement may begin with an empty line; an empty statement does not count.
LINE = re.compile(
    r"^(\w*)\|LOG:  (?:statement|execute [^:\n]*): (?:\n\t)?[ \t]*(\S.*)$", re.MULTILINE
)
# Transaction control is not counted, nor is SET, which configures a new connection once.
CONTROL = re.compile(r"(?i)(BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|SET|START TRANSACTION)\b")


async def statements(place: Place) -> Round:
    """Count statements for messages with short replies, and for as many with long ones."""
    log = place.system.folder / "logs" / "postgres.log"
    clients = await load.connect(place.system, range(place.users))
    replies: list[load.Reply] = []
    counts: list[Counter[str]] = []
    for tokens in (SHORT, LONG):
        await asyncio.sleep(SETTLE)
        start = log.stat().st_size
        for _ in range(MESSAGES):
            replies += await load.ask(clients, tokens, rate=RATE)
        await asyncio.sleep(SETTLE)
        counts.append(count(log, start))
    await load.close(clients)
    found = load.judge(replies)
    messages = MESSAGES * place.users
    short, long = (sum(one.values()) for one in counts)
    found.figures |= {
        "statements_per_message": short / messages,
        **{f"statements_per_message.{role}": counts[0][role] / messages for role in ROLES},
        "statements_per_token": max(0, long - short) / messages / (LONG - SHORT),
    }
    if not short:
        found.failures.append("Postgres logged no statements")
    return found


def count(log: Path, start: int) -> Counter[str]:
    """The statements of each role in a log of Postgres from this byte on, without CONTROL."""
    found: Counter[str] = Counter()
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    for match in LINE.finditer(text):
        if match[1] in ROLES and not CONTROL.match(match[2]):
            found[match[1]] += 1
    return found


TARGETS = (Target("statements", statements, {"parley": (10,), "parley-api": (10,)}, setup=SETUP),)
