"""Private files: of one user, for some hours, below PRIVATE_ROOT and never served as static files.

All processes share the folder. Names are random, so that no name of a user's reaches the file system.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from django.conf import settings

KEPT_SECONDS = 2 * 24 * 60 * 60  # after the last write


def store(chunks: Iterable[bytes]) -> str:
    """Write a new file; return its name. Raises OSError, and leaves no part of a file then."""
    name = new_name()
    with writing(name) as file:
        for chunk in chunks:
            file.write(chunk)
    return name


def new_name() -> str:
    """Return a random name."""
    return secrets.token_hex(16)


@contextmanager
def writing(name: str) -> Iterator[BinaryIO]:
    """Open a new file with a name of `new_name`. Raises OSError, and leaves no part of a file after an exception."""
    folder: Path = settings.PRIVATE_ROOT
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with path(name).open("xb") as file:
            path(name).chmod(0o600)
            yield file
    except BaseException:
        remove(name)
        raise


def path(name: str) -> Path:
    """Return the path of a file."""
    folder: Path = settings.PRIVATE_ROOT
    return folder / name


def remove(name: str) -> None:
    """Delete a file, if it exists; an empty name is none."""
    if name:
        path(name).unlink(missing_ok=True)


def sweep() -> int:
    """Delete the files that were last written more than KEPT_SECONDS ago; return how many."""
    folder: Path = settings.PRIVATE_ROOT
    removed = 0
    if folder.is_dir():
        before = time.time() - KEPT_SECONDS
        for file in folder.iterdir():
            if file.is_file() and file.stat().st_mtime < before:
                file.unlink(missing_ok=True)
                removed += 1
    return removed
