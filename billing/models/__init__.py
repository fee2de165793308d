"""The tables of billing. Invariants that must not depend on code are constraints and triggers.

Amounts of credits are whole micro-credits (see billing.credits), amounts of money whole minor units
of their currency. Migration 0002 has the rules that Django cannot declare as SQL: append-only tables,
holds that resolve once, and an account that equals its lots, entries and holds at every COMMIT.

Billing does not depend on chat: runs, conversations and models are ids or names here.
"""

from __future__ import annotations

from billing.models.accounts import (
    Account,
    CreditLot,
    DebtEntry,
    ExpiryNotice,
    Hold,
    LedgerEntry,
    LotMove,
)
from billing.models.operations import AuditRecord, InvoiceCounter, LedgerCheck
from billing.models.payments import (
    AutoTopUp,
    CreditPackage,
    Dispute,
    Invoice,
    InvoiceAddress,
    Order,
    PackagePrice,
    ProviderEvent,
    ProviderRequest,
    Refund,
    SandboxPayment,
)
from billing.models.plans import Membership, Plan, PlanGroup
from billing.models.prices import ModelPrice
from billing.models.promos import PromoCode, PromoRedemption
from billing.models.usage import DailyUsage, SpendingLimit, UsageRecord

__all__ = [
    "Account",
    "AuditRecord",
    "AutoTopUp",
    "CreditLot",
    "CreditPackage",
    "DailyUsage",
    "DebtEntry",
    "Dispute",
    "ExpiryNotice",
    "Hold",
    "Invoice",
    "InvoiceAddress",
    "InvoiceCounter",
    "LedgerCheck",
    "LedgerEntry",
    "LotMove",
    "Membership",
    "ModelPrice",
    "Order",
    "PackagePrice",
    "Plan",
    "PlanGroup",
    "PromoCode",
    "PromoRedemption",
    "ProviderEvent",
    "ProviderRequest",
    "Refund",
    "SandboxPayment",
    "SpendingLimit",
    "UsageRecord",
]
