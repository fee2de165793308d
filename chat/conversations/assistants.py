"""Assistants: the ones that a user's new conversations may have, and the user's own.

`offered` is the one rule for new conversations, for pages, sockets, forms and estimates. A conversation that has begun goes on with
its assistant, whatever becomes of it; only a restriction to groups ends that (`may_continue`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.metering import pricing
from chat import access
from chat.conversations import offers
from chat.errors import ChatError
from chat.models import Assistant, Conversation, LanguageModel, Provider, Run
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from accounts.models import User

MOST_OWN = 50  # personal assistants of one user
LONGEST_PROMPT = 10_000  # characters
MOST_SUGGESTIONS = 6
LONGEST_SUGGESTION = 300  # characters
LAST = 32_767  # the position of personal ones: never before staff's, also for the previous release
PAGE = 24  # shared assistants of one page


# In plain SQL, as the first message of each conversation needs it: see lib.db.prepared. The conditions are those of
# `_available` and `offers.granted`.
DEFAULT = f"""
SELECT {prepared.columns(Assistant, "assistant")}, {prepared.columns(LanguageModel, "model")},
  {prepared.columns(Provider, "provider")},
  (SELECT own.model_id FROM chat_chatpreference own WHERE own.user_id = %(user)s)
FROM chat_assistant assistant JOIN chat_languagemodel model ON model.id = assistant.model_id
LEFT JOIN chat_provider provider ON provider.id = model.provider_id
WHERE assistant.enabled AND assistant.deleted_at IS NULL AND NOT assistant.personal
  AND model.enabled AND COALESCE(provider.enabled, true)
  AND (NOT %(billing)s OR EXISTS (
    SELECT 1 FROM billing_modelprice price
    WHERE price.model = model.provider_model AND price.effective_from <= %(now)s
  ))
  AND (%(is_staff)s OR NOT assistant.restricted OR EXISTS (
    SELECT 1 FROM chat_assistant_groups granted
    JOIN accounts_user_groups own ON own.group_id = granted.group_id
    WHERE granted.assistant_id = assistant.id AND own.user_id = %(user)s
  ))
ORDER BY assistant.position, assistant.name LIMIT 1
"""  # noqa: S608 # of names alone


def default(user: User | None = None) -> Assistant | None:
    """Return the first of staff's assistants that new conversations may have, None without one; one query.

    It is enabled, and its model and its provider are, too; it has a price. Restricted ones are left out for users
    of other groups, and without a user. Its annotation `preferred_model_id` is the key of the model that the
    user's new conversations begin with, None without a preference.
    """
    values = {
        "user": user.pk if user else None,
        "is_staff": user is not None and user.is_staff,
        "billing": settings.BILLING,
        "now": timezone.now(),
    }
    row = prepared.first(DEFAULT, values, Assistant, LanguageModel, Provider)
    if row is None:
        return None
    found: Assistant
    found, found.model, found.model.provider, preferred = row
    found.preferred_model_id = preferred  # type: ignore[attr-defined] # an annotation
    return found


def offered(user: User) -> QuerySet[Assistant]:
    """Select all assistants that a user's new conversations may have, staff's first.

    Besides staff's, as for `default`, they are the user's own and, where ASSISTANT_SHARING is on, shared assistants of active users.
    """
    allowed = Q(personal=False) & offers.granted(user, Assistant) | Q(owner=user)
    if settings.ASSISTANT_SHARING:
        allowed |= Q(shared=True, owner__is_active=True)
    return _available().filter(allowed)


def _available() -> QuerySet[Assistant]:
    found: QuerySet[Assistant] = (
        Assistant.objects.select_related("model__provider")
        .filter(enabled=True, deleted_at=None, model__enabled=True)
        .exclude(model__provider__enabled=False)
    )
    if settings.BILLING:
        found = found.filter(model__provider_model__in=pricing.priced_models())
    return found


def chosen(user: User, assistant_id: int) -> Assistant:
    """Return the assistant that a new conversation names. Raises ChatError `not_found`."""
    found = offered(user).filter(pk=assistant_id).first()
    if found is None:
        raise ChatError(
            "not_found",
            _("This assistant is not available to you. Nothing was sent. Choose another one."),
        )
    return found


def may_continue(user: User, assistant: Assistant) -> bool:
    """Return whether a user's conversation may go on with its assistant; one query for a restricted one."""
    return offers.is_granted(user, assistant)


def refusal(assistant: Assistant) -> ChatError:
    """Return the refusal of a message to an assistant that is now restricted to other groups."""
    text = _(
        "The assistant %(name)s is now restricted to other users. You can read this chat, and start a new one."
    )
    return ChatError("not_allowed", text % {"name": assistant.name})


def standing(user: User, assistant: Assistant) -> str:
    """Return a sentence about an assistant that a conversation still has, and a new one could not; else "".

    One query for a restricted or shared one, none for others.
    """
    words = {
        "name": f"\u2068{assistant.name}\u2069"
    }  # isolated: it may be written from right to left
    if not may_continue(user, assistant):
        return refusal(assistant).message
    if assistant.deleted_at is not None or (assistant.personal and assistant.owner_id is None):
        text = _("The assistant %(name)s was deleted. This chat goes on with it.")
    elif not assistant.enabled:
        text = _("The staff have disabled the assistant %(name)s. This chat goes on with it.")
    elif assistant.personal and assistant.owner_id != user.pk and not _is_shared(assistant):
        text = _("The assistant %(name)s is no longer shared. This chat goes on with it.")
    else:
        return ""
    return text % words


