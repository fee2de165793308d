"""Invoices and credit notes, frozen when they are issued.

Their numbers, days, names, addresses, amounts and taxes are stored, and never computed again. An
invoice's number is that of its order, without gaps; the credit notes of an order, and the
cancellations of those whose refund failed later, count 1, 2, 3 behind it.

Orders that were paid under an earlier release get their documents at their next sync, refund or
download, with the numbers that were printed until then.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.credits import show, show_money
from billing.models import Invoice, Order, Refund
from billing.payments.packages import lock_order
from chatproject.lib import languages

Kind = Invoice.Kind

SERIES = "invoice"  # of the numbers
PRINTED = ("en", "de", "es")


class NotPaid(Exception):
    """There is no receipt for an order that was not paid."""


def of_order(order: Order) -> list[Invoice]:
    """Return the documents of an order, and issue the missing ones. Raises NotPaid."""
    if not order.is_paid or order.paid_at is None:
        raise NotPaid(str(order.pk))
    with transaction.atomic():
        return issue(lock_order(order.pk))


def issue(order: Order) -> list[Invoice]:
    """Issue the missing documents of a paid order, and return all. Under the order's lock."""
    issued = list(Invoice.objects.filter(order=order).order_by("position"))
    with languages.use(language_of(order, issued)):
        return _issue(order, issued)


def language_of(order: Order, issued: list[Invoice]) -> str:
    """Return the language of an order's documents: that of its first one, else of its buyer.

    Documents are in letters whose fonts need no shaping: for readers of Arabic they are in English.
    """
    if issued:
        return languages.known(issued[0].content.get("language"))
    return languages.known(order.user.language if order.user.language in PRINTED else None)


def _issue(order: Order, issued: list[Invoice]) -> list[Invoice]:
    is_first = not issued
    if is_first:
        issued.append(_invoice(order))
    known = {(one.refund_id, one.kind) for one in issued}
    # The earlier release counted all refunds by their keys.
    for count, refund in enumerate(Refund.objects.filter(order=order).order_by("pk"), start=1):
        if refund.status == Refund.Status.SUCCEEDED and (refund.pk, Kind.CREDIT_NOTE) not in known:
            position = count if is_first else issued[-1].position + 1
            at = refund.updated_at if is_first else timezone.now()
            issued.append(_credit_note(order, refund, issued, position, at))
        has_failed = refund.status == Refund.Status.FAILED
        is_noted = (refund.pk, Kind.CREDIT_NOTE) in known
        if has_failed and is_noted and (refund.pk, Kind.CANCELLATION) not in known:
            issued.append(_cancellation(order, refund, issued))
    return issued


def number(order: Order) -> str:
    """Return the number on the invoice: `000042`; empty before the order is paid."""
    return "" if order.invoice_no is None else f"{order.invoice_no:06d}"


