"""Announcements to all open pages of a user: balance, conversations, runs.

A page is correct again after its next reload, so an announcement that is lost while Redis is
unreachable (`publish` logs it) does no lasting harm. Call these functions after the commit.
"""

from __future__ import annotations

import logging
from typing import Any

from billing import credits
from billing.reports import balances
from chat import protocol
from chat.models import ChatExport, ChatImport, Conversation, Project, Run
from chat.streaming import groups
from chatproject.lib import db
from chatproject.lib.pubsub.layer import publish

logger = logging.getLogger(__name__)

# Sent to the user's sockets, and not to their clients: each socket then checks its session.
ACCESS_CHANGED = b'{"type":"access.changed"}'


def announce_access(*, user_id: int, **kwargs: Any) -> None:
    """Have the user's open sockets check their sessions; the receiver of `access_changed`."""
    publish(groups.user_group(user_id), ACCESS_CHANGED)


def announce_balance(*, account_id: int, **kwargs: Any) -> None:
    """Publish the balance of an account; the receiver of billing.signals.balance_changed.

    It runs after the commit, so a failure here must not look like a failed transaction.
    """
    try:
        found = balances.brief(account_id)
    except db.UNREACHABLE as error:
        logger.warning("the balance of account %d was not announced: %s", account_id, error)
        return
    event = protocol.Balance(
        balance=found.balance,
        held=found.held,
        available=found.available,
        shown=credits.show(found.available),
        low=found.low,
    )
    publish(groups.user_group(found.user_id), event.encode())


def announce_conversation(
    conversation: Conversation, *, active: bool = False, restored: bool = False
) -> None:
    """Publish the title, time and state of a conversation to its owner's pages.

    Whether it was deleted is read from the row: a run can end in a deleted conversation. `restored`: its
    deletion was undone. Of a temporary conversation, which is in no list, only the deletion is published.
    """
    if conversation.temporary and conversation.deleted_at is None:
        return
    event = protocol.ConversationUpdated(
        conversation=conversation.id,
        title=conversation.name,
        url=conversation.get_absolute_url(),
        updated_at=conversation.updated_at.isoformat(),
        active=active,
        deleted=conversation.deleted_at is not None,
        restored=restored,
        pinned=conversation.pinned_at is not None,
        archived=conversation.archived_at is not None,
        unread=conversation.unread,
        project=conversation.project_id,
    )
    publish(groups.user_group(conversation.owner_id), event.encode())


def announce_project(project: Project, *, restored: bool = False) -> None:
    """Publish a project to its owner's pages; `restored`: its deletion was undone."""
    event = protocol.ProjectUpdated(
        project=project.id,
        name=project.name,
        url=project.get_absolute_url(),
        deleted=project.deleted_at is not None,
        restored=restored,
    )
    publish(groups.user_group(project.owner_id), event.encode())


def announce_branch(owner_id: int, event: protocol.BranchSelected) -> None:
    """Publish the branch that a user chose to the user's pages."""
    publish(groups.user_group(owner_id), event.encode())


def announce_transfer(one: ChatImport | ChatExport) -> None:
    """Publish the progress or the end of an import or export to its owner's pages."""
    event = protocol.TransferUpdated(
        kind=one.KIND, id=one.pk, status=one.status, percent=one.percent
    )
    publish(groups.user_group(one.owner_id), event.encode())


def announce_document(owner_id: int, event: protocol.DocumentUpdated) -> None:
    """Publish the state of a document to its owner's pages."""
    publish(groups.user_group(owner_id), event.encode())


def announce_feedback(user_id: int, event: protocol.FeedbackChanged) -> None:
    """Publish a user's rating of a reply to the user's pages."""
    publish(groups.user_group(user_id), event.encode())


def announce_instructions(owner_id: int, event: protocol.InstructionsChanged) -> None:
    """Publish the instructions of a conversation to its owner's pages."""
    publish(groups.user_group(owner_id), event.encode())


def announce_settings(user_id: int, event: protocol.SettingsChanged) -> None:
    """Publish the settings that a user chose to the user's pages."""
    publish(groups.user_group(user_id), event.encode())


def announce_next(owner_id: int, event: protocol.NextUpdated) -> None:
    """Publish the state of a conversation's next message to its owner's pages."""
    publish(groups.user_group(owner_id), event.encode())


def announce_draft(user_id: int, event: protocol.DraftUpdated) -> None:
    """Publish a draft to its user's pages."""
    publish(groups.user_group(user_id), event.encode())


def announce_run(run: Run, event: protocol.RunQueued) -> None:
    """Publish a new run, and the conversation that it makes active, to its owner's pages."""
    announce_conversation(run.conversation, active=True)
    publish(groups.user_group(run.conversation.owner_id), event.encode())


def announce_share_end(user_id: int, event: protocol.ShareEnded) -> None:
    """Publish to the pages of a reader that a conversation is no longer shared with the reader."""
    publish(groups.user_group(user_id), event.encode())