def _is_shared(assistant: Assistant) -> bool:
    return (
        settings.ASSISTANT_SHARING
        and assistant.shared
        and get_user_model().objects.filter(assistants=assistant, is_active=True).exists()
    )


# --- The gallery ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gallery:
    """The assistants of a page: staff's, the user's own, and a part of the shared ones of others.

    `next` is the cursor of the next part of the shared ones, "" after the last.
    """

    of_staff: list[Assistant]
    own: list[Assistant]
    shared: list[Assistant]
    next: str


def gallery(user: User, words: str = "", after: str = "") -> Gallery:
    """Return the assistants whose name or description has all `words`, from the cursor `after` on.

    Own ones are listed also while they cannot be chosen. Three queries, whatever the number of rows.
    """
    matching = Q()
    for word in words.split()[:10]:
        matching &= Q(name__icontains=word) | Q(description__icontains=word)
    found = offered(user).filter(matching)
    own = Assistant.objects.select_related("model__provider").filter(
        matching, owner=user, deleted_at=None
    )
    others = found.filter(personal=True).exclude(owner=user).order_by("name", "pk")
    key, _slash, name = after.partition("/")
    if key.isdecimal() and len(key) < 19:
        others = others.filter(Q(name__gt=name) | Q(name=name, pk__gt=int(key)))
    shared = list(others[: PAGE + 1]) if settings.ASSISTANT_SHARING else []
    last = shared[PAGE - 1] if len(shared) > PAGE else None
    return Gallery(
        of_staff=[] if after else list(found.filter(personal=False)),
        own=[] if after else list(own.order_by("name", "pk")),
        shared=shared[:PAGE],
        next=f"{last.pk}/{last.name}" if last else "",
    )


# --- A user's own -----------------------------------------------------------------------------


def create(*, user: User, values: dict[str, Any], client_id: str) -> Assistant:
    """Store a user's new assistant with these columns. Idempotent by `client_id`.

    Raises ChatError `too_many` if the user has MOST_OWN, `model_unavailable` or `bad_setting`.
    """
    digest = hashlib.blake2b(client_id.encode(), digest_size=12).hexdigest()
    slug = f"own-{user.pk}-{digest}"
    with transaction.atomic():
        get_user_model().objects.select_for_update(no_key=True).get(pk=user.pk)  # one at a time
        found: Assistant | None = Assistant.objects.filter(slug=slug).first()
        if found is not None:
            return found
        if Assistant.objects.filter(owner=user, deleted_at=None).count() >= MOST_OWN:
            text = _("You have %(count)s assistants, the most that one user may have. Delete one.")
            raise ChatError("too_many", text % {"count": MOST_OWN})
        made = Assistant(slug=slug, owner=user, personal=True, position=LAST)
        _fill(user, made, values)
        made.save()
    return made


def change(*, user: User, assistant_id: int, values: dict[str, Any]) -> Assistant:
    """Change a user's own assistant, also for chats that have it. Raises ChatError like `create`, `not_found`."""
    with transaction.atomic():
        assistant = access.assistant(user, assistant_id, lock=True)
        _fill(user, assistant, values)
        assistant.save()
    return assistant


def _fill(user: User, assistant: Assistant, values: dict[str, Any]) -> None:
    values = dict(values)
    model_id = values.pop("model_id")
    if model_id != assistant.model_id:
        assistant.model = offers.chosen(user, model_id)
    if not settings.ASSISTANT_SHARING:
        values.pop("shared", None)
    for name, value in values.items():
        setattr(assistant, name, value)
    effort = assistant.reasoning_effort
    if effort and effort not in assistant.model.offered_efforts:
        text = _("%(model)s does not have this reasoning effort. Choose another one.")
        raise ChatError("bad_setting", text % {"model": assistant.model})


def delete(*, user: User, assistant_id: int) -> Assistant:
    """Delete a user's own assistant: chats that have it go on. Raises ChatError `not_found`.

    `purge` removes the row when no chat has it any longer.
    """
    assistant = access.assistant(user, assistant_id)
    assistant.deleted_at = timezone.now()
    assistant.save(update_fields=["deleted_at"])
    return assistant


def purge(limit: int) -> int:
    """Remove up to `limit` deleted and orphaned assistants that no conversation has; return how many.

    Raises IntegrityError if a conversation begins with one of them meanwhile: none is removed then.
    """
    unused = Assistant.objects.filter(Q(deleted_at__isnull=False) | Q(owner=None), personal=True)
    for table in (Conversation, Run):
        unused = unused.filter(~Exists(table.objects.filter(assistant=OuterRef("pk"))))
    found = list(unused.order_by("pk").values_list("pk", flat=True)[:limit])
    with transaction.atomic():
        Assistant.groups.through.objects.filter(assistant__in=found).delete()
        return unused.filter(pk__in=found)._raw_delete("default")
