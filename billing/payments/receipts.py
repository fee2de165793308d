"""A paid order as a PDF: the invoice, and a credit note for each refund, a page each."""

from __future__ import annotations

import unicodedata
from datetime import datetime

from django.conf import settings
from django.utils import timezone
from fpdf import FPDF
from fpdf.enums import Align, XPos, YPos

from billing.credits import show, show_money
from billing.models import Order, Refund

FONT = "Helvetica"
LEFT = 110.0  # millimetres of the page for what; the rest of the line is for the amount

# What Latin-1 lacks but has a close neighbour; what is left is printed as a question mark.
NEIGHBOURS = str.maketrans(
    {
        "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{MINUS SIGN}": "-", "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{LEFT SINGLE QUOTATION MARK}": "'", "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{EURO SIGN}": "EUR", "\N{INDIAN RUPEE SIGN}": "INR",
    }
)  # fmt: skip


class NotPaid(Exception):
    """There is no receipt for an order that was not paid."""


def pdf(order: Order) -> bytes:
    """The receipt of an order with its credit notes. Raises NotPaid."""
    if not order.is_paid or order.paid_at is None:
        raise NotPaid(str(order.pk))
    document = FPDF(format="A4")
    document.set_title(_latin(f"Invoice {number(order)}"))
    document.set_author(_latin(settings.SELLER_NAME))
    document.set_creation_date(order.paid_at)
    document.set_margin(20)
    _invoice(document, order)
    # Numbered by all that were asked for, so that a number never moves to another refund.
    for place, refund in enumerate(order.refunds.order_by("pk"), start=1):
        if refund.status == Refund.Status.SUCCEEDED:
            _credit_note(document, order, refund, place)
    return bytes(document.output())


def number(order: Order) -> str:
    """The number on the invoice: `000042`; empty before the order is paid."""
    return "" if order.invoice_no is None else f"{order.invoice_no:06d}"


def _invoice(document: FPDF, order: Order) -> None:
    assert order.paid_at is not None  # `pdf` has looked
    _head(document, order, f"Invoice {number(order)}", order.paid_at)
    what = f"{order.package_name}: {show(order.credits)} credits"
    _line(document, what, show_money(order.amount_minor - order.tax_minor, order.currency))
    if order.bonus:
        _line(document, f"Bonus: {show(order.bonus)} credits", show_money(0, order.currency))
    _line(document, "Tax", show_money(order.tax_minor, order.currency))
    _total(document, "Total, paid", show_money(order.amount_minor, order.currency))
    _small(
        document,
        f"Paid on {_day(order.paid_at)} by {order.provider.capitalize()}"
        + (f", payment {order.provider_payment_id}." if order.provider_payment_id else "."),
    )
    if not order.livemode:
        _small(document, "A payment of a test: no money was moved.")


def _credit_note(document: FPDF, order: Order, refund: Refund, place: int) -> None:
    _head(document, order, f"Credit note {number(order)}-{place}", refund.updated_at)
    _line(document, f"Refund of invoice {number(order)}", _refunded(refund.amount_minor, order))
    tax = order.tax_minor * refund.amount_minor // order.amount_minor
    if tax:
        _line(document, "of which tax", _refunded(tax, order))
    _total(document, "Total, refunded", _refunded(refund.amount_minor, order))


def _refunded(minor: int, order: Order) -> str:
    return f"- {show_money(minor, order.currency)}"


def _head(document: FPDF, order: Order, title: str, at: datetime) -> None:
    document.add_page()
    document.set_font(FONT, "B", 11)
    _text(document, settings.SELLER_NAME)
    document.set_font(FONT, "", 10)
    for line in settings.SELLER_ADDRESS:
        _text(document, line)
    if settings.SELLER_TAX_ID:
        _text(document, f"Tax number {settings.SELLER_TAX_ID}")
    document.ln(12)
    document.set_font(FONT, "B", 18)
    _text(document, title, height=10)
    document.set_font(FONT, "", 10)
    document.ln(2)
    _text(document, f"Date: {_day(at)}")
    _text(document, f"For: {order.user.get_username()}")
    _text(document, f"Order: {order.pk}")
    document.ln(8)
    _rule(document)


def _day(at: datetime) -> str:
    return f"{timezone.localtime(at):%-d %B %Y}"


def _line(document: FPDF, what: str, amount: str) -> None:
    top = document.get_y()
    document.multi_cell(LEFT, 6, _latin(what), new_x=XPos.RIGHT, new_y=YPos.NEXT)
    bottom = document.get_y()
    document.set_xy(document.l_margin + LEFT, top)
    document.cell(0, 6, _latin(amount), align=Align.R)
    document.set_xy(document.l_margin, bottom + 1)


def _total(document: FPDF, what: str, amount: str) -> None:
    document.ln(1)
    _rule(document)
    document.set_font(FONT, "B", 11)
    _line(document, what, amount)
    document.set_font(FONT, "", 10)


def _small(document: FPDF, text: str) -> None:
    document.ln(4)
    document.set_font(FONT, "", 9)
    _text(document, text)
    document.set_font(FONT, "", 10)


def _rule(document: FPDF) -> None:
    y = document.get_y()
    document.set_draw_color(160)
    document.line(document.l_margin, y, document.w - document.r_margin, y)
    document.ln(3)


def _text(document: FPDF, text: str, height: float = 5) -> None:
    document.multi_cell(0, height, _latin(text), align=Align.L, new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def _latin(text: str) -> str:
    """What the fonts of every PDF reader can show: accents may fall off, the rest becomes `?`."""
    kept = []
    for character in text.translate(NEIGHBOURS):
        if not _fits(character):
            plain = unicodedata.normalize("NFKD", character)[0]
            character = plain if _fits(plain) else "?"
        kept.append(character)
    return "".join(kept)


def _fits(character: str) -> bool:
    return character.encode("latin-1", "replace") != b"?" or character == "?"