def next_number() -> int:
    """Return the next number, without gaps: its row stays locked until this transaction ends.

    It is the last lock of the transaction, as all purchases of the site wait for it.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO billing_invoicecounter AS counter (series, last) VALUES (%s, 1)"
            " ON CONFLICT (series) DO UPDATE SET last = counter.last + 1 RETURNING last",
            [SERIES],
        )
        [last] = cursor.fetchone()
        return int(last)


def _invoice(order: Order) -> Invoice:
    if order.invoice_no is None:
        # Paid without a purchase, as by a script of the operator.
        order.invoice_no = next_number()
        order.save(update_fields=["invoice_no"])
    paid_at = order.paid_at or order.created_at
    net = order.amount_minor - order.tax_minor
    bought = {"package": order.package_name, "credits": show(order.credits)}
    rows: list[list[Any]] = [[_("%(package)s: %(credits)s credits") % bought, net]]
    if order.bonus:
        rows.append([(_("Bonus: %(bonus)s credits") % {"bonus": show(order.bonus)}), 0])
    rate = order.tax_rate or _rate(order)
    tax = _("Tax (%(rate)s)") % {"rate": rate} if rate else _("Tax")
    rows.append([tax, order.tax_minor])
    shown = {
        "day": day(paid_at),
        "provider": order.provider.capitalize(),
        "payment": order.provider_payment_id,
    }
    if order.provider_payment_id:
        remarks = [_("Paid on %(day)s by %(provider)s, payment %(payment)s.") % shown]
    else:
        remarks = [_("Paid on %(day)s by %(provider)s.") % shown]
    if not order.livemode:
        remarks.append(_("A test payment: no money was moved."))
    buyer = [order.buyer_name, *order.buyer_address.splitlines(), order.user.get_username()]
    if order.buyer_tax_id:
        buyer.append(_("Tax number %(buyer_tax_id)s") % {"buyer_tax_id": order.buyer_tax_id})
    content = {
        "seller": [settings.SELLER_NAME, *settings.SELLER_ADDRESS],
        "seller_tax_id": settings.SELLER_TAX_ID,
        "buyer": [line for line in buyer if line],
        "rows": rows,
        "remarks": remarks,
        "language": languages.active(),
    }
    return Invoice.objects.create(
        order=order,
        kind=Kind.INVOICE,
        position=0,
        number=number(order),
        issued_on=timezone.localdate(paid_at),
        amount_minor=order.amount_minor,
        tax_minor=order.tax_minor,
        tax_rate=rate,
        currency=order.currency,
        content=content,
    )


def _rate(order: Order) -> str:
    """Return the rate of a tax that came without one, as far as the amounts show it."""
    net = order.amount_minor - order.tax_minor
    if not order.tax_minor or not net:
        return ""
    return f"{round(1000 * order.tax_minor / net) / 10:g} %"


def _credit_note(
    order: Order, refund: Refund, issued: list[Invoice], position: int, at: datetime
) -> Invoice:
    """Issue the note of a refund. The taxes of all notes add up to the whole order's."""
    notes = [(1 if one.kind == Kind.CREDIT_NOTE else -1, one) for one in issued[1:]]
    refunded = sum(sign * one.amount_minor for sign, one in notes) + refund.amount_minor
    due = issued[0].tax_minor * min(refunded, order.amount_minor) // order.amount_minor
    tax = max(0, due - sum(sign * one.tax_minor for sign, one in notes))
    return _follow(
        order, refund, issued, Kind.CREDIT_NOTE, position, at,
        (_("Refund of invoice %(number)s") % {"number": issued[0].number}), refund.amount_minor, tax,
    )  # fmt: skip


def _cancellation(order: Order, refund: Refund, issued: list[Invoice]) -> Invoice:
    """Cancel the note of a refund that failed after it had succeeded: the buyer kept the credits."""
    note = next(one for one in issued if one.refund_id == refund.pk)
    return _follow(
        order, refund, issued, Kind.CANCELLATION, issued[-1].position + 1, timezone.now(),
        (_("Credit note %(number)s is canceled: the refund failed") % {"number": note.number}), note.amount_minor, note.tax_minor,
    )  # fmt: skip


def _follow(
    order: Order,
    refund: Refund,
    issued: list[Invoice],
    kind: Invoice.Kind,
    position: int,
    at: datetime,
    what: str,
    amount_minor: int,
    tax_minor: int,
) -> Invoice:
    """Issue a document that changes the invoice, with the invoice's seller and buyer."""
    invoice = issued[0]
    rate = invoice.tax_rate
    rows: list[list[Any]] = [[what, amount_minor]]
    if tax_minor:
        rows.append(
            [
                (_("of which tax (%(rate)s)") % {"rate": rate}) if rate else _("of which tax"),
                tax_minor,
            ]
        )
    return Invoice.objects.create(
        order=order,
        refund=refund,
        kind=kind,
        position=position,
        number=f"{invoice.number}-{position}",
        issued_on=timezone.localdate(at),
        amount_minor=amount_minor,
        tax_minor=tax_minor,
        tax_rate=rate,
        currency=order.currency,
        content=invoice.content | {"rows": rows, "remarks": []},
    )


def day(at: datetime) -> str:
    """Return the date by the site's time zone: `5 March 2026`."""
    return languages.day(at, "j F Y")


def money(invoice: Invoice, minor: int) -> str:
    """Return an amount of a document; credit notes have a minus."""
    sign = "- " if invoice.kind == Kind.CREDIT_NOTE else ""
    return sign + show_money(minor, invoice.currency)
