"""The tables of chat. Rules that must hold whatever the code does are database constraints."""

from __future__ import annotations

from chat.models.announcements import Announcement, AnnouncementDismissal
from chat.models.api_calls import ApiCall
from chat.models.attachments import Attachment, MessageAttachment
from chat.models.base import new_id
from chat.models.catalogue import (
    EFFORTS,
    ICONS,
    Assistant,
    Continuation,
    LanguageModel,
    Provider,
)
from chat.models.composing import Draft, NextMessage
from chat.models.conversations import Conversation
from chat.models.devices import PushSubscription
from chat.models.feedback import MessageFeedback
from chat.models.idempotency import IdempotencyKey
from chat.models.messages import Message, MessagePart, Siblings
from chat.models.moderation import ModerationRule, Report
from chat.models.notes import UserNote
from chat.models.preferences import ChatPreference
from chat.models.projects import Project
from chat.models.prompts import Prompt
from chat.models.runs import Run
from chat.models.search import SearchEntry, SearchPosition
from chat.models.sharing import ConversationShare, PublicLink
from chat.models.transfers import ChatExport, ChatImport, ImportedChat
from chat.models.webhooks import Webhook, WebhookDelivery

__all__ = [
    "EFFORTS",
    "ICONS",
    "Announcement",
    "AnnouncementDismissal",
    "ApiCall",
    "Assistant",
    "Attachment",
    "ChatExport",
    "ChatImport",
    "ChatPreference",
    "Continuation",
    "Conversation",
    "ConversationShare",
    "Draft",
    "IdempotencyKey",
    "ImportedChat",
    "LanguageModel",
    "Message",
    "MessageAttachment",
    "MessageFeedback",
    "MessagePart",
    "ModerationRule",
    "NextMessage",
    "Project",
    "Prompt",
    "Provider",
    "PublicLink",
    "PushSubscription",
    "Report",
    "Run",
    "SearchEntry",
    "SearchPosition",
    "Siblings",
    "UserNote",
    "Webhook",
    "WebhookDelivery",
    "new_id",
]
