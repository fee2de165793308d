"""Signals that billing sends to the layers above it, of which it imports nothing."""

from __future__ import annotations

from django.dispatch import Signal

# Sent with `account_id` after the commit of any change of an account's balance, holds or debt.
# (With send_robust: a receiver that fails is logged, and the others are called.)
balance_changed = Signal()

# Sent with `balance` (billing.reports.balances.Balance) once each time that a balance has become low, in the
# transaction that stores this.
balance_low = Signal()
