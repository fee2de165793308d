"""Searches a user's conversations: their titles, and the words and parts of words of their messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import OperationalError
from django.utils.translation import gettext as _
from psycopg.errors import QueryCanceled

from chat.conversations import search_words
from chat.conversations.plain_text import plain
from chat.models import Conversation
from chatproject.lib.db import limits, prepared

if TYPE_CHECKING:
    from accounts.models import User

MAX_CHARACTERS = 200  # of a query
MAX_HITS = 30  # conversations of one result
MIN_PART = 3  # characters of a part of a word: a trigram
NEWEST = 1_000  # messages among which a frequent word is found
RANKED = 100  # of the matching messages, the newest
SCANNED = 5_000  # of the messages, the newest, for parts of words without the index of trigrams
# Bytes of the newest messages that are read for parts of words: Postgres compares some 50 MB a second without case.
READ_BYTES = 4_000_000
PARTS_SECONDS = 0.5  # for parts of words in all messages
BEFORE, AFTER = 60, 140  # characters of a snippet
AROUND = 600  # characters of the text, with its marks, that a snippet is made from on each side of the match

TRIGRAMS = "chat_search_trigrams"

# Stems of words in all languages, and whether the index of trigrams exists.
STEMS = """
SELECT word, array_agg(DISTINCT stem), to_regclass(%(index)s) IS NOT NULL
FROM unnest(%(words)s::text[]) AS word, unnest(%(languages)s::regconfig[]) AS language,
  unnest(tsvector_to_array(to_tsvector(language, word)) || ARRAY[word]) AS stem
GROUP BY word
"""

# A frequent word is found among the newest messages, read one by one; only for a rarer one all matches are
# read, by the index of words or trigrams. So none of them costs much, and Postgres need not guess: its
# estimates for words are far off. BETWEEN keeps it from the order of the primary key, in which other users'
# messages would be read as well; OFFSET 0 separates the reading of an index from the order.
FOUND = """
WITH newest AS (
  SELECT message_id, vector, text FROM chat_searchentry
  WHERE owner_id BETWEEN %(owner)s AND %(owner)s
  ORDER BY owner_id, message_id DESC LIMIT {newest}
), frequent AS MATERIALIZED (
  SELECT message_id, vector FROM newest AS entry WHERE {matches} LIMIT %(ranked)s
), found AS (
  SELECT message_id, vector FROM frequent
  WHERE {is_enough}
  UNION ALL
  (SELECT message_id, vector FROM (
    SELECT message_id, vector FROM chat_searchentry AS entry
    WHERE NOT {is_enough} AND owner_id = %(owner)s AND {matches} OFFSET 0
  ) AS rare ORDER BY message_id DESC LIMIT %(ranked)s)
), ranked AS (
  SELECT message_id, {rank} AS rank FROM found
)
SELECT entry.message_id, entry.text, conversation.id, conversation.title,
  conversation.updated_at, conversation.archived_at IS NOT NULL, project.name
FROM ranked JOIN chat_searchentry AS entry USING (message_id)
JOIN chat_conversation AS conversation ON conversation.id = entry.conversation_id
LEFT JOIN chat_project AS project ON project.id = conversation.project_id
WHERE conversation.deleted_at IS NULL AND NOT conversation.temporary
ORDER BY rank DESC, message_id DESC LIMIT %(most)s
"""
ENOUGH = "(SELECT count(*) >= %(most)s FROM frequent)"
PART = "entry.text ILIKE %(pattern)s"
BY_WORDS = FOUND.format(
    newest=NEWEST,
    matches="entry.vector @@ %(query)s::tsquery",
    is_enough=ENOUGH,
    rank="ts_rank(vector, %(query)s::tsquery, 1)",
)
BY_PHRASES = FOUND.format(
    newest=NEWEST,
    matches="entry.vector @@ %(query)s::tsquery AND entry.text ILIKE ALL (%(phrases)s::text[])",
    is_enough=ENOUGH,
    rank="ts_rank(vector, %(query)s::tsquery, 1)",
)
# Parts of words: of the newest messages, up to READ_BYTES, whose lengths are read without their texts.
SHOWN = """
SELECT entry.message_id, entry.text, conversation.id, conversation.title,
  conversation.updated_at, conversation.archived_at IS NOT NULL, project.name
