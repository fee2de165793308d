"""Reports to the staff: of replies, one for each user and reply, and of the pages of public links."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from chat import protocol
from chat.conversations import feedback
from chat.errors import ChatError
from chat.models import Message, PublicLink, Report, Run
from chat.models.moderation import REPORT_LENGTH

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser

    from accounts.models import User

MOST_OF_VISITORS = 20  # open reports of one public link by visitors: more tell the staff nothing


def find(user: User, message: Message) -> Report | None:
    """Return the user's report of a reply."""
    return Report.objects.filter(message=message, user=user).first()


def report(*, user: User, message_id: UUID, reason: str, text: str) -> Report:
    """Store the report of a reply; a second one of the same user changes nothing.

    Raises ChatError `not_found`, `bad_json`, `bad_text` and `text_too_long`.
    """
    text = _checked(reason, text)
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


def report_link(
    *, user: User | AnonymousUser, link: PublicLink, reason: str, text: str
) -> Report | None:
    """Store the report of a public link by a user, one for each, or by a visitor without an account.

    Return None, and store nothing, while MOST_OF_VISITORS reports of the link by visitors are open. Raises ChatError
    `bad_json`, `bad_text` and `text_too_long`.
    """
    text = _checked(reason, text)
    values = {"reason": reason, "text": text, "conversation": link.conversation}
    if user.is_authenticated:
        return Report.objects.get_or_create(link=link, user=user, defaults=values)[0]
    open_ones = Report.objects.filter(link=link, user=None).exclude(status__in=Report.CLOSED)
    if open_ones.count() >= MOST_OF_VISITORS:
        return None
    return Report.objects.create(link=link, **values)


def _checked(reason: str, text: str) -> str:
    """Return the text of a report as it is stored. Raises ChatError for a wrong reason or text."""
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
    return text
