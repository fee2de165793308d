from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db import models, transaction

from chatproject.lib import encryption


class Command(BaseCommand):
    help = (
        "Encrypts the stored secrets with the first of ENCRYPTION_KEYS. Afterwards the other keys may "
        "be removed."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        rotated, lost = 0, []
        for model in apps.get_models():
            for pk in (
                model._default_manager.values_list("pk", flat=True)
                if encrypted(model) or encrypted_parts(model)
                else ()
            ):
                try:
                    rotated += rotate(model, pk)
                except encryption.Undecryptable:
                    lost.append(f"{model._meta.verbose_name} {model._default_manager.get(pk=pk)}")
        self.stdout.write(f"{rotated} secrets are encrypted with the first key.")
        if lost:
            raise CommandError(
                f"The secrets of {', '.join(lost)} cannot be decrypted. Add their earlier key to "
                "ENCRYPTION_KEYS (or SECRET_KEY_FALLBACKS), or enter them again in the admin."
            )


def encrypted(model: type[models.Model]) -> tuple[str, ...]:
    """Return the columns of a table that are encrypted: its class attribute ENCRYPTED."""
    columns: tuple[str, ...] = getattr(model, "ENCRYPTED", ())
    return columns


def encrypted_parts(model: type[models.Model]) -> dict[str, tuple[str, ...]]:
    """Return the encrypted parts of JSON columns of a table: its class attribute ENCRYPTED_PARTS."""
    parts: dict[str, tuple[str, ...]] = getattr(model, "ENCRYPTED_PARTS", {})
    return parts


def rotate(model: type[models.Model], pk: Any) -> int:
    """Encrypt a row's secrets anew; return how many. Raises Undecryptable, and changes nothing then."""
    with transaction.atomic():
        # Locked, since staff may enter another key at this moment.
        row = model._default_manager.select_for_update().filter(pk=pk).first()
        columns = encrypted(model) if row else ()
        secrets = {name: getattr(row, name) for name in columns if getattr(row, name)}
        rotated: dict[str, Any] = {
            name: encryption.rotate(token) for name, token in secrets.items()
        }
        count = len(rotated)
        for name, parts in (encrypted_parts(model) if row else {}).items():
            data = getattr(row, name)
            found = {part: encryption.rotate(data[part]) for part in parts if data.get(part)}
            if found:
                rotated[name] = data | found
                count += len(found)
        if rotated:
            model._default_manager.filter(pk=pk).update(**rotated)
    return count
