"""Importing chats from a file: its upload, the job that stores them, and the clock's care for both.

A conversation is stored in one transaction, or not at all. It is found again by its id in the file, or by
the digest of its messages. The ids of messages are made from their content (`message_ids`), so another import
adds only those that are new.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.conf import settings
from django.db import DataError, IntegrityError, transaction
from django.db.models import F, Sum
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from chat.conversations import instructions, lifecycle, projects, search_index
from chat.errors import ChatError
from chat.models import (
    Assistant,
    Attachment,
    ChatImport,
    Conversation,
    ImportedChat,
    Message,
    Project,
    new_id,
)
from chat.rendering.document import to_html
from chat.streaming import user_channel
from chat.transfer import files, formats, reader, tracking, tree
from chat.transfer.reader import TooLarge, Unreadable
from chat.transfer.tracking import Progress, Superseded
from chatproject.lib import languages, private_files
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

DAY = timedelta(days=1)
MAX_NOTES = 100
MAX_FILES = 2_000  # of messages: an image takes up to half a second
ANNOUNCED = (
    40  # conversations that the user's pages add to their lists; others come with the next page
)
BATCH = 200  # rows of one statement


# --- The upload -------------------------------------------------------------------------------


def start(*, user: User, file_name: str, size: int, chunks: Iterable[bytes]) -> ChatImport:
    """Store an uploaded file and enqueue its import.

    Raises ChatError `limit_reached` for a file of more than IMPORT_MAX_BYTES and for a user who has imported
    IMPORT_DAY_BYTES of text in a day, `run_active` while another import of the user goes on, and `unavailable` if the
    file cannot be stored.
    """
    if size > settings.IMPORT_MAX_BYTES:
        raise ChatError("limit_reached", too_large())
    if stored_today(user) >= settings.IMPORT_DAY_BYTES:
        raise ChatError("limit_reached", day_is_full())
    try:
        name = private_files.store(chunks)
    except OSError as error:
        logger.exception("an upload could not be stored in PRIVATE_ROOT")
        raise ChatError(
            "unavailable", _("The file could not be stored. Try again later.")
        ) from error
    try:
        made = ChatImport.objects.create(
            owner=user, file=name, file_name=file_name[:255], size=size, beat_at=timezone.now()
        )
    except IntegrityError as error:
        private_files.remove(name)
        raise ChatError(
            "run_active",
            _("Another import is not finished. Wait for its end, then upload the file."),
        ) from error
    tracking.enqueue(made)
    return made


def too_large() -> str:
    """Return the sentence about a file of more than IMPORT_MAX_BYTES."""
    return _("The file is larger than %(most)s. Unpack an archive and upload its JSON file.") % {
        "most": languages.size(settings.IMPORT_MAX_BYTES)
    }


def stored_today(user: User) -> int:
    """Return how many bytes of text the user's imports of the last 24 hours have stored."""
    recent = ChatImport.objects.filter(owner=user, created_at__gt=timezone.now() - DAY)
    return recent.aggregate(total=Sum("stored"))["total"] or 0


def day_is_full() -> str:
    """Return the sentence about a user who has imported IMPORT_DAY_BYTES of text in a day."""
    return _(
        "You can import %(most)s of text in 24 hours. Import the file again tomorrow: it goes on from there."
    ) % {"most": languages.size(settings.IMPORT_DAY_BYTES)}


class DayFull(Exception):
    """The user has imported IMPORT_DAY_BYTES of text in a day."""


def newest(user: User) -> ChatImport | None:
    """Return the user's last import."""
    return ChatImport.objects.filter(owner=user).first()


# --- The job ----------------------------------------------------------------------------------


def run(import_id: UUID, attempt: int) -> None:
    """Store the chats of an upload, unless another job has claimed this attempt."""
    one = tracking.claim(ChatImport, import_id, attempt, known=0, skipped=0, notes=[])
    if one is None:
        return
    progress = Progress(one)
    try:
        error = _store_all(one, progress)
        # Chats that an earlier attempt at this import has stored are not counted twice.
        again = one.added + one.updated
        one.refresh_from_db(fields=["known"])
        progress.end(error, known=max(0, one.known - again))
    except Superseded:
        logger.info("%s was stopped, or left to another attempt", one)
        return
    private_files.remove(one.file)


