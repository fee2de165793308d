"""Receipts of paid orders as a PDF: the invoice and its credit notes as they were issued, a page each."""

from __future__ import annotations

from datetime import UTC, datetime, time
from pathlib import Path
from tempfile import TemporaryDirectory

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from fpdf import FPDF
from fpdf.enums import Align, XPos, YPos

from billing.models import Invoice, Order
from billing.payments import fonts, invoices
from chatproject.lib import languages

# Of the words of a receipt in all languages of invoices.PRINTED.
LETTERS = "ÄÖÜäöüßÁÉÍÓÚÑáéíóúñü€"
LEFT = 110.0  # millimetres of the page for the description; the rest is for the amount

TITLES = {
    Invoice.Kind.INVOICE: gettext_lazy("Invoice"),
    Invoice.Kind.CREDIT_NOTE: gettext_lazy("Credit note"),
    Invoice.Kind.CANCELLATION: gettext_lazy("Cancellation"),
}
TOTALS = {
    Invoice.Kind.INVOICE: gettext_lazy("Total, paid"),
    Invoice.Kind.CREDIT_NOTE: gettext_lazy("Total, refunded"),
    Invoice.Kind.CANCELLATION: gettext_lazy("Total, not refunded"),
}


def pdf(order: Order) -> bytes:
    """Return the receipt of an order with its credit notes. Raises invoices.NotPaid.

    Takes some tenths of a second of CPU: call it in a thread.
    """
    documents = invoices.of_order(order)
    language = invoices.language_of(order, documents)
    with languages.use(language), TemporaryDirectory() as folder:
        receipt = Receipt(order, documents, Path(folder))
        for document in documents:
            receipt.add_document(document)
        return bytes(receipt.output())


class Receipt(FPDF):
    """Pages with a head, rows of amounts and a total."""

    def __init__(self, order: Order, documents: list[Invoice], folder: Path) -> None:
        super().__init__(format="A4")
        self.order = order
        first = documents[0]
        self.set_title(_("Invoice %(number)s") % {"number": first.number})
        self.set_author(first.content["seller"][0])
        self.set_creation_date(datetime.combine(first.issued_on, time(), UTC))
        self.set_margin(20)
        texts = [f"{line}" for document in documents for line in _lines(document)]
        texts.append(LETTERS)
        self.missing = fonts.add(self, "".join(texts), folder)

    def add_document(self, invoice: Invoice) -> None:
        """Add the page of an invoice, a credit note or a cancellation."""
        kind = Invoice.Kind(invoice.kind)
        self.add_head(invoice, f"{TITLES[kind]} {invoice.number}")
        for description, minor in invoice.content["rows"]:
            self.add_row(description, invoices.money(invoice, minor))
        self.add_total(str(TOTALS[kind]), invoices.money(invoice, invoice.amount_minor))
        for remark in invoice.content["remarks"]:
            self.add_small(remark)

    def add_head(self, invoice: Invoice, title: str) -> None:
        """Begin a page with the seller, the title, the buyer and the order."""
        content = invoice.content
        self.add_page()
        self.set_font(fonts.FAMILY, "B", 11)
        self.add_text(content["seller"][0])
        self.set_font(fonts.FAMILY, "", 10)
        for line in content["seller"][1:]:
            self.add_text(line)
        if content["seller_tax_id"]:
            self.add_text(
                _("Tax number %(seller_tax_id)s") % {"seller_tax_id": content["seller_tax_id"]}
            )
        self.ln(12)
        self.set_font(fonts.FAMILY, "B", 18)
        self.add_text(title, height=10)
        self.set_font(fonts.FAMILY, "", 10)
        self.ln(2)
        self.add_text(_("Date: %(day)s") % {"day": languages.day(invoice.issued_on, "j F Y")})
        self.add_text(_("Order: %(number)s") % {"number": self.order.pk})
        self.ln(4)
        self.add_text(_("For:"))
        for line in content["buyer"]:
            self.add_text(line)
        self.ln(8)
        self.add_rule()

    def add_row(self, description: str, amount: str) -> None:
        """Add a description, in as many lines as it needs, and an amount beside its first line."""
        # The amount comes first: the description may go on to another page.
        self.cell(0, 6, amount, align=Align.R, new_x=XPos.LMARGIN, new_y=YPos.TOP)
        self.multi_cell(
            LEFT, 6, self.shown(description), align=Align.L, new_x=XPos.LMARGIN, new_y=YPos.NEXT
        )
        self.ln(1)

    def add_total(self, description: str, amount: str) -> None:
        """Add a bold row below a rule."""
        self.ln(1)
        self.add_rule()
        self.set_font(fonts.FAMILY, "B", 11)
        self.add_row(description, amount)
        self.set_font(fonts.FAMILY, "", 10)

    def add_small(self, text: str) -> None:
        """Add a paragraph in small print."""
        self.ln(4)
        self.set_font(fonts.FAMILY, "", 9)
        self.add_text(text)
        self.set_font(fonts.FAMILY, "", 10)

    def add_rule(self) -> None:
        """Draw a grey line across the page."""
        y = self.get_y()
        self.set_draw_color(160)
        self.line(self.l_margin, y, self.w - self.r_margin, y)
        self.ln(3)

    def add_text(self, text: str, height: float = 5) -> None:
        """Add a paragraph."""
        self.multi_cell(
            0, height, self.shown(text), align=Align.L, new_x=XPos.LMARGIN, new_y=YPos.NEXT
        )

    def shown(self, text: str) -> str:
        """Return a text with characters that no font has as their numbers: `[U+1F9FF]`."""
        return "".join(
            f"[U+{ord(letter):04X}]" if letter in self.missing else letter for letter in text
        )


def _lines(invoice: Invoice) -> list[str]:
    """Return the texts of a document that come from people."""
    content = invoice.content
    rows = [description for description, _amount in content["rows"]]
    return [
        *content["seller"],
        content["seller_tax_id"],
        *content["buyer"],
        *rows,
        *content["remarks"],
    ]
