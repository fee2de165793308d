"""This machine: versions, the time and its zone, free disk space, collected static files."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import django
import psycopg
import redis
from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.contrib.staticfiles.storage import ManifestFilesMixin, staticfiles_storage

from chatproject import VERSION
from chatproject.ops.doctor import database, redis_server
from chatproject.ops.doctor.finding import Finding, ok, problem, warning

# Seconds between this clock and that of a server. Workers with a heartbeat older than ten seconds
# count as dead.
SKEW, LARGE_SKEW = 1.0, 5.0

LITTLE_SPACE, NO_SPACE = 2_000_000_000, 300_000_000  # free bytes
LITTLE_INODES = 0.03  # share of free ones

LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "::1")
FOLDERS_OF_POSTGRES = ("/var/lib/postgresql", "/var/lib/pgsql")

COLLECT = "Run manage.py collectstatic --noinput and restart the web processes."


def check_versions() -> Iterator[Finding]:
    """Yield the versions of Parley, Django and Python."""
    found = f"Parley {VERSION}, Django {django.get_version()}, Python {platform.python_version()}"
    yield ok("versions", found)


def check_time() -> Iterator[Finding]:
    """Compare the clocks of this machine, Postgres and Redis; unreachable ones have their own lines."""
    skews = {}
    for name, read in (("Postgres", _postgres_time), ("Redis", _redis_time)):
        before = time.time()
        try:
            skews[name] = read() - (before + time.time()) / 2
        except (psycopg.Error, redis.RedisError):
            continue
    yield judge_skews(skews)


def judge_skews(skews: Mapping[str, float]) -> Finding:
    """Return the finding about the clocks of servers, by their seconds ahead of ours."""
    found = ", ".join(f"{name} {skew:+.1f} s" for name, skew in skews.items())
    largest = max(map(abs, skews.values()), default=0.0)
    if largest <= SKEW:
        return ok("time", f"TIME_ZONE {settings.TIME_ZONE}; {found}")
    return (problem if largest > LARGE_SKEW else warning)(
        "time",
        f"the clocks differ from that of this machine: {found}",
        "Have all machines synchronise their time (systemd-timesyncd, chrony).",
    )


def _postgres_time() -> float:
    with database.connect() as session:
        [moment] = session.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone() or [0]
        return float(moment)


def _redis_time() -> float:
    with redis_server.connect() as client:
        seconds, microseconds = client.time()
        return float(seconds) + float(microseconds) / 1e6


def check_disk() -> Iterator[Finding]:
    """Yield the free space of each disk that is used: project, temporary files, local servers."""
    seen: set[int] = set()
    for path in _folders():
        try:
            device = os.stat(path).st_dev
            free = os.statvfs(path)
        except OSError:
            continue  # it is not on this machine, or closed to this user
        if device in seen or free.f_blocks == 0:
            continue
        seen.add(device)
        size = free.f_bavail * free.f_frsize
        found = f"{path}: {size / 1e9:,.1f} GB free"
        advice = "Delete old logs and backups, or enlarge the disk."
        if size < NO_SPACE:
            yield problem("disk", found, advice)
        elif size < LITTLE_SPACE:
            yield warning("disk", found, advice)
        elif free.f_files and free.f_favail / free.f_files < LITTLE_INODES:
            yield problem("disk", f"{path}: nearly all inodes are used", "Delete small files.")
        else:
            yield ok("disk", found)


def _folders() -> Iterator[Path]:
    yield settings.BASE_DIR
    yield Path(tempfile.gettempdir())
    yield Path("/var/log")
    host = str(settings.DATABASES["default"].get("HOST", ""))
    if host in LOCAL_HOSTS or host.startswith("/"):
        yield from _answer(_postgres_folder)
        yield from map(Path, FOLDERS_OF_POSTGRES)
        yield from _answer(_redis_folder)


def _answer(read: Callable[[], str]) -> Iterator[Path]:
    try:
        yield Path(read())
    except (psycopg.Error, redis.RedisError):
        return  # not allowed for this user, or unreachable, which has its own line


def _postgres_folder() -> str:
    with database.connect() as session:
        [folder] = session.execute("SHOW data_directory").fetchone() or [""]
        return str(folder)


def _redis_folder() -> str:
    with redis_server.connect() as client:
        return str(client.config_get("dir").get("dir", "/"))


def check_static_files() -> Iterator[Finding]:
    """Compare the collected static files with their sources in this version."""
    part = "static files"
    if not isinstance(staticfiles_storage, ManifestFilesMixin):
        yield ok(part, "served from their sources (STATIC_MANIFEST=0)")
        return
    root = Path(settings.STATIC_ROOT)
    hashed: dict[str, str] = staticfiles_storage.load_manifest()[0]
    if not hashed:
        yield problem(part, f"{root} has no staticfiles.json, so pages have no styles", COLLECT)
        return
    count, stale = 0, []
    for finder in get_finders():
        for path, storage in finder.list([]):
            count += 1
            is_hashed = (root / hashed.get(path, "-")).is_file()
            if not is_hashed or not _is_collected(Path(storage.path(path)), root / path):
                stale.append(path)
    if stale:
        yield problem(
            part,
            f"{len(stale)} of {count} are missing in {root} or older than this version: {stale[0]}",
            COLLECT,
        )
    else:
        yield ok(part, f"{count} in {root}")


def _is_collected(source: Path, copy: Path) -> bool:
    try:
        return (
            source.stat().st_size == copy.stat().st_size
            and source.read_bytes() == copy.read_bytes()
        )
    except FileNotFoundError:
        return False