def _store_all(one: ChatImport, progress: Progress) -> str:
    """Store the chats of a file; return the sentence about a file that could not be read to its end."""
    assistant = lifecycle.default_assistant(one.owner) or (
        Assistant.objects.filter(personal=False).first()
    )
    if assistant is None:
        return _("There is no model yet. Import the file again when there is one.")
    made: list[Conversation] = []
    is_known_kind = False
    error = ""
    progress.left = settings.IMPORT_DAY_BYTES - stored_today(one.owner)
    try:
        for document in reader.read(private_files.path(one.file), progress.reach):
            is_known_kind |= _store_one(one, document, assistant, made, progress)
    except Unreadable as unreadable:
        error = str(unreadable)
    except DayFull:
        error = day_is_full()
    except FileNotFoundError:
        error = _("The uploaded file was removed. Upload it again.")
    if not is_known_kind and not error:
        error = _(
            "The file has no chats of a known kind. Choose an export of ChatGPT, Claude, LibreChat,"
            " Open WebUI or Parley."
        )
    for conversation in made:
        user_channel.announce_conversation(conversation)
    return error


def _store_one(
    one: ChatImport,
    document: Any,
    assistant: Assistant,
    made: list[Conversation],
    progress: Progress,
) -> bool:
    """Store a conversation, or note why not; return whether it is of a known kind."""
    title = ""
    try:
        if isinstance(document, TooLarge):
            title = document.title
            raise Unreadable(_("It is too large."))
        if isinstance(document, dict):
            title = str(document.get("title") or document.get("name") or "")
        chat = formats.convert(document)
        if chat is None:
            return False
        count, conversation, size = _store(one, chat, tree.build(chat), assistant, progress)
        progress.left -= size
        progress.change(**{count: F(count) + 1}, stored=F("stored") + size)
        if conversation is not None:
            made.append(conversation)
            made.sort(key=lambda each: each.updated_at, reverse=True)
            del made[ANNOUNCED:]
    except Unreadable as unreadable:
        _note(one, title, str(unreadable), progress)
        progress.change(skipped=F("skipped") + 1)
    except (DataError, TypeError, ValueError, KeyError, AttributeError, RecursionError):
        logger.exception("a chat of import %s could not be stored", one.pk)
        _note(one, title, _("It has an unexpected form."), progress)
        progress.change(skipped=F("skipped") + 1)
    return True


def _note(one: ChatImport, title: str, sentence: str, progress: Progress) -> None:
    if len(one.notes) < MAX_NOTES:
        one.notes.append([tree.ODD.sub("\ufffd", title)[:100] or _("Chat"), sentence])
        progress.change(notes=one.notes)


# --- One conversation -------------------------------------------------------------------------


