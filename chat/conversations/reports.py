"""Reports of replies to the staff: one for each user and reply."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from chat import protocol
from chat.conversations import feedback
from chat.errors import ChatError
from chat.models import Message, Report, Run
from chat.models.moderation import REPORT_LENGTH

if TYPE_CHECKING:
    from accounts.models import User


def find(user: User, message: Message) -> Report | None:
    """Return the user's report of a reply."""
    return Report.objects.filter(message=message, user=user).first()


def report(*, user: User, message_id: UUID, reason: str, text: str) -> Report:
    """Store the report of a reply; a second one of the same user changes nothing.

    Raises ChatError `not_found`, `bad_json`, `bad_text` and `text_too_long`.
    """
    if reason not in Report.Reason:
        raise ChatError("bad_json", _("Choose a reason. Nothing was reported."))
    text = text.strip()
    if not protocol.is_storable(text):
        raise ChatError("bad_text")
    if len(text) > REPORT_LENGTH:
        raise ChatError(
            "text_too_long",
            _("The text is longer than %(most)d characters. Shorten it.") % {"most": REPORT_LENGTH},
        )
    message = feedback.reply(user, message_id)
    run = Run.objects.filter(message=message).first()
    try:
        with transaction.atomic():
            return Report.objects.create(
                message=message,
                user=user,
                model_id=(run.answered_by_id or run.model_id) if run else None,
                reason=reason,
                text=text,
            )
    except IntegrityError:
        return Report.objects.get(message=message, user=user)
