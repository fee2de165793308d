"""Sharing of conversations with named readers and by public links.

chat.access decides about readers and links; this module makes them, ends them and reads what they show.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from unicodedata import category
from uuid import UUID

from allauth.account.models import EmailAddress
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail import send_mail
from django.core.validators import validate_email
from django.db import transaction
from django.db.models import Q, QuerySet
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from chat import access, protocol
from chat.conversations import branches
from chat.conversations.path import path_to_root
from chat.errors import ChatError
from chat.models import Conversation, ConversationShare, Message, MessagePart, PublicLink, Run
from chat.streaming import user_channel
from chatproject.lib import db, languages, rate_limits
from chatproject.lib.db import prepared
from chatproject.lib.mail import outbox
from chatproject.lib.stored_limits import uses

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

MOST_READERS = 50  # of one conversation
MOST_LINKS = 20  # of one conversation
MOST_DAYS = 365  # of a link with an end
NAME_LENGTH = 50
MESSAGES = 100  # on one page of a shared conversation
LISTED = 50  # rows of one page of a list


# --- With named users -------------------------------------------------------------------------


def share(*, user: User, conversation_id: UUID, email: str) -> ConversationShare:
    """Let the user who has verified an e-mail address read a conversation; write to the address about it.

    Idempotent: a second call changes and sends nothing. The answer is the same whether the address has an account
    or not. Raises ChatError `not_found`, `not_allowed`, `bad_text` for an address that is none, `too_many`, and
    RateLimited.
    """
    conversation = _shareable(user, conversation_id, settings.SHARE_WITH_USERS)
    email = email.strip().lower()
    try:
        validate_email(email)
    except ValidationError as error:
        raise ChatError("bad_text", _("Enter a valid e-mail address.")) from error
    if EmailAddress.objects.filter(user=user, email__iexact=email).exists() or (
        email == user.email.lower()
    ):
        raise ChatError("bad_text", _("This is your own address. Enter another one."))
    found = ConversationShare.objects.filter(conversation=conversation, email=email).first()
    if found is not None:
        return found
    uses.hit("share_mails", user.pk)
    owners = EmailAddress.objects.select_related("user").filter(email__iexact=email, verified=True)
    reader = owners.first()
    with transaction.atomic():
        _lock(conversation)
        if conversation.shares.count() >= MOST_READERS:
            raise ChatError(
                "too_many",
                _("A chat can have %(most)d readers. Remove one first.") % {"most": MOST_READERS},
            )
        made, is_new = ConversationShare.objects.get_or_create(
            conversation=conversation,
            email=email,
            defaults={"owner": user, "user": reader.user if reader else None},
        )
        if is_new:
            db.after_commit(_invite, made, reader.user.language if reader else "")
    return made


def _shareable(user: User, conversation_id: UUID, is_on: bool) -> Conversation:
    conversation = access.conversation(user, conversation_id, write=True)
    if not is_on:
        raise ChatError("not_allowed", _("This site does not allow this kind of sharing."))
    if conversation.temporary:
        raise ChatError("not_allowed", _("A temporary chat cannot be shared. Keep it first."))
    return conversation


def _lock(conversation: Conversation) -> None:
    """Lock a conversation until the COMMIT; raises ChatError `not_found` if it was deleted meanwhile."""
    rows = Conversation.objects.not_deleted().filter(pk=conversation.pk)
    if rows.select_for_update(no_key=True).first() is None:
        raise ChatError("not_found")


def _invite(made: ConversationShare, language: str) -> None:
    """Write to the address of a share, unless it has received too many of these mails from all users."""
    if not outbox.is_configured():
        return
    try:
        uses.hit("share_mails_address", made.email, reported=False)
    except rate_limits.RateLimited:
        logger.warning("no mail about a share was sent: its address received too many")
        return
    page = reverse("chat:conversation", args=[made.conversation_id])
    with languages.use(language or languages.active()):
        # Without the title, a text of a user's choice that would reach any address.
        context = {
            "sharer": _sender(made.owner),
            "email": made.email,
            "site_name": settings.SITE_NAME,
            "link": f"{settings.SITE_URL}{page}" if settings.SITE_URL else "",
        }
        subject = _("%(site)s: A chat from %(sharer)s") % {
            "site": settings.SITE_NAME,
            "sharer": context["sharer"],
        }
        send_mail(subject, render_to_string("chat/email/shared.txt", context), None, [made.email])


def _sender(owner: User) -> str:
    # A name of letters alone: a mail to any address must not carry a link or a message of a user's choice.
    is_name = all(one in " -'\u2019" or category(one)[0] in "LM" for one in owner.display_name)
    return owner.signature if is_name else owner.email


def bind(*, user: User, email: str) -> None:
    """Give a user the shares for an address that the user has just verified."""
    ConversationShare.objects.filter(email=email.lower(), user=None).update(user=user)


def email_saved(*, instance: EmailAddress, **_signal: Any) -> None:
    """Bind shares to the account of a verified address; the receiver of its `post_save`."""
    if instance.verified:
        bind(user=instance.user, email=instance.email)


def unshare(*, user: User, share_id: UUID) -> ConversationShare:
    """End a share, also on the open sockets of its reader. Raises ChatError `not_found`."""
    found = access.own(user, ConversationShare, share_id)
    found.delete()
    _announce_end([found])
    return found


def _announce_end(shares: Iterable[ConversationShare]) -> None:
    for one in shares:
        if one.user_id is not None:
            event = protocol.ShareEnded(conversation=one.conversation_id)
            db.after_commit(user_channel.announce_share_end, one.user_id, event)


def owner_changed(*, user_id: int, **_signal: Any) -> None:
    """End the open pages of the readers of a user who was locked; the receiver of `access_changed`.

    The shares stay, and hold again when the account is opened. Pages that miss the event check every 5 seconds.
    """
    if settings.SHARE_WITH_USERS:
        _announce_end(ConversationShare.objects.filter(owner=user_id, owner__is_active=False))


def shared_with(user: User, before: str = "") -> tuple[list[ConversationShare], str]:
    """Return a page of the shares that a user reads, newest first, and the cursor of the next page."""
    rows = ConversationShare.objects.select_related("conversation", "owner").filter(
        user=user,
        owner__is_active=True,
        conversation__deleted_at=None,
        conversation__temporary=False,
    )
    return page_of(rows if settings.SHARE_WITH_USERS else rows.none(), before)


# --- By link ----------------------------------------------------------------------------------


def publish(
    *,
    user: User,
    conversation_id: UUID,
    live: bool = False,
    days: int | None = None,
    shown_name: str = "",
    shows_reasoning: bool = False,
) -> PublicLink:
    """Make a public link: a snapshot of the present branch, or a `live` one that follows the conversation.

    It expires after `days`. `shown_name` names the author, who is otherwise not named. Raises ChatError `not_found`,
    `not_allowed`, `bad_setting`, `bad_text`, `too_many`.
    """
    conversation = _shareable(user, conversation_id, settings.SHARE_BY_LINK)
    if days is not None and not 1 <= days <= MOST_DAYS:
        raise ChatError("bad_setting", _("Choose one of the options."))
    shown_name = " ".join(shown_name.split())
    if len(shown_name) > NAME_LENGTH or not protocol.is_storable(shown_name):
        raise ChatError(
            "bad_text",
            _("A name has at most %(most)d characters. Shorten it.") % {"most": NAME_LENGTH},
        )
    with transaction.atomic():
        _lock(conversation)
        last = _last_finished(conversation)
        if last is None:
            raise ChatError("not_found", _("This chat has no messages yet. Send one first."))
        if conversation.links.count() >= MOST_LINKS:
            raise ChatError(
                "too_many",
                _("A chat can have %(most)d links. End one first.") % {"most": MOST_LINKS},
            )
        return PublicLink.objects.create(
            conversation=conversation,
            owner=user,
            last=None if live else last,
            title=conversation.name,
            shown_name=shown_name,
            shows_reasoning=shows_reasoning,
            expires_at=timezone.now() + timedelta(days=days) if days else None,
        )


def _last_finished(conversation: Conversation) -> UUID | None:
    leaf = conversation.leaf
    if leaf is not None and leaf.status == Message.Status.PENDING:
        return leaf.parent_id
    return leaf.pk if leaf else None


def end_link(*, user: User, link_id: UUID) -> PublicLink:
    """End a public link. Raises ChatError `not_found`."""
    found = access.own(user, PublicLink, link_id)
    found.delete()
    return found


# --- What is shared ---------------------------------------------------------------------------


def shares_of(user: User, before: str = "") -> tuple[list[ConversationShare], str]:
    """Return a page of a user's own shares, newest first, and the cursor of the next page."""
    return page_of(
        ConversationShare.objects.select_related("conversation").filter(owner=user), before
    )