def _store(
    one: ChatImport, chat: formats.Chat, found: tree.Tree, assistant: Assistant, progress: Progress
) -> tuple[str, Conversation | None, int]:
    """Store the messages that are new.

    Return the counter that it belongs to, a changed conversation, and the bytes of new text. Raises DayFull.
    """
    digest = digest_of(found)
    source_id = tree.ODD.sub("\ufffd", chat.source_id)[:200] or f"digest:{digest}"
    origin = (
        ImportedChat.objects.select_related("conversation")
        .filter(owner=one.owner, source=chat.source, source_id=source_id)
        .first()
    )
    if chat.source == "parley" and _is_own(one, source_id):
        return "known", None, 0
    earlier = origin.conversation if origin and origin.conversation.deleted_at is None else None
    if earlier is not None and origin is not None and origin.digest == digest:
        return "known", None, 0
    conversation = earlier or _conversation(one, chat, found, assistant)
    ids = message_ids(conversation.pk, found, chat)
    known = set() if earlier is None else set(earlier.messages.values_list("pk", flat=True))
    size = sum(
        len(message.text.encode()) + len(message.reasoning.encode())
        for id, message in zip(ids, found.messages, strict=True)
        if id not in known
    )
    if size > progress.left:
        raise DayFull
    restored = _restore_files(one, ids, found, progress)
    rows = []
    for id, message in zip(ids, found.messages, strict=True):
        entries = restored[id][1] if id in restored else None
        rows.append((*_row(conversation, ids, id, message, chat), files.encoded(entries)))
        progress.beat()
    with transaction.atomic():
        if earlier is None:
            conversation.save(force_insert=True)
            Conversation.objects.filter(pk=conversation.pk).update(
                created_at=chat.created or conversation.updated_at
            )
        else:
            conversation = Conversation.objects.with_lock().get(pk=conversation.pk)
        count = sum(_insert(INSERT, rows[at : at + BATCH]) for at in range(0, len(rows), BATCH))
        links = [(id, made.pk) for id, (stored, _) in restored.items() for made in stored]
        for at in range(0, len(links), BATCH):
            _insert(INSERT_LINKS, links[at : at + BATCH])
        Attachment.objects.filter(pk__in=[pk for _id, pk in links]).update(expires_at=None)
        thoughts = [
            (id, message.reasoning)
            for id, message in zip(ids, found.messages, strict=True)
            if message.reasoning
        ]
        for at in range(0, len(thoughts), BATCH):
            _insert(INSERT_REASONING, thoughts[at : at + BATCH])
        origins = [
            (id, message.model, chat.source)
            for id, message in zip(ids, found.messages, strict=True)
            if message.model and message.role == "assistant"
        ]
        for at in range(0, len(origins), BATCH):
            _insert(INSERT_ORIGIN, origins[at : at + BATCH])
        texts = [
            (id, message.text)
            for id, message in zip(ids, found.messages, strict=True)
            if message.text
        ]
        for at in range(0, len(texts), BATCH):
            search_index.add(texts[at : at + BATCH])
        # A branch that the user has chosen or continued here stays.
        if conversation.leaf_id is None or conversation.leaf_id in ids:
            conversation.leaf_id = ids[found.leaf]
            Conversation.objects.filter(pk=conversation.pk).update(leaf=conversation.leaf_id)
        ImportedChat.objects.update_or_create(
            owner=one.owner,
            source=chat.source,
            source_id=source_id,
            defaults={"digest": digest, "conversation": conversation},
        )
        if earlier is None and chat.project:  # last, as it locks the project
            conversation.project = _project(one, chat)
            Conversation.objects.filter(pk=conversation.pk).update(project=conversation.project)
    if found.cut:
        sentence = _("%(count)d messages were cut after %(most)s characters.")
        _note(
            one,
            conversation.name,
            sentence % {"count": found.cut, "most": f"{tree.TEXT_CHARACTERS:,}"},
            progress,
        )
    lost = sum(entry.get("deleted", False) for _, all in restored.values() for entry in all)
    if lost:
        sentence = ngettext(
            "%(count)d file could not be stored.", "%(count)d files could not be stored.", lost
        )
        _note(one, conversation.name, sentence % {"count": lost}, progress)
    if earlier is None:
        return "added", conversation, size
    return ("updated", conversation, size) if count else ("known", None, 0)


def _restore_files(
    one: ChatImport, ids: Sequence[UUID], found: tree.Tree, progress: Progress
) -> dict[UUID, tuple[list[Attachment], list[dict[str, Any]]]]:
    """Store the files of messages that are new; return what `files.restored` does, by message.

    Images are decoded, so this happens before the transaction.
    """
    all = {
        id: message.attachments
        for id, message in zip(ids, found.messages, strict=True)
        if message.attachments
    }
    known = set(Message.objects.filter(pk__in=all).values_list("pk", flat=True)) if all else set()
    restored = {}
    for id, described in all.items():
        if id not in known:
            restored[id] = files.restored(one.owner, described, MAX_FILES - progress.files)
            progress.files += len(restored[id][1])
            progress.beat()
    return restored


def _project(one: ChatImport, chat: formats.Chat) -> Project | None:
    """Return the project of an imported conversation, by its name; None without one, or without room for it."""
    name = " ".join(tree.ODD.sub("\ufffd", chat.project).split())[: Project.NAME_CHARACTERS]
    if not name:
        return None
    instructions = tree.ODD.sub("\ufffd", chat.instructions)[: Project.INSTRUCTIONS_CHARACTERS]
    return projects.take(user=one.owner, name=name, instructions=instructions)


def _is_own(one: ChatImport, source_id: str) -> bool:
    """Whether a conversation that was exported here still exists."""
    try:
        mine = Conversation.objects.not_deleted().filter(pk=UUID(source_id), owner=one.owner)
    except ValueError:
        return False
    return bool(mine.exists())


def _conversation(
    one: ChatImport, chat: formats.Chat, found: tree.Tree, assistant: Assistant
) -> Conversation:
    line = " ".join(tree.ODD.sub("\ufffd", chat.title).split())
    times = [message.created for message in found.messages if message.created]
    updated = chat.updated or max(times, default=None) or chat.created or one.created_at
    return Conversation(
        id=new_id(),
        owner=one.owner,
        assistant=assistant,
        title=line[:100] or lifecycle.first_title(found.messages[0].text.strip() or "…"),
        titled_by=Conversation.TitledBy.PERSON,
        system_prompt=tree.ODD.sub("\ufffd", chat.system_prompt)[: instructions.LONGEST],
        updated_at=updated,
        archived_at=updated if chat.archived else None,
        pinned_at=updated if chat.pinned and not chat.archived and _has_room(one) else None,
    )


