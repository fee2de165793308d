"""Feedback on replies: one for each user and reply, which its user can change and remove."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from django.utils.translation import gettext as _

from chat import access, protocol
from chat.errors import ChatError
from chat.models import Message, MessageFeedback, Run
from chat.models.feedback import TEXT_LENGTH
from chat.rendering.message import rating_html
from chat.streaming import user_channel

if TYPE_CHECKING:
    from accounts.models import User


def reply(user: User, message_id: UUID) -> Message:
    """Return a reply with a text, which the user may read. Raises ChatError `not_found`."""
    found = access.message(user, message_id, write=True)
    if found.role != Message.Role.ASSISTANT or not found.text:
        raise ChatError("not_found")
    return found


def find(user: User, message: Message) -> MessageFeedback | None:
    """Return the feedback of a user on a reply."""
    return MessageFeedback.objects.filter(message=message, user=user).first()


def rate(
    *, user: User, message_id: UUID, rating: str, reason: str | None = None, text: str | None = None
) -> Message:
    """Store the rating of a reply, "good" or "bad"; a reason or text that is None stays as it is.

    A reason belongs to a bad rating alone. Raises ChatError `not_found`, `bad_json`, `bad_text` and
    `text_too_long`.
    """
    if rating not in MessageFeedback.Rating or (reason and reason not in MessageFeedback.Reason):
        raise ChatError("bad_json", _("Choose one of the options. Nothing was saved."))
    text = None if text is None else text.strip()
    if text is not None and not protocol.is_storable(text):
        raise ChatError("bad_text")
    if text is not None and len(text) > TEXT_LENGTH:
        raise ChatError(
            "text_too_long",
            _("The text is longer than %(most)d characters. Shorten it.") % {"most": TEXT_LENGTH},
        )
    message = reply(user, message_id)
    run = Run.objects.filter(message=message).first()
    fields: dict[str, object] = {
        "rating": rating,
        "model_id": (run.answered_by_id or run.model_id) if run else None,
    }
    if rating == MessageFeedback.Rating.GOOD:
        reason = ""
    if reason is not None:
        fields["reason"] = reason
    if text is not None:
        fields["text"] = text
    MessageFeedback.objects.update_or_create(message=message, user=user, defaults=fields)
    return _announce(user, message, rating)


def remove(*, user: User, message_id: UUID) -> Message:
    """Remove the rating of a reply, if there is one. Raises ChatError `not_found`."""
    message = reply(user, message_id)
    MessageFeedback.objects.filter(message=message, user=user).delete()
    return _announce(user, message, "")


def _announce(user: User, message: Message, rating: str) -> Message:
    message.rating = rating
    user_channel.announce_feedback(
        user.pk,
        protocol.FeedbackChanged(message=message.pk, rating=rating, html=rating_html(message)),
    )
    return message
