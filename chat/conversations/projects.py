"""Projects: creating, changing and deleting them, moving conversations between them, and the undo of both.

Every change locks the project before its conversations, so that none moves into a deleted project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from accounts.models import User
from chat import access
from chat.conversations import assistants, lifecycle, offers
from chat.conversations.lifecycle import MAX_CHANGED, TOO_MANY_CHANGED
from chat.errors import ChatError
from chat.models import Conversation, Project
from chat.streaming.user_channel import announce_project
from chatproject.lib.db import prepared

MAX_PROJECTS = 100  # of one user
SAME_FORM = timedelta(seconds=10)
TOO_MANY_PROJECTS = gettext_lazy(
    "You can have up to %(count)d projects. Delete one first. Nothing was changed."
)


@dataclass(frozen=True, slots=True)
class Fields:
    """The values of a project that its user sets, as forms.ProjectForm has validated them."""

    name: str
    instructions: str = ""
    model_id: int | None = None
    assistant_id: int | None = None


# In plain SQL, as each page needs it: see lib.db.prepared.
OWN = f"""
SELECT {prepared.columns(Project, "project")} FROM chat_project project
WHERE owner_id = %(user)s AND deleted_at IS NULL ORDER BY LOWER(name), id LIMIT {MAX_PROJECTS}
"""  # noqa: S608 # of names alone


def own(user: User) -> list[Project]:
    """Return the user's projects by name, at most MAX_PROJECTS; one query."""
    return [project for (project,) in prepared.each(OWN, {"user": user.pk}, Project)]


def create(*, user: User, fields: Fields) -> Project:
    """Store a new project and announce it; a form that is posted twice within seconds makes one.

    Raises ChatError `too_many`, `model_unavailable` or `not_found` (the assistant).
    """
    project = Project(owner=user)
    _set(project, fields)
    with transaction.atomic():
        _require_room(user)
        own = Project.objects.not_deleted().filter(owner=user, name=fields.name)
        again: Project | None = own.filter(
            instructions=fields.instructions, created_at__gt=timezone.now() - SAME_FORM
        ).first()
        if again is not None:
            return again
        project.save()
    announce_project(project)
    return project


def change(*, user: User, project_id: UUID, fields: Fields) -> Project:
    """Store other fields of a project and announce it. Raises ChatError like `create`, or `not_found`."""
    project = access.project(user, project_id)
    _set(project, fields)
    project.save(update_fields=["name", "instructions", "model", "assistant"])
    announce_project(project)
    return project


def _set(project: Project, fields: Fields) -> None:
    project.name, project.instructions = fields.name, fields.instructions
    # One that was chosen before stays, also while it is not available.
    if fields.model_id != project.model_id:
        project.model = (
            None if fields.model_id is None else offers.chosen(project.owner, fields.model_id)
        )
    if fields.assistant_id == project.assistant_id:
        return
    project.assistant = None
    if fields.assistant_id is None:
        return
    offered = assistants.offered(project.owner)
    project.assistant = offered.filter(pk=fields.assistant_id).first()
    if project.assistant is None:
        raise ChatError("not_found", _("This assistant is not available to you."))


def _require_room(user: User) -> None:
    """Raise ChatError `too_many` if the user has MAX_PROJECTS; locks the user until the COMMIT."""
    User.objects.select_for_update(no_key=True).get(pk=user.pk)
    if Project.objects.not_deleted().filter(owner=user).count() >= MAX_PROJECTS:
        raise ChatError("too_many", str(TOO_MANY_PROJECTS % {"count": MAX_PROJECTS}))


def delete(*, user: User, project_id: UUID) -> tuple[Project, datetime]:
    """Delete a project, whose conversations are kept outside of it; return it with the time for `undo`.

    recovery/retention.py purges it after some days. Raises ChatError `not_found`.
    """
    now = timezone.now()
    with transaction.atomic():
        project = access.project(user, project_id, lock=True)
        project.deleted_at = now
        project.save(update_fields=["deleted_at"])
        inside = Conversation.objects.filter(project=project)
        inside.update(project=None, moved_at=now, moved_from=project.pk)
    announce_project(project)
    return project, now


def undo_delete(*, user: User, at: datetime) -> int:
    """Restore the project that was deleted at a time, with its conversations; return their number.

    One that was moved meanwhile stays where it is. Raises ChatError `not_found` or `too_many`.
    """
    with transaction.atomic():
        _require_room(user)
        found = Project.objects.filter(owner=user, deleted_at=at).select_for_update(no_key=True)
        project = found.first()
        if project is None:
            raise ChatError("not_found")
        project.deleted_at = None
        project.save(update_fields=["deleted_at"])
        count: int = Conversation.objects.filter(
            owner=user, moved_at=at, moved_from=project.pk
        ).update(project=project, moved_at=None, moved_from=None)
    announce_project(project, restored=True)
    return count


def move(
    *, user: User, conversation_ids: Sequence[UUID], project_id: UUID | None
) -> tuple[list[Conversation], Project | None, datetime]:
    """Move conversations into a project, or out of any; return them, the project, and the time for `undo_move`.

    Raises ChatError `not_found` if the user has none of them or not the project, or `too_many`.
    """
    if len(conversation_ids) > MAX_CHANGED:
        raise ChatError("too_many", str(TOO_MANY_CHANGED % {"count": MAX_CHANGED}))
    now = timezone.now()
    with transaction.atomic():
        project = None if project_id is None else access.project(user, project_id, lock=True)
        found = access.conversations(user, conversation_ids)
        moved = Conversation.objects.filter(pk__in=[each.pk for each in found])
        # A conversation of the project keeps its undo. `exclude` would miss those with NULL.
        here = moved.filter(project=project).values_list("pk", flat=True)
        moved.exclude(pk__in=list(here)).update(
            moved_from=F("project_id"), moved_at=now, project=project
        )
    for conversation in found:
        conversation.project = project
    lifecycle.announce_all(found)
    return found, project, now


def undo_move(*, user: User, at: datetime) -> int:
    """Undo a `move` made at a time; return the number of conversations.

    One whose earlier project was deleted meanwhile is in none then.
    """
    with transaction.atomic():
        found = list(Conversation.objects.filter(owner=user, moved_at=at)[:MAX_CHANGED])
        wanted = {each.moved_from for each in found if each.moved_from is not None}
        projects: dict[UUID | None, Project] = {
            each.pk: each
            for each in Project.objects.not_deleted()
            .filter(owner=user, pk__in=wanted)
            .order_by("pk")
            .select_for_update(no_key=True)
        }
        for source in {each.moved_from for each in found}:
            Conversation.objects.filter(owner=user, moved_at=at, moved_from=source).update(
                project=projects.get(source), moved_at=None, moved_from=None
            )
    for conversation in found:
        conversation.project = projects.get(conversation.moved_from)
    lifecycle.announce_all(found)
    return len(found)


def take(*, user: User, name: str, instructions: str) -> Project | None:
    """Return the user's project with this name, for a conversation that is imported; make one if there is room.

    Call it inside a transaction. None without room.
    """
    project: Project | None = Project.objects.not_deleted().filter(owner=user, name=name).first()
    if project is not None:
        return access.project(user, project.pk, lock=True)
    try:
        _require_room(user)
    except ChatError:
        return None
    made: Project = Project.objects.create(owner=user, name=name, instructions=instructions)
    transaction.on_commit(lambda: announce_project(made))
    return made
