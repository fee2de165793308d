from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from accounts.models import User
from chat import access
from chat.documents import reasons, uploads
from chat.documents.models import Document
from chat.errors import ChatError
from chat.models import Project

CHUNK = 1_048_576
POLL = 0.5  # seconds
REFUSED, FAILED, UNREAD = 3, 4, 5  # exit codes


class Command(BaseCommand):
    help = (
        "Uploads a file as a document of a user and prints its id; a worker of the queue `index` reads it. A file that "
        "the user has uploaded before is found again. The exit code is 1 for wrong arguments, 3 if the file is "
        "refused, 4 if it cannot be read, and 5 if it is not read in time."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="the path of the file")
        parser.add_argument("--user", required=True, help="the owner's e-mail address")
        parser.add_argument("--project", help="the id or the name of a project of the owner")
        parser.add_argument("--wait", action="store_true", help="wait until it is read")
        parser.add_argument(
            "--seconds", type=int, default=900, help="the longest wait (default: 900)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(email__iexact=options["user"]).first()
        if user is None:
            raise CommandError(f"There is no user {options['user']}.")
        if not user.is_active:
            raise CommandError(f"The user {user} is not active.")
        name = options["project"]
        project = None if name is None else project_of(user, name)
        path: Path = options["file"]
        try:
            with path.open("rb") as file:
                added = uploads.add(
                    user=user,
                    name=path.name,
                    size=path.stat().st_size,
                    chunks=iter(lambda: file.read(CHUNK), b""),
                    project=project,
                )
        except OSError as error:
            raise CommandError(f"{path} cannot be opened: {error.strerror}.") from error
        except ChatError as error:
            raise CommandError(f"{path}: {error.message}", returncode=REFUSED) from error
        if not added.is_new:
            self.stderr.write("The user had uploaded this file before.")
        if options["wait"]:
            self._wait(added.document, options["seconds"])
        self.stdout.write(str(added.document.pk))

    def _wait(self, document: Document, seconds: int) -> None:
        shown = -1
        for found in states(document.pk, seconds):
            if found.percent > shown and found.is_active:
                shown = found.percent
                self.stderr.write(f"{found.get_status_display()}: {shown} %")
            if found.status == Document.Status.READY:
                return
            if found.status == Document.Status.FAILED:
                sentence = reasons.sentence(found.reason)
                raise CommandError(f"{found.pk}: {sentence} ({found.reason})", returncode=FAILED)
        raise CommandError(
            f"{document.pk} was not read within {seconds} s. Does a worker take jobs of the queue index? The "
            "document stays, and is read as soon as one does.",
            returncode=UNREAD,
        )


def project_of(user: User, name: str) -> Project:
    """Return a project by its id or its name. Raises CommandError."""
    try:
        return access.project(user, UUID(name))
    except (ValueError, ChatError):
        found = list(Project.objects.not_deleted().filter(owner=user, name=name)[:2])
    if len(found) != 1:
        problem = "has several projects" if found else "has no project"
        raise CommandError(f"{user} {problem} {name}. Give its id.")
    return found[0]


def states(document_id: UUID, seconds: int) -> Iterator[Document]:
    """Yield a document again and again, until it was deleted or the time is over."""
    until = time.monotonic() + seconds
    while True:
        found = Document.objects.defer("statistics", "details").filter(pk=document_id).first()
        if found is None:
            raise CommandError("The document was deleted meanwhile.", returncode=FAILED)
        yield found
        if time.monotonic() >= until:
            return
        time.sleep(POLL)
