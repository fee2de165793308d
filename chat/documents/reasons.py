"""Reasons for which a document is refused or could not be read: codes and their words."""

from __future__ import annotations

from django.conf import settings
from django.utils.translation import gettext
from django.utils.translation import gettext_noop as _

from chat.documents.datasets.words import REASONS as TABLE_REASONS
from chatproject.lib import languages

# Each text says what happened and what to do. These are sources (gettext): `sentence` translates them.
REASONS: dict[str, str] = {
    "empty": _("The file is empty. Choose another one."),
    "too_large": _("The file is larger than %(most)s. Upload a part of it."),
    "unknown_type": _(
        "This type of file cannot be read. Upload a chat export (WhatsApp, Telegram), a text, Markdown, CSV, XLSX,"
        " PDF or DOCX."
    ),
    "image": _("This is an image. Attach it to a message instead."),
    "old_office": _(
        "This is a file of an old Office version. Save it as DOCX, XLSX or PDF and upload that."
    ),
    "encrypted": _("The file is protected by a password. Upload a copy without one."),
    "broken_file": _("The file is damaged and cannot be read. Export or save it again."),
    "zip_without_chat": _(
        "The zip has no chat. Upload the zip that WhatsApp exported, or unpack it and upload one file."
    ),
    "zip_many_texts": _("The zip has several texts. Unpack it and upload the files you want."),
    "nested_archive": _("The zip has only other archives in it. Unpack it and upload one file."),
    "zip_too_many": _("The zip has too many files. Upload only the text of the chat."),
    "expands_too_much": _(
        "The file unpacks to far more than it seems. Upload the text of the chat itself."
    ),
    "not_a_chat": _("No messages were found. Export the chat again, as text or JSON."),
    "empty_chat": _("The chat has no messages. Export a chat with messages."),
    "invalid_json": _("The JSON of the export is damaged. Export the chat again."),
    "choose_chat": _("The export has several chats. Choose one of them."),
    "no_text": _(
        "No text was found. If these are scanned pages, run text recognition (OCR) on the file first."
    ),
    "too_many_pages": _("The file has more than %(pages)s pages. Upload a part of it."),
    "too_long": _("The file has too much text. Upload a part of it."),
    "too_slow": _("Reading the file took too long. Upload a part of it, or save it anew."),
    "too_much_memory": _("Reading the file takes too much memory. Upload a part of it."),
    "crashed": _("The file could not be read. Save it anew or in another format, and upload that."),
    "file_missing": _(
        "The uploaded file is no longer stored. Delete this entry and upload it again."
    ),
    "interrupted": _("Reading the file was interrupted several times on our side. Try again."),
}


def sentence(code: str) -> str:
    """Return the words of a reason in the active language; those of any failure for a code of another release."""
    if code in TABLE_REASONS:
        return str(TABLE_REASONS[code])
    return gettext(REASONS.get(code, REASONS["crashed"])) % {
        "most": languages.size(settings.DOCUMENT_MAX_BYTES),
        "pages": languages.number(settings.DOCUMENT_MAX_PAGES),
    }
