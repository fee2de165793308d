"""The registry of personal data: every table, file and key that can hold data about a user.

Each app registers its own in `AppConfig.ready`. The export of a user's data and the purge of an account
(`accounts.privacy`) walk the registry, and a test compares it with all models, so that a new table is either
registered here or declared free of personal data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.apps import apps
from django.db import models

if TYPE_CHECKING:
    from accounts.models import User


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalTable:
    """A table with rows about users.

    `user` is the path of a query from a row to the user's id, or several with a bar between. `document` names the JSON file of the export that
    has the rows, without the columns `omitted`; `reason` says why there is none. The purge deletes the rows,
    unless a step `erased_by` does so, or they are `kept`: the text says why, and what of them stays.
    """

    model: str
    user: str = "user"
    document: str = ""
    omitted: tuple[str, ...] = ()
    reason: str = ""
    erased_by: str = ""
    kept: str = ""

    @property
    def kind(self) -> type[models.Model]:
        """The model."""
        return apps.get_model(self.model)

    def of(self, user_id: int) -> models.QuerySet[models.Model]:
        """Return the rows about a user."""
        mine = models.Q()
        for path in self.user.split("|"):
            mine |= models.Q((path, user_id))
        return self.kind._base_manager.filter(mine)


Step = Callable[["User", float], bool]
Document = tuple[str, Iterator[bytes]]

_tables: dict[str, PersonalTable] = {}
_impersonal: dict[str, str] = {}
_steps: list[tuple[int, str, Step]] = []
_closings: list[Callable[[User], None]] = []
_documents: list[Callable[[User], Iterator[Document]]] = []
_keys: dict[str, str] = {}


def add_tables(*tables: PersonalTable) -> None:
    """Register tables with personal data. The purge deletes their rows in this order."""
    _tables.update({table.model: table for table in tables})


def declare_impersonal(reasons: dict[str, str]) -> None:
    """Declare tables free of personal data, each with the reason."""
    _impersonal.update(reasons)


def add_step(order: int, name: str, step: Step) -> None:
    """Register a step of the purge; those of a lower `order` come first.

    It is called with the user and the time (`time.monotonic`) at which it should return, and returns whether
    nothing is left. It may be killed at any statement, and is then called again.
    """
    _steps.append((order, name, step))


def add_closing(closing: Callable[[User], None]) -> None:
    """Register a function that is called when a user's deletion is requested, before the user is signed out."""
    _closings.append(closing)


def add_documents(documents: Callable[[User], Iterator[Document]]) -> None:
    """Register further files of the export: their names, and their content in parts."""
    _documents.append(documents)


def add_keys(ends: dict[str, str]) -> None:
    """Register prefixes of keys in Redis, each with the way in which a user's data ends there."""
    _keys.update(ends)


def tables() -> list[PersonalTable]:
    """Return the tables with personal data."""
    return list(_tables.values())


def impersonal() -> dict[str, str]:
    """Return the tables without personal data, with the reasons."""
    return dict(_impersonal)


def steps() -> list[tuple[str, Step]]:
    """Return the steps of the purge, in their order."""
    return [(name, step) for _order, name, step in sorted(_steps, key=lambda one: one[:2])]


def closings() -> list[Callable[[User], None]]:
    """Return the functions to call when a deletion is requested."""
    return list(_closings)


def documents(user: User) -> Iterator[Document]:
    """Yield the further files of a user's export."""
    for made in _documents:
        yield from made(user)


def keys() -> dict[str, str]:
    """Return the prefixes of keys in Redis, with the end of personal data there."""
    return dict(_keys)