def links_of(user: User, before: str = "") -> tuple[list[PublicLink], str]:
    """Return a page of a user's own public links, newest first, and the cursor of the next page."""
    return page_of(PublicLink.objects.select_related("conversation").filter(owner=user), before)


def page_of(rows: QuerySet[Any], before: str) -> tuple[list[Any], str]:
    """Return a page of rows, newest first, and the cursor of the next page. Raises ChatError `not_found`."""
    try:
        rows = rows.filter(pk__lt=UUID(before)) if before else rows
    except ValueError as error:
        raise ChatError("not_found") from error
    found = list(rows.order_by("-pk")[: LISTED + 1])
    return found[:LISTED], str(found[LISTED - 1].pk) if len(found) > LISTED else ""


def end_all(conversations: Iterable[Conversation]) -> None:
    """End all shares and links of conversations that were deleted."""
    _end(Q(conversation__in=[one.pk for one in conversations]))


def end_all_of(user: User) -> None:
    """End all shares and links that a user has made, and the shares that the user reads: the account is deleted."""
    _end(Q(owner=user))
    ConversationShare.objects.filter(user=user).delete()


def end(rows: Iterable[ConversationShare | PublicLink]) -> None:
    """End shares and links: staff stop an abuse."""
    _end(Q(pk__in=[one.pk for one in rows]))