def _has_room(one: ChatImport) -> bool:
    """Whether the user can pin one more chat."""
    rows = Conversation.objects.not_deleted()
    pinned = rows.filter(owner=one.owner, pinned_at__isnull=False)
    return bool(pinned.count() < lifecycle.MAX_PINNED)


def digest_of(found: tree.Tree) -> str:
    """Return the digest of all messages of a conversation."""
    digest = hashlib.blake2b(digest_size=32)
    for message in found.messages:
        digest.update(
            f"{message.node.id}\0{message.parent}\0{message.role}\0".encode(errors="replace")
        )
        digest.update(f"{message.text}\0{message.reasoning}\0".encode())
    return digest.hexdigest()


# The first possible time of messages without one: any fixed time, as ids must not depend on the import.
UNDATED = datetime(2000, 1, 1, tzinfo=UTC)


def message_ids(conversation_id: UUID, found: tree.Tree, chat: formats.Chat) -> list[UUID]:
    """Return ids of version 7: the time, and a hash of the conversation, the message and its ancestors.

    Each is greater than its parent's, and the same in another import of the same messages.
    """
    ids: list[UUID] = []
    for message in found.messages:
        above = ids[message.parent] if message.parent is not None else None
        created = message.created or chat.created or UNDATED
        milliseconds = int(created.timestamp() * 1000)
        if above is not None:
            milliseconds = max(milliseconds, (above.int >> 80) + 1)
        content = f"{message.node.id}\0{message.role}\0{message.text}".encode(errors="replace")
        key = (above or conversation_id).bytes
        digest = hashlib.blake2b(content, key=key, digest_size=10).digest()
        bits = (milliseconds << 80) | int.from_bytes(digest, "big")
        bits = bits & ~(0xF << 76) | (7 << 76)
        ids.append(UUID(int=bits & ~(0b11 << 62) | (0b10 << 62)))
    return ids


def _row(
    conversation: Conversation,
    ids: Sequence[UUID],
    id: UUID,
    message: tree.Placed,
    chat: formats.Chat,
) -> tuple[Any, ...]:
    is_reply = message.role == "assistant"
    return (
        id,
        conversation.pk,
        ids[message.parent] if message.parent is not None else None,
        message.role,
        message.node.status if is_reply else "done",
        message.text,
        to_html(message.text) if is_reply and message.text else "",
        message.created or chat.created or conversation.updated_at,
    )


INSERT = """
INSERT INTO chat_message (id, conversation_id, parent_id, role, status, text, html, created_at, attached)
SELECT id, conversation_id, parent_id, role, status, text, html, created_at, attached::jsonb FROM unnest(
  %s::uuid[], %s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[],
  %s::text[]
) AS one(id, conversation_id, parent_id, role, status, text, html, created_at, attached)
ON CONFLICT (id) DO NOTHING
"""

INSERT_LINKS = """
INSERT INTO chat_messageattachment (id, message_id, attachment_id)
SELECT gen_random_uuid(), message_id, attachment_id
FROM unnest(%s::uuid[], %s::uuid[]) AS one(message_id, attachment_id)
ON CONFLICT DO NOTHING
"""

INSERT_REASONING = """
INSERT INTO chat_messagepart (message_id, position, kind, data)
SELECT id, 0, 'reasoning', json_build_object('text', thoughts)
FROM unnest(%s::uuid[], %s::text[]) AS one(id, thoughts)
ON CONFLICT (message_id, position) DO NOTHING
"""

INSERT_ORIGIN = """
INSERT INTO chat_messagepart (message_id, position, kind, data)
SELECT id, 1, 'origin', json_build_object('model', model, 'source', source)
FROM unnest(%s::uuid[], %s::text[], %s::text[]) AS one(id, model, source)
ON CONFLICT (message_id, position) DO NOTHING
"""


def _insert(sql: str, rows: Sequence[tuple[Any, ...]]) -> int:
    return prepared.change(sql, [list(column) for column in zip(*rows, strict=True)])


# --- The clock --------------------------------------------------------------------------------


def resume(now: datetime) -> None:
    """Enqueue imports again whose job or worker was lost; remove old files and rows.

    Raises redis.RedisError while the queue is unreachable.
    """
    interrupted = _("The import was interrupted. Upload the file again: it goes on from there.")
    tracking.resume(ChatImport, now, interrupted)
    private_files.sweep()
