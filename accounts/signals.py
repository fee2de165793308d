"""Signals that accounts sends to the layers above it, of which it imports nothing."""

from __future__ import annotations

from django.dispatch import Signal

# Sent with `user_id` after the commit of a change that may have ended a session of the user, or all
# of them: a sign-out, another password, a deactivation, a deletion.
access_changed = Signal()

# Sent with `old` and `new` when a session goes on with another key, within the same transaction if there is one.
session_renewed = Signal()

# Sent with `user` when the owner of its address has taken over an account that another person may have made: ends
# what that person could still receive.
account_claimed = Signal()

# Sent with `key` after the commit that has revoked an API key.
key_revoked = Signal()
