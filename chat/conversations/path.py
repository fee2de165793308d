"""The walk from a message up to the root of its conversation's tree, as SQL."""

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