def _end(which: Q) -> None:
    shares = list(ConversationShare.objects.filter(which))
    if shares:
        ConversationShare.objects.filter(pk__in=[one.pk for one in shares]).delete()
        _announce_end(shares)
    PublicLink.objects.filter(which).delete()


# --- Reading ----------------------------------------------------------------------------------


PATH = f"""
{path_to_root("%(last)s", branches.LONGEST_PATH)}
SELECT id FROM path ORDER BY depth DESC
"""  # noqa: S608 # of names alone


@dataclass(frozen=True, slots=True)
class Part:
    """A page of a shared branch: its messages, oldest first, its number from 1 and the number of pages.

    `run` generates the last message; `last` is the last message of the whole branch.
    """

    messages: list[Message]
    page: int
    pages: int
    last: UUID | None
    run: UUID | None = None

    @property
    def is_last(self) -> bool:
        """Whether it has the end of the branch."""
        return self.page == self.pages


def for_link(link: PublicLink, page: str = "") -> Part:
    """Return a page of what a public link shows, by default the first; three queries whatever the length."""
    return _part(link.last or link.conversation.leaf_id, page, "1", link.shows_reasoning)


def for_reader(conversation: Conversation, page: str = "") -> Part:
    """Return a page of what a reader of a conversation sees, by default the last, with the run that ends it."""
    run = Run.objects.active().filter(conversation=conversation, lane=0).first()
    shows_run = run is not None and (run.moves_leaf or run.message_id == conversation.leaf_id)
    last = run.message_id if run and shows_run else conversation.leaf_id
    return _part(last, page, "", False, run.pk if run and shows_run else None)


def shows(conversation: Conversation, message_id: UUID) -> bool:
    """Return whether a reader of a conversation sees a message: one of the present branch."""
    return [message_id] in map(list, prepared.all(PATH, {"last": conversation.leaf_id}))


def _part(
    last: UUID | None, page: str, default: str, shows_reasoning: bool, run: UUID | None = None
) -> Part:
    ids = [id for [id] in prepared.all(PATH, {"last": last})]
    pages = max(1, -(-len(ids) // MESSAGES))
    page = page or default
    number = min(int(page[:6]), pages) if page.isascii() and page.isdigit() else pages
    number = max(1, number)
    shown = ids[(number - 1) * MESSAGES : number * MESSAGES]
    parts: dict[UUID, list[MessagePart]] = {}
    messages = list(Message.objects.filter(pk__in=shown).order_by("pk"))
    kinds = [MessagePart.Kind.REASONING] if shows_reasoning else []
    if any("data-tool" in one.html for one in messages):
        kinds += MessagePart.OF_TOOLS
    if kinds:
        rows = MessagePart.objects.filter(message__in=shown, kind__in=kinds)
        for part in rows.order_by("message", "position"):
            parts.setdefault(part.message_id, []).append(part)
    place = {id: at for at, id in enumerate(shown)}
    messages.sort(key=lambda one: place[one.pk])
    for message in messages:
        message.ordered_parts = parts.get(message.pk, [])
    return Part(messages, number, pages, last, run)


# --- A copy -----------------------------------------------------------------------------------


def copy_shared(*, user: User, conversation_id: UUID, client_id: str) -> Conversation:
    """Copy what a reader sees of a conversation into a new one of the user. Raises ChatError like `branches.copy`."""
    conversation = access.conversation(user, conversation_id)
    return _copy(user, conversation, conversation.leaf_id, conversation.name, client_id)


def copy_public(*, user: User, link: PublicLink, client_id: str) -> Conversation:
    """Copy what a public link shows into a new conversation of the user. Raises ChatError like `branches.copy`."""
    last = link.last or link.conversation.leaf_id
    return _copy(user, link.conversation, last, link.name, client_id)


def _copy(
    user: User, conversation: Conversation, last: UUID | None, title: str, client_id: str
) -> Conversation:
    if last is None:
        raise ChatError("not_found")
    return branches.copy(user, conversation, last, client_id, title=title)
