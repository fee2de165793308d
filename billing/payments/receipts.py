"""Receipts of paid orders as a PDF: the invoice, and a credit note for each refund, a page each."""

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
LEFT = 110.0  # millimetres of the page for the description; the rest is for the amount

# Characters that Latin-1 lacks but has a close neighbour of; others are printed as a question mark.
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
    """Return the receipt of an order with its credit notes. Raises NotPaid."""
    if not order.is_paid or order.paid_at is None:
        raise NotPaid(str(order.pk))
    document = Receipt(format="A4")
    document.set_title(latin(f"Invoice {number(order)}"))
    document.set_author(latin(settings.SELLER_NAME))
    document.set_creation_date(order.paid_at)
    document.set_margin(20)
    document.add_invoice(order, order.paid_at)
    # Numbered among all requested refunds, so that a number never moves to another refund.
    for position, refund in enumerate(order.refunds.order_by("pk"), start=1):
        if refund.status == Refund.Status.SUCCEEDED:
            document.add_credit_note(order, refund, position)
    return bytes(document.output())


def number(order: Order) -> str:
    """Return the number on the invoice: `000042`; empty before the order is paid."""
    return "" if order.invoice_no is None else f"{order.invoice_no:06d}"


class Receipt(FPDF):
    """Pages with a head, rows of amounts and a total."""

    def add_invoice(self, order: Order, paid_at: datetime) -> None:
        """Add the page of the purchase."""
        self.add_head(order, f"Invoice {number(order)}", paid_at)
        net = show_money(order.amount_minor - order.tax_minor, order.currency)
        self.add_row(f"{order.package_name}: {show(order.credits)} credits", net)
        if order.bonus:
            self.add_row(f"Bonus: {show(order.bonus)} credits", show_money(0, order.currency))
        self.add_row("Tax", show_money(order.tax_minor, order.currency))
        self.add_total("Total, paid", show_money(order.amount_minor, order.currency))
        payment = f", payment {order.provider_payment_id}" if order.provider_payment_id else ""
        self.add_small(f"Paid on {day(paid_at)} by {order.provider.capitalize()}{payment}.")
        if not order.livemode:
            self.add_small("A test payment: no money was moved.")

    def add_credit_note(self, order: Order, refund: Refund, position: int) -> None:
        """Add the page of a refund."""
        self.add_head(order, f"Credit note {number(order)}-{position}", refund.updated_at)
        amount = f"- {show_money(refund.amount_minor, order.currency)}"
        self.add_row(f"Refund of invoice {number(order)}", amount)
        tax = order.tax_minor * refund.amount_minor // order.amount_minor
        if tax:
            self.add_row("of which tax", f"- {show_money(tax, order.currency)}")
        self.add_total("Total, refunded", amount)

    def add_head(self, order: Order, title: str, at: datetime) -> None:
        """Begin a page with the seller, the title, the buyer and the order."""
        self.add_page()
        self.set_font(FONT, "B", 11)
        self.add_text(settings.SELLER_NAME)
        self.set_font(FONT, "", 10)
        for line in settings.SELLER_ADDRESS:
            self.add_text(line)
        if settings.SELLER_TAX_ID:
            self.add_text(f"Tax number {settings.SELLER_TAX_ID}")
        self.ln(12)
        self.set_font(FONT, "B", 18)
        self.add_text(title, height=10)
        self.set_font(FONT, "", 10)
        self.ln(2)
        self.add_text(f"Date: {day(at)}")
        self.add_text(f"For: {order.user.get_username()}")
        self.add_text(f"Order: {order.pk}")
        self.ln(8)
        self.add_rule()

    def add_row(self, description: str, amount: str) -> None:
        """Add a description, in as many lines as it needs, and an amount beside its first line."""
        top = self.get_y()
        self.multi_cell(LEFT, 6, latin(description), new_x=XPos.RIGHT, new_y=YPos.NEXT)
        bottom = self.get_y()
        self.set_xy(self.l_margin + LEFT, top)
        self.cell(0, 6, latin(amount), align=Align.R)
        self.set_xy(self.l_margin, bottom + 1)

    def add_total(self, description: str, amount: str) -> None:
        """Add a bold row below a rule."""
        self.ln(1)
        self.add_rule()
        self.set_font(FONT, "B", 11)
        self.add_row(description, amount)
        self.set_font(FONT, "", 10)

    def add_small(self, text: str) -> None:
        """Add a paragraph in small print."""
        self.ln(4)
        self.set_font(FONT, "", 9)
        self.add_text(text)
        self.set_font(FONT, "", 10)

    def add_rule(self) -> None:
        """Draw a grey line across the page."""
        y = self.get_y()
        self.set_draw_color(160)
        self.line(self.l_margin, y, self.w - self.r_margin, y)
        self.ln(3)

    def add_text(self, text: str, height: float = 5) -> None:
        """Add a paragraph."""
        self.multi_cell(0, height, latin(text), align=Align.L, new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def day(at: datetime) -> str:
    """Return the date by the site's time zone: `5 March 2026`."""
    return f"{timezone.localtime(at):%-d %B %Y}"


def latin(text: str) -> str:
    """Return the text in Latin-1, which every PDF reader has fonts for: `ş` becomes `s`, `你` `?`."""
    kept = []
    for character in text.translate(NEIGHBOURS):
        plain = unicodedata.normalize("NFKD", character)[0]
        shown = (form for form in (character, plain) if form.encode("latin-1", "ignore"))
        kept.append(next(shown, "?"))
    return "".join(kept)
