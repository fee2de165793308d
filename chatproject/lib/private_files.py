"""Private files: of one user, below PRIVATE_ROOT and never served as static files.

All processes share the folder. Names are random, so that no name of a user's reaches the file system.
Files of a folder below PRIVATE_ROOT are kept until they are removed, all others for some hours.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from django.conf import settings

KEPT_SECONDS = 2 * 24 * 60 * 60  # after the last write
WORKPLACE = "building-"  # begins the name of a folder of `workplace`


def store(chunks: Iterable[bytes], folder: str = "") -> str:
    """Write a new file; return its name, which begins with its folder.

    A file in a folder is on the disk when this returns. Raises OSError, and leaves no part of a file then.
    """
    name = new_name(folder)
    with writing(name) as file:
        for chunk in chunks:
            file.write(chunk)
        if folder:
            file.flush()
            os.fsync(file.fileno())
    return name


def new_name(folder: str = "") -> str:
    """Return a random name, below a folder if one is named."""
    random = secrets.token_hex(16)
    return f"{folder}/{random[:2]}/{random}" if folder else random


@contextmanager
def writing(name: str) -> Iterator[BinaryIO]:
    """Open a new file with a name of `new_name`. Raises OSError, and leaves no part of a file after an exception."""
    root: Path = settings.PRIVATE_ROOT
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    path(name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with path(name).open("xb") as file:
            path(name).chmod(0o600)
            yield file
    except BaseException:
        remove(name)
        raise


@contextmanager
def workplace() -> Iterator[Path]:
    """Make an empty folder for a with-block. `sweep` removes what a lost process leaves of one."""
    root: Path = settings.PRIVATE_ROOT
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=WORKPLACE, dir=root) as folder:
        yield Path(folder)


def path(name: str) -> Path:
    """Return the path of a file."""
    folder: Path = settings.PRIVATE_ROOT
    return folder / name


def remove(name: str) -> None:
    """Delete a file, if it exists; an empty name is none."""
    if name:
        path(name).unlink(missing_ok=True)


def sweep() -> int:
    """Delete the files in no folder that were last written more than KEPT_SECONDS ago; return how many.

    Folders of `workplace` that a lost process has left are deleted, too.
    """
    names = old_names("")
    for name in names:
        remove(name)
    root: Path = settings.PRIVATE_ROOT
    before = time.time() - KEPT_SECONDS
    for folder in root.glob(f"{WORKPLACE}*"):
        with suppress(FileNotFoundError):  # removed meanwhile
            if folder.stat().st_mtime < before:
                shutil.rmtree(folder)
    return len(names)


def old_names(folder: str) -> list[str]:
    """Return the names of a folder's files that were last written more than KEPT_SECONDS ago."""
    root: Path = settings.PRIVATE_ROOT
    before = time.time() - KEPT_SECONDS
    found = []
    if (root / folder).is_dir():
        with os.scandir(root / folder) as entries:
            for entry in entries:
                try:
                    is_old = entry.is_file() and entry.stat().st_mtime < before
                except FileNotFoundError:
                    continue  # removed meanwhile
                if is_old:
                    found.append(f"{folder}/{entry.name}" if folder else entry.name)
    return found
