"""The prompt library: the prompts that a user may use, and their variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from uuid import UUID

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import Case, Q, When
from django.utils.translation import gettext as _

from chat import access
from chat.conversations import drafts
from chat.errors import ChatError
from chat.models import Prompt

if TYPE_CHECKING:
    from accounts.models import User

MAX_OWN = 200  # prompts of one user
MAX_OFFERED = 500  # prompts of one list
OTHERS_CHARACTERS = 500_000  # of the prompts of other users in one list
MAX_VARIABLES = 20  # of one prompt; the rest stays as text
VARIABLE = re.compile(r"\{\{\s*(\w[\w .-]{0,39}?)\s*\}\}")


def offered(user: User) -> list[Prompt]:
    """Return the prompts that a user may use: own ones, the staff's, then shared ones of active users; one query.

    However many others share, the user's own and the staff's are listed.
    """
    group = Case(When(owner=user, then=0), When(owner=None, then=1), default=2)
    rows = Prompt.objects.filter(_offered(user)).select_related("owner")
    found: list[Prompt] = []
    room = OTHERS_CHARACTERS
    for one in rows.order_by(group, "title", "id")[:MAX_OFFERED]:
        if one.owner_id not in (None, user.pk):
            room -= len(one.text)
        if room >= 0:
            found.append(one)
    return found


def _offered(user: User) -> Q:
    found = Q(owner=user) | Q(owner=None)
    if settings.SHARED_PROMPTS:
        found |= Q(shared=True, owner__is_active=True)
    return found


def usable(user: User, prompt_id: UUID) -> Prompt:
    """Return a prompt that the user may use. Raises ChatError `not_found`."""
    found = Prompt.objects.filter(_offered(user), pk=prompt_id).first()
    if found is None:
        raise ChatError("not_found")
    return found


def save(*, user: User, prompt_id: UUID | None, title: str, text: str, shared: bool) -> Prompt:
    """Store a prompt of the user, a new one without `prompt_id`.

    Raises ChatError `not_found`, `bad_text`, `text_too_long`, or `too_many` if the user has MAX_OWN.
    """
    drafts.check(text)
    with transaction.atomic():
        get_user_model().objects.select_for_update(no_key=True).get(pk=user.pk)  # one at a time
        prompt = _saved(user, prompt_id, title, text)
        prompt.title, prompt.text = title, text
        prompt.shared = shared and settings.SHARED_PROMPTS
        prompt.save()
    return prompt


def _saved(user: User, prompt_id: UUID | None, title: str, text: str) -> Prompt:
    """Return the prompt to be stored: a new one, unless a form with the same prompt was posted before."""
    if prompt_id is not None:
        return access.prompt(user, prompt_id)
    own = Prompt.objects.filter(owner=user)
    if (same := own.filter(title=title, text=text).first()) is not None:
        return same
    if own.count() >= MAX_OWN:
        words = _("You can have up to %(count)d prompts. Delete one first.")
        raise ChatError("too_many", words % {"count": MAX_OWN})
    return Prompt(owner=user)


def variables(text: str) -> list[str]:
    """Return the names of the variables of a text, in order, each once; at most MAX_VARIABLES."""
    return list(dict.fromkeys(VARIABLE.findall(text)))[:MAX_VARIABLES]


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return a text with its variables replaced; one without a value stays as it is written."""
    return VARIABLE.sub(lambda found: values.get(found[1]) or found[0], text)


def use(
    *, user: User, prompt: Prompt, conversation_id: UUID | None, values: Mapping[str, str]
) -> None:
    """Put a prompt before the draft of a conversation, or of a new one. Raises ChatError `not_found`."""
    if conversation_id is not None:
        access.conversation(user, conversation_id, write=True)
    text = fill(prompt.text, values)
    drafts.check(text)
    drafts.put_before(user=user, conversation_id=conversation_id, text=text)
