"""The tables, keys and files of chat that can hold personal data."""

from __future__ import annotations

from chat.privacy import erase, files
from chatproject.lib import personal_data
from chatproject.lib.personal_data import PersonalTable

IN_CHATS = "In the documents of the chats, in the folders JSON and Markdown."


def register() -> None:
    """Register tables, files, the closing, steps of the purge and keys in Redis."""
    add_tables()
    personal_data.declare_impersonal(
        {
            "chat.Announcement": "Texts of staff.",
            "chat.Announcement_groups": "Audiences of announcements.",
            "chat.Provider": "The site's providers.",
            "chat.LanguageModel": "The site's models.",
            "chat.LanguageModel_groups": "Groups that may use a model.",
            "chat.Assistant_groups": "Groups that may use an assistant of staff.",
            "tools.McpServer": "The site's servers of tools.",
            "tools.McpServer_groups": "Groups that may use a server.",
            "tools.McpTool": "The tools of servers.",
            "chat.ModerationRule": "Rules of staff.",
            "chat.SearchPosition": "An id.",
            "insights.Category": "The site's categories of insights.",
            "insights.InsightType": "The site's types of insights.",
        }
    )
    personal_data.add_closing(erase.close)
    personal_data.add_step(20, "conversations", erase.erase_conversations)
    personal_data.add_step(21, "files", erase.erase_files)
    personal_data.add_step(22, "assistants", erase.erase_assistants)
    personal_data.add_step(23, "documents", erase.erase_documents)
    personal_data.add_step(90, "queue", erase.erase_queue)
    personal_data.add_documents(files.attachments)
    personal_data.add_documents(files.documents)
    personal_data.add_keys(
        {
            "run:": "Deleted with the run.",
            "places:": "Ids of runs, until they end.",
            "rq:": "Ids in jobs, which expire within a day; the user's throttle is deleted.",
            "queue:": "A figure of the site.",
            "insights:": "Passages of a document for a job of insights, for 20 minutes.",
        }
    )


def add_tables() -> None:
    """Register the tables; the purge deletes those without a step of their own in this order."""
    chats = "conversations"
    personal_data.add_tables(
        PersonalTable(
            model="chat.SearchEntry",
            user="owner",
            reason="An index of the messages.",
            erased_by=chats,
        ),
        PersonalTable(
            model="chat.NextMessage",
            user="conversation__owner",
            document="next-messages",
            erased_by=chats,
        ),
        PersonalTable(model="chat.Draft", document="drafts"),
        PersonalTable(
            model="chat.IdempotencyKey",
            reason="Keys that a program made up, and digests of its requests; removed after a day.",
        ),
        PersonalTable(
            model="chat.ConversationShare",
            user="owner|user",
            document="shares",
            omitted=("email",),
            erased_by=chats,
        ),
        # An archive that is passed on must not open the pages: their owner finds the links in the settings.
        PersonalTable(
            model="chat.PublicLink", user="owner", document="public-links", omitted=("token",)
        ),
        PersonalTable(
            model="chat.MessageAttachment",
            user="message__conversation__owner",
            reason=IN_CHATS,
            erased_by=chats,
        ),
        PersonalTable(
            model="chat.MessagePart",
            user="message__conversation__owner",
            reason=IN_CHATS,
            erased_by=chats,
        ),
        PersonalTable(
            model="chat.ApiCall",
            user="conversation__owner",
            document="api-calls",
            erased_by=chats,
        ),
        PersonalTable(
            model="tools.RunStep",
            user="run__user",
            reason="Steps of a reply that is being made; then they are parts of the message.",
            erased_by=chats,
        ),
        PersonalTable(
            model="chat.Run",
            document="runs",
            omitted=("worker", "prefix", "prefix_reasoning"),
            erased_by=chats,
        ),
        PersonalTable(
            model="chat.Message", user="conversation__owner", reason=IN_CHATS, erased_by=chats
        ),
        PersonalTable(model="chat.Conversation", user="owner", document="chats", erased_by=chats),
        PersonalTable(model="chat.MessageFeedback", document="feedback"),
        PersonalTable(
            model="chat.Report",
            document="reports",
            omitted=("assignee", "note", "status", "link", "conversation"),
        ),
        PersonalTable(model="chat.ImportedChat", user="owner", document="imported-chats"),
        PersonalTable(
            model="chat.ChatImport",
            user="owner",
            document="imports",
            omitted=("file",),
            erased_by="files",
        ),
        PersonalTable(
            model="chat.ChatExport",
            user="owner",
            document="exports",
            omitted=("file",),
            erased_by="files",
        ),
        PersonalTable(
            model="chat.Attachment",
            user="owner",
            document="files",
            omitted=("file", "thumbnail"),
            erased_by="files",
        ),
        PersonalTable(
            model="chat.Assistant", user="owner", document="assistants", erased_by="assistants"
        ),
        PersonalTable(model="chat.Prompt", user="owner", document="prompts"),
        PersonalTable(
            model="insights.Insight",
            user="job__owner",
            document="insights",
            omitted=("prompt", "keywords", "schema"),
            erased_by="documents",
        ),
        PersonalTable(
            model="insights.InsightJob",
            user="owner",
            document="insight-jobs",
            erased_by="documents",
        ),
        PersonalTable(
            model="documents.Block",
            user="document__owner",
            reason="The texts of the uploaded documents, which are in the folder Documents.",
            erased_by="documents",
        ),
        PersonalTable(
            model="documents.Chunk",
            user="document__owner",
            reason="Made of the blocks, for the search.",
            erased_by="documents",
        ),
        PersonalTable(
            model="documents.ConversationDocument",
            user="document__owner",
            document="documents-of-chats",
            erased_by="documents",
        ),
        PersonalTable(
            model="documents.Dataset",
            user="document__owner",
            reason="Made of the uploaded tables, which are in the folder Documents.",
            erased_by="documents",
        ),
        PersonalTable(
            model="documents.TableResult",
            user="conversation__owner",
            reason="Computed from the uploaded tables, which are in the folder Documents.",
            erased_by=chats,
        ),
        PersonalTable(
            model="documents.StatisticsLink",
            user="owner",
            document="statistics-links",
            omitted=("token", "card"),
            erased_by="documents",
        ),
        PersonalTable(
            model="documents.Document",
            user="owner",
            document="documents",
            omitted=("file",),
            erased_by="documents",
        ),
        PersonalTable(
            model="documents.DocumentIndex",
            user="document__owner",
            reason="The state of the search's index.",
            erased_by="documents",
        ),
        PersonalTable(model="chat.Project", user="owner", document="projects"),
        PersonalTable(
            model="chat.PushSubscription",
            document="devices",
            omitted=("auth", "p256dh", "session_key"),
        ),
        PersonalTable(
            model="chat.WebhookDelivery", user="webhook__owner", document="webhook-deliveries"
        ),
        PersonalTable(
            model="chat.Webhook",
            user="owner",
            document="webhooks",
            omitted=("secret", "old_secret"),
        ),
        PersonalTable(
            model="tools.McpConnection",
            document="connected-tools",
            omitted=("state_hash", "encrypted_verifier", "encrypted_code", "encrypted_tokens"),
        ),
        PersonalTable(model="chat.UserNote", document="notes", omitted=("call",)),
        PersonalTable(model="chat.ChatPreference", document="chat-preferences"),
        PersonalTable(model="chat.AnnouncementDismissal", document="closed-announcements"),
    )