FROM ({found}) AS entry
JOIN chat_conversation AS conversation ON conversation.id = entry.conversation_id
LEFT JOIN chat_project AS project ON project.id = conversation.project_id
WHERE conversation.deleted_at IS NULL AND NOT conversation.temporary
ORDER BY message_id DESC LIMIT %(most)s
"""
READ = f"""
  SELECT message_id, conversation_id, text FROM (
    SELECT newest.*, sum(octet_length(text)) OVER (ORDER BY message_id DESC) AS read FROM (
      SELECT message_id, conversation_id, text FROM chat_searchentry
      WHERE owner_id BETWEEN %(owner)s AND %(owner)s
      ORDER BY owner_id, message_id DESC LIMIT {{newest}}
    ) AS newest
  ) AS entry WHERE read <= {READ_BYTES} AND {PART}
"""  # noqa: S608 # of numbers alone
BY_READING = SHOWN.format(found=READ.format(newest=NEWEST))
BY_SCAN = SHOWN.format(found=READ.format(newest=SCANNED))  # without the index of trigrams
# Of all messages, by the index of trigrams. It finds candidates, whose texts are compared.
BY_TRIGRAMS = SHOWN.format(
    found=f"""
  SELECT message_id, conversation_id, text FROM chat_searchentry AS entry
  WHERE owner_id = %(owner)s AND {PART} OFFSET 0
"""  # noqa: S608 # of constants alone
)


@dataclass(frozen=True, slots=True)
class Hit:
    """A conversation that was found; `message` is the message to open it at, None for a hit in the title.

    `title` and `snippet` are parts of text, each with whether it matches.
    """

    conversation: UUID
    title: list[tuple[str, bool]]
    updated_at: datetime
    is_archived: bool
    project: str = ""
    message: UUID | None = None
    snippet: list[tuple[str, bool]] = field(default_factory=list)

    @property
    def url(self) -> str:
        if self.message is None:
            return f"/c/{self.conversation}/"
        return f"/c/{self.conversation}/?message={self.message}#m-{self.message}"


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search; `note` is a sentence about a query that cannot be searched, else empty."""

    hits: list[Hit]
    note: str = ""


def search(user: User, query: str) -> Found:
    """Search the user's conversations: titles first, then the best and newest messages, one for each.

    Five statements at most, whatever there is to search. Parts of words are searched for PARTS_SECONDS; then the
    result has those in the newest messages, and a note.
    """
    query = query.replace("\x00", " ").strip()
    if not query:
        return Found([])
    if len(query) > MAX_CHARACTERS:
        return Found([], _("The search has more than %d characters. Shorten it.") % MAX_CHARACTERS)
    parsed = search_words.parse(query)
    words = parsed.words
    if not words:
        named = list(_in_titles(user, search_words.Query([query], [], [])).values())
        return Found(
            named, "" if named else _("Type a word to search for. Signs alone are not found.")
        )
    rows = prepared.all(
        STEMS, {"words": words, "languages": list(search_words.LANGUAGES), "index": TRIGRAMS}
    )
    stems = {word: found for word, found, _has in rows}
    marker = _marker(stem for found in stems.values() for stem in found)
    hits = _in_titles(user, parsed)
    values: dict[str, Any] = {
        "owner": user.pk,
        "query": f"'owner={user.pk}' & {search_words.tsquery(words, parsed.excluded, stems)}",
        "phrases": [_pattern(phrase) for phrase in parsed.phrases],
        "ranked": RANKED,
        "most": 2 * MAX_HITS,  # several may be in one conversation
    }
    by_words = prepared.all(BY_PHRASES if parsed.phrases else BY_WORDS, values)
    _add(hits, by_words, marker)
    note = ""
    is_plain = not parsed.phrases and not parsed.excluded
    if is_plain and len(by_words) < values["most"] and len(query) >= MIN_PART:
        values = {"owner": user.pk, "pattern": _pattern(query), "most": values["most"]}
        part = re.compile(re.escape(search_words.fold(query)))
        has_trigrams = rows[0][2]
        newest = prepared.all(BY_READING if has_trigrams else BY_SCAN, values)
        if has_trigrams and len(newest) < values["most"]:
            all = _parts_in_all(values)
            note = (
                ""
                if all is not None
                else _(
                    "Older messages were not searched for parts of words: that takes too long. Type whole words."
                )
            )
            newest = newest if all is None else all
        _add(hits, newest, part)
    return Found(list(hits.values())[:MAX_HITS], note if len(hits) < MAX_HITS else "")


