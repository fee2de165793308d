"""The files of documents: below PRIVATE_ROOT, or in a storage of Django's (S3 and the like) when one is set.

Names are random. A file is written once, and read and removed by its name. Errors of any storage are OSErrors.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings
from django.core.files import File
from django.core.files.storage import Storage, storages

from chatproject.lib import private_files

logger = logging.getLogger(__name__)

FOLDER = "documents"
ALIAS = "documents"  # in STORAGES; without it the files are below PRIVATE_ROOT
PART_BYTES = 262_144


def keep(spooled: str) -> str:
    """Move a private file, by its name, into the storage; return its new name. Raises OSError, and removes it then."""
    name = private_files.new_name(FOLDER)
    source = private_files.path(spooled)
    try:
        if (remote := _remote()) is None:
            target = private_files.path(name)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with source.open("rb") as file:
                os.fsync(file.fileno())
            source.replace(target)
        else:
            with source.open("rb") as file, _as_os_errors():
                stored = remote.save(name, File(file))
            if stored != name:  # another file has it: by chance, or by a storage that renames
                raise OSError(f"the storage of documents stored {name} as {stored}")
    finally:
        private_files.remove(spooled)
    return name


@contextmanager
def local(name: str) -> Iterator[Path]:
    """Give the path of a file with the content, only for reading. Raises OSError."""
    if (remote := _remote()) is None:
        yield private_files.path(name)
        return
    with tempfile.NamedTemporaryFile(prefix="document-") as file:
        with _as_os_errors(), remote.open(name) as stored:
            for part in iter(lambda: stored.read(PART_BYTES), b""):
                file.write(part)
        file.flush()
        yield Path(file.name)


def exists(name: str) -> bool:
    """Return whether a file is stored. Raises OSError."""
    if (remote := _remote()) is None:
        return private_files.path(name).is_file()
    with _as_os_errors():
        return bool(remote.exists(name))


def parts(name: str) -> Iterator[bytes]:
    """Yield the content of a file in parts. Raises OSError."""
    if (remote := _remote()) is None:
        with private_files.path(name).open("rb") as file:
            while part := file.read(PART_BYTES):
                yield part
        return
    with _as_os_errors(), remote.open(name) as stored:
        while part := stored.read(PART_BYTES):
            yield part


def read_part(name: str, at: int) -> tuple[bytes, int | None]:
    """Return a part of a file from a position on, and where to go on. Raises OSError."""
    if _remote() is not None:  # it has no positions, and the file is small
        return b"".join(parts(name)), None
    with private_files.path(name).open("rb") as file:
        file.seek(at)
        data = file.read(PART_BYTES)
    return data, at + len(data) if len(data) == PART_BYTES else None


def remove(name: str) -> None:
    """Delete a file, if it exists; an empty name is none. Raises OSError."""
    if not name:
        return
    if (remote := _remote()) is None:
        private_files.remove(name)
        return
    with _as_os_errors():
        remote.delete(name)


def _remote() -> Storage | None:
    return storages[ALIAS] if ALIAS in settings.STORAGES else None


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raise the errors of boto3 as OSErrors, so that callers need not know the storage."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        yield
        return
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise OSError(str(error)) from error
