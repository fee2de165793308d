"""What billing tells to the parts above it, which it does not know."""

from __future__ import annotations

from django.dispatch import Signal

# Sent after the commit of whatever changed an account's balance, holds or debt, with `account_id`.
balance_changed = Signal()
