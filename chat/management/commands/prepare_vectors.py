from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from chat.documents.retrieval import vectors


class Command(BaseCommand):
    help = (
        "Adds the column for vectors of documents where pgvector is there, and the index of the present model"
        " once it has many. The clock does the same every ten minutes."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        state = vectors.prepare()
        if not state.has_column:
            version = state.installed or state.available
            found = f"version {version} is there" if version else "it is not there"
            raise CommandError(
                f"The database has no column for vectors: pgvector 0.7 or newer is needed, and {found}. If this"
                " user may not create extensions, run CREATE EXTENSION vector as an administrator."
            )
        made = vectors.maintain_index()
        self.stdout.write(
            f"The column is there{f', and the index {made} was made' if made else ''}."
        )
