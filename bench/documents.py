"""Time and memory of reading a long WhatsApp export: the upload, and the job that reads and stores it.

    python -m bench documents [--messages 50000]

On a database and a Valkey of its own. The memory is the peak of this process, which does what a worker does, and
that of the largest process that it started: the sandboxed parser. `--most-seconds` and `--most-mb` fail above them.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence

from bench.database import own_database
from tests.support.chat_exports import large

CHUNK = 1_048_576


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench documents", description=__doc__)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--most-seconds", type=float)
    parser.add_argument("--most-mb", type=float)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PRIVATE_ROOT"] = folder
        with own_database():
            seconds, most_mb = measure(options.messages)
    if options.most_seconds and seconds > options.most_seconds:
        sys.exit(f"Reading took {seconds:.1f} s, more than {options.most_seconds} s.")
    if options.most_mb and most_mb > options.most_mb:
        sys.exit(f"Reading took {most_mb:.0f} MB, more than {options.most_mb} MB.")


def measure(messages: int) -> tuple[float, float]:
    """Import a chat; print and return seconds and the larger peak of memory in megabytes."""
    from accounts.models import User
    from chat.documents import reading, uploads

    user = User.objects.create_user("user@example.org")
    data = large(messages).encode()
    parts = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    begun, used = time.monotonic(), cpu()
    made = uploads.add(user=user, name="chat.txt", size=len(data), chunks=parts).document
    uploaded = time.monotonic()
    reading.run(made.pk, made.attempt)
    ended = time.monotonic()
    made.refresh_from_db()
    count = made.blocks.count()
    if made.status != made.Status.READY or count < messages:
        sys.exit(f"The chat is {made.status} ({made.reason}), with {count} blocks.")
    parent, child = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"{messages} messages, {len(data) / 1e6:.1f} MB, {count} blocks")
    print(
        f"upload {uploaded - begun:.1f} s, reading {ended - uploaded:.1f} s, of both {cpu() - used:.1f} s on a core"
    )
    print(f"peak memory: worker {parent:.0f} MB, parser {child:.0f} MB")
    return ended - begun, max(parent, child)


def cpu() -> float:
    """Return the seconds that this process and those that it has ended have worked, without the database's."""
    rows = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in rows)
