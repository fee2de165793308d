"""Plays rounds and prints a line for each; the exit code is 1 after the first problem."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from tests.chaos.rounds.faults import FAULTS, POOLER_FAULTS
from tests.chaos.rounds.stage import servers
from tests.support import pgbouncer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--conversations", type=int, default=100)
    in_turn = f"in turn instead of random ones, + joins several at once: {', '.join(FAULTS | POOLER_FAULTS)}"
    parser.add_argument("--faults", default="", help=in_turn)
    parser.add_argument("--first", type=int, default=1, help="begin with this round")
    parser.add_argument(
        "--bound", type=float, default=15.0, help="seconds until all must have ended"
    )
    parser.add_argument("--rolling", action="store_true", help="a deploy under load, no rounds")
    parser.add_argument("--pooler", action="store_true", help="behind PgBouncer, with its faults")
    parser.add_argument("--keep-going", action="store_true", help="go on after a problem")
    options = parser.parse_args()
    if options.pooler and pgbouncer.PROGRAM is None:
        parser.error("PgBouncer is not installed. On Debian: apt-get install pgbouncer")
    print(f"seed {options.seed}", flush=True)
    # In the rounds some replies end within this drain time, and others are handed over.
    drain = {"WORKER_DRAIN_SECONDS": "25" if options.rolling else "3"}
    with servers(drain, pooled=options.pooler) as stage:
        from tests.chaos.rounds import play, rolling

        main = rolling.restart_all if options.rolling else play.all_rounds
        if not asyncio.run(main(stage, options)):
            sys.exit(1)


if __name__ == "__main__":
    main()
