"""Billing's part of the admin: records are read-only; audited actions go through ledger.staff_actions."""

from __future__ import annotations

from billing.admin import accounts, operations, payments, prices, promos, report, usage

__all__ = ["accounts", "operations", "payments", "prices", "promos", "report", "usage"]