def _parts_in_all(values: dict[str, Any]) -> list[tuple[Any, ...]] | None:
    """Return the newest messages with a part of a word; None if it takes too long."""
    try:
        with limits.statements(PARTS_SECONDS):
            return prepared.all(BY_TRIGRAMS, values)
    except OperationalError as error:
        if not isinstance(error.__cause__, QueryCanceled):
            raise
        return None


def _pattern(text: str) -> str:
    """Return the pattern of LIKE for texts that contain `text`."""
    escaped = re.sub(r"([%_\\])", r"\\\1", text)
    return f"%{escaped}%"


def _marker(stems: Iterable[str]) -> re.Pattern[str]:
    """Return the expression of the words that begin with one of the stems, in a folded text."""
    longest_first = sorted({*stems}, key=len, reverse=True)
    spaceless = [re.escape(each) for each in longest_first if search_words.RUN.fullmatch(each)]
    spaced = [re.escape(each) for each in longest_first if not search_words.RUN.fullmatch(each)]
    choices = [rf"(?<![^\W_])(?:{'|'.join(spaced)})[^\W_]*"] if spaced else []
    return re.compile("|".join([*choices, *spaceless]))


def _in_titles(user: User, query: search_words.Query) -> dict[UUID, Hit]:
    titles = Conversation.objects.not_deleted().filter(owner=user, temporary=False)
    for part in (*query.words, *query.phrases):
        titles = titles.filter(title__icontains=part)
    for word in query.excluded:
        titles = titles.exclude(title__icontains=word)
    marker = re.compile("|".join(map(re.escape, query.words)))
    columns = ("id", "title", "updated_at", "archived_at", "project__name")
    return {
        id: Hit(id, _marked(title, marker), updated_at, archived_at is not None, project or "")
        for id, title, updated_at, archived_at, project in titles.order_by(
            "-updated_at"
        ).values_list(*columns)[:MAX_HITS]
    }


def _add(hits: dict[UUID, Hit], rows: list[tuple[Any, ...]], part: re.Pattern[str]) -> None:
    """Add the first message of each conversation; one that was found by its title gets a snippet."""
    for message_id, text, id, title, updated_at, is_archived, project in rows:
        present = hits.get(id)
        if present is not None and present.message is not None:
            continue
        hits[id] = Hit(
            conversation=id,
            title=present.title if present else [(title, False)],
            updated_at=updated_at,
            is_archived=is_archived,
            project=project or "",
            message=message_id,
            snippet=_snippet(text, part),
        )


def _snippet(text: str, part: re.Pattern[str]) -> list[tuple[str, bool]]:
    """Return the surroundings of the first match, without the marks of Markdown."""
    match = part.search(search_words.fold(text))
    at = match.start() if match else 0
    first = max(0, at - AROUND)
    newline = text.rfind("\n", 0, first)
    if first - newline < AROUND:
        first = newline + 1  # marks have their meaning at the beginning of a line
    raw = text[first : at + AROUND]
    shown = plain(raw)
    found = part.search(search_words.fold(shown))
    if match and not found:  # in the address of a link, or across marks
        shown = " ".join(raw.split())
        found = part.search(search_words.fold(shown))
    at = found.start() if found else 0
    begin, end = max(0, at - BEFORE), at + AFTER
    if begin > 0:
        space = shown.find(" ", begin, at)
        begin = space + 1 if space >= 0 else begin
    is_cut = first > 0 or begin > 0
    goes_on = end < len(shown) or first + len(raw) < len(text)
    return _marked(f"{'… ' if is_cut else ''}{shown[begin:end]}{' …' if goes_on else ''}", part)


def _marked(text: str, part: re.Pattern[str]) -> list[tuple[str, bool]]:
    found, end = [], 0
    for match in part.finditer(search_words.fold(text)):
        found += [(text[end : match.start()], False), (text[match.start() : match.end()], True)]
        end = match.end()
    return [(each, is_match) for each, is_match in [*found, (text[end:], False)] if each]
