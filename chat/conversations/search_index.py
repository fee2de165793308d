"""Fills the index of the search, outside of the path of a message.

A walk over all messages by their id, which sorts by time: the first turns index what is stored already
(backfill), and each later turn what was stored since. Messages of the last HORIZON are looked at again,
as the text of a reply is stored at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db import transaction

from chat.conversations import search_words
from chat.models.search import SearchPosition
from chatproject.lib.db import prepared

BATCH = 500  # messages of one transaction
HORIZON = timedelta(hours=6)
BEGINNING = UUID(int=0)

MISSING = """
FROM chat_message AS message
WHERE message.id > %(position)s AND message.status <> 'pending' AND message.text <> ''
  AND NOT EXISTS (SELECT FROM chat_searchentry AS entry WHERE entry.message_id = message.id)
"""

# The owner is a lexeme as well: the index then intersects a frequent word with the messages of one user.
INSERT = """
INSERT INTO chat_searchentry (message_id, owner_id, conversation_id, text, vector)
SELECT message.id, conversation.owner_id, conversation.id, part.text,
  to_tsvector('simple', part.words) || to_tsvector(part.language::regconfig, part.words)
  || array_to_tsvector(string_to_array(part.characters, ' '))
  || array_to_tsvector(ARRAY['owner=' || conversation.owner_id])
FROM unnest(%(ids)s::uuid[], %(texts)s::text[], %(words)s::text[], %(languages)s::text[], %(characters)s::text[])
  AS part(id, text, words, language, characters)
JOIN chat_message AS message ON message.id = part.id
JOIN chat_conversation AS conversation ON conversation.id = message.conversation_id
ON CONFLICT DO NOTHING
"""


def is_behind() -> bool:
    """Return whether a message is not indexed yet."""
    position = SearchPosition.objects.values_list("message_id", flat=True).first() or BEGINNING
    return bool(prepared.all(f"SELECT 1 {MISSING} LIMIT 1", {"position": position}))


def index_batch(now: datetime | None = None) -> bool:
    """Index up to BATCH messages; return whether there may be more."""
    newest = (now or datetime.now(UTC)) - HORIZON
    horizon = UUID(
        int=int(newest.timestamp() * 1_000) << 80
    )  # the smallest of version 7 of that time
    with transaction.atomic():
        row, _ = SearchPosition.objects.select_for_update().get_or_create(
            pk=1, defaults={"message_id": BEGINNING}
        )
        found = prepared.all(
            f"SELECT message.id, left(message.text, %(most)s) {MISSING} ORDER BY message.id LIMIT %(batch)s",
            {
                "position": row.message_id,
                "most": search_words.MAX_INDEXED,
                "batch": BATCH,
            },
        )
        if found:
            add(found)
        is_full = len(found) == BATCH
        position = min(found[-1][0], horizon) if is_full else horizon
        if position > row.message_id:
            row.message_id = position
            row.save(update_fields=["message_id"])
    return is_full


def add(messages: Sequence[tuple[UUID, str]]) -> None:
    """Index messages: the id of each, and its text or the beginning of it.

    The walk passes only messages of a later time than its position: code that stores older ones calls this.
    """
    texts = [text[: search_words.MAX_INDEXED] for _id, text in messages]
    words = [search_words.normalize(text) for text in texts]
    prepared.change(
        INSERT,
        {
            "ids": [id for id, _text in messages],
            "texts": texts,
            "words": words,
            "languages": [search_words.language_of(each) for each in words],
            "characters": [" ".join(search_words.characters_of(each)) for each in words],
        },
    )
