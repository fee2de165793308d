"""The admin of accounts."""

from __future__ import annotations

from accounts.admin import invitations, records, users

__all__ = ["invitations", "records", "users"]
