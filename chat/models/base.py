from __future__ import annotations

from uuid import UUID

import uuid_utils.compat


def new_id() -> UUID:
    """Return a new UUID of version 7 (RFC 9562); such ids sort by time of creation."""
    return uuid_utils.compat.uuid7()
