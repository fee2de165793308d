"""Ways through the tree of a conversation, as SQL: up to its root, and to a message's siblings."""

from __future__ import annotations


def path_to_root(first: str, length: str | int, *columns: str) -> str:
    """Return the recursive common table expression `path`, which begins at the message `first`.

    `first` and `length`, the number of messages at most, are SQL expressions. Its columns are `id`,
    `parent_id` and `depth` (0 at `first`), and the `columns` of chat_message that are named.
    """
    names = ", ".join(["id", "parent_id", *columns])
    parents = ", ".join(f"m.{name}" for name in ("id", "parent_id", *columns))
    return f"""
WITH RECURSIVE path AS (
    SELECT {names}, 0 AS depth FROM chat_message WHERE id = {first}
    UNION ALL
    SELECT {parents}, path.depth + 1
    FROM chat_message m JOIN path ON m.id = path.parent_id
    WHERE path.depth + 1 < {length}
)
"""  # noqa: S608 # of names alone


def sibling_ids(of: str) -> str:
    """Return the ids of the siblings of a chat_message named `of`, itself included, oldest first."""
    ids = "SELECT array_agg(sibling.id ORDER BY sibling.id) FROM chat_message AS sibling"
    # Two queries, as each has an index.
    return f"""CASE WHEN {of}.parent_id IS NULL
  THEN ({ids} WHERE sibling.conversation_id = {of}.conversation_id AND sibling.parent_id IS NULL)
  ELSE ({ids} WHERE sibling.parent_id = {of}.parent_id) END"""  # of names alone
