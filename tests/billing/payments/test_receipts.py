"""Receipts as PDF: their contents, and letters that the fonts lack."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta
from decimal import Decimal

import pypdfium2
import pytest
import time_machine
from django.db import DatabaseError, connection
from django.utils import timezone

from billing.models import Account, Invoice, Order, Refund
from billing.payments import checkout, invoices, receipts, refunds
from billing.payments.providers import sandbox as bank
from tests.support import money, purchases

pytestmark = pytest.mark.django_db(transaction=True)

CREDIT = 1_000_000


@pytest.fixture(autouse=True)
def seller(settings) -> None:
    settings.SELLER_NAME = "Example Limited"
    settings.SELLER_ADDRESS = ["1 Example Street", "12345 Exampleton"]
    settings.SELLER_TAX_ID = "XX 123"


def bought(account: Account, **fields) -> Order:
    fields = {
        "paid_at": timezone.now(),
        "invoice_no": 42,
        "amount_minor": 1_190,
        "tax_minor": 190,
        "bonus": 5 * CREDIT,
        "livemode": True,
    } | fields
    return money.order(account, 100 * CREDIT, **fields)


def words(pdf: bytes) -> str:
    """Return the text of a PDF, as a reader copies it, with single spaces."""
    assert pdf.startswith(b"%PDF")
    document = pypdfium2.PdfDocument(pdf)
    text = "\n".join(page.get_textpage().get_text_range() for page in document)
    return re.sub(r"[ \t]+", " ", text.replace("\r", ""))


def test_receipt_states_seller_buyer_items_and_tax(account):
    order = bought(account)
    text = words(receipts.pdf(order))
    for line in (
        "Example Limited",
        "12345 Exampleton",
        "Tax number XX 123",
        "Invoice 000042",
        account.user.email,
        f"Order: {order.pk}",
        "Pack: 100 credits",
        "USD 10.00",
        "Bonus: 5 credits",
        "USD 1.90",
        "USD 11.90",
    ):
        assert line in text
    assert f"Date: {timezone.localtime(order.paid_at):%-d %B %Y}" in text
    assert "test" not in text


def test_receipt_of_a_test_payment_is_marked(account):
    assert "no money was moved" in words(receipts.pdf(bought(account, livemode=False)))


def test_succeeded_refund_has_a_numbered_credit_note(account):
    order = bought(account)
    for status, amount in (("failed", 100), ("succeeded", 500), ("pending", 90)):
        Refund.objects.create(order=order, amount_minor=amount, status=status, initiated_by="user")
    text = words(receipts.pdf(order))
    assert "Credit note 000042-2" in text
    assert "Credit note 000042-1" not in text
    assert "Credit note 000042-3" not in text
    assert "- USD 5.00" in text
    assert "- USD 0.79" in text  # the refund's share of the tax


@pytest.mark.parametrize("status", sorted(set(Order.Status) - set(Order.SETTLED)))
def test_unpaid_order_has_no_receipt(account, status):
    with pytest.raises(invoices.NotPaid):
        receipts.pdf(bought(account, status=status, paid_at=None, invoice_no=None))


SCRIPTS = {
    "latin": "Łukasz Ştefan Ātis Nguyễn — “€₹” …",
    "greek": "Ελλάδα",
    "cyrillic": "Привет Україна",
    "japanese": "日本語カタカナひらがな",
    "chinese": "中文測試简体",
    "korean": "한국어",
    "georgian": "საქართველო",
    "armenian": "Հայաստան",
    "ethiopic": "ኢትዮጵያ",
    "emoji": "😀🎉",
}


def test_every_script_is_printed(account):
    order = bought(account, buyer_address="\n".join(SCRIPTS.values()))
    printed = words(receipts.pdf(order))
    assert [name for name, text in SCRIPTS.items() if text not in printed] == []


# Their letters are joined, so a copy may have others for the same sign.
JOINED = {
    "arabic": "مرحبا",
    "hebrew": "שלום",
    "devanagari": "नमस्ते",
    "bengali": "বাংলা",
    "tamil": "தமிழ்",
    "khmer": "ខ្មែរ",
    "thai": "สวัสดี",
}


def test_joined_scripts_keep_their_letters(account):
    order = bought(account, buyer_address="\n".join(JOINED.values()))
    printed = words(receipts.pdf(order))
    assert {name: set(text) - set(printed) for name, text in JOINED.items()} == {
        name: set() for name in JOINED
    }
    assert "U+" not in printed


def test_character_without_a_glyph_is_named(account):
    printed = words(receipts.pdf(bought(account, buyer_name="a\ue000b\U0001fbff")))
    assert "a[U+E000]b[U+1FBFF]" in printed


@pytest.mark.parametrize("lines", [31, 34])
def test_amount_is_printed_beside_its_description(account, lines):
    """The description goes on to the next page, or begins there."""
    order = bought(
        account, buyer_address="A\n" * lines, package_name="First" + " word" * 17 + " End"
    )
    document = pypdfium2.PdfDocument(receipts.pdf(order))
    pages = [page.get_textpage().get_text_range() for page in document]
    [first] = [page for page in pages if "First word" in page]
    assert "USD 10.00" in first
    assert len(pages) <= 2


def test_receipt_adds_nothing_to_the_log(account, caplog):
    caplog.set_level("INFO")
    receipts.pdf(bought(account, buyer_name="Ελλάδα"))
    assert caplog.records == []


# --- Frozen documents ----------------------------------------------------------------------------


def request_refund(order: Order, amount: int) -> Refund:
    return refunds.request_refund(
        order_id=order.pk, amount_minor=amount, actor_id=None, reason="",
        initiated_by=Refund.Initiator.STAFF, nonce=uuid.uuid4().hex,
    )  # fmt: skip


def numbers(order: Order) -> list[tuple[str, int]]:
    """Return the numbers and amounts of an order's documents."""
    return list(order.invoices.order_by("position").values_list("number", "amount_minor"))


def test_documents_never_change_once_issued(sandbox, account, settings):
    settings.TIME_ZONE = "UTC"
    order = purchases.paid(account)
    request_refund(order, 100)
    before = words(receipts.pdf(order))
    settings.SELLER_NAME = "Another Limited"
    settings.SELLER_ADDRESS = ["2 Other Street"]
    settings.TIME_ZONE = "Pacific/Kiritimati"
    account.user.email = "renamed@example.org"
    account.user.save()
    Order.objects.update(buyer_name="Renamed", tax_rate="7 %", package_name="Renamed")
    with time_machine.travel(timezone.now() + timedelta(days=40)):
        Refund.objects.update(updated_at=timezone.now())
        order.refresh_from_db()
        assert words(receipts.pdf(order)) == before
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute("UPDATE billing_invoice SET amount_minor = 1")


def test_credit_notes_keep_their_numbers(sandbox, account):
    """The refunds' keys are random, and no order of theirs counts."""
    for _ in range(5):
        order = purchases.paid(account)
        no = f"{order.invoice_no:06d}"
        expected = [(no, 500)]
        for number, amount in enumerate((100, 150, 250), start=1):
            request_refund(order, amount)
            expected.append((f"{no}-{number}", amount))
            assert numbers(order) == expected
    printed = words(receipts.pdf(order))
    assert [number for number, _ in expected[1:] if f"Credit note {number}" not in printed] == []


def test_taxes_of_partial_refunds_add_up(sandbox, account):
    order = purchases.paid(account, purchases.package({"USD": 447}))
    Invoice.objects.all()  # issued with the purchase
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE billing_invoice DISABLE TRIGGER billing_invoice_append_only")
        cursor.execute("UPDATE billing_invoice SET tax_minor = 71, tax_rate = '19 %'")
        cursor.execute("ALTER TABLE billing_invoice ENABLE TRIGGER billing_invoice_append_only")
    for amount in (149, 1, 148, 149):
        request_refund(order, amount)
    notes = order.invoices.filter(kind="credit_note")
    assert sum(note.tax_minor for note in notes) == 71
    assert {note.tax_rate for note in notes} == {"19 %"}


def test_note_of_a_failed_refund_is_canceled(sandbox, account):
    order = purchases.paid(account)
    refund = request_refund(order, 200)
    bank.change_refund(purchases.bank_id(order), str(refund.provider_refund_id), "failed")
    for _ in range(2):
        checkout.sync_order(order.pk)
    request_refund(order, 500)
    kinds = list(order.invoices.order_by("position").values_list("kind", "amount_minor"))
    assert kinds == [
        ("invoice", 500), ("credit_note", 200), ("cancellation", 200), ("credit_note", 500),
    ]  # fmt: skip
    assert "Cancellation" in words(receipts.pdf(order))


def test_documents_of_an_earlier_release_keep_their_numbers(account):
    order = bought(account)
    rows = [
        Refund.objects.create(order=order, amount_minor=amount, status=status, initiated_by="user")
        for status, amount in (("failed", 100), ("succeeded", 500), ("succeeded", 90))
    ]
    rows.sort(key=lambda refund: refund.pk)
    expected = [
        (f"000042-{position}", refund.amount_minor)
        for position, refund in enumerate(rows, start=1)
        if refund.status == "succeeded"
    ]
    receipts.pdf(order)
    assert numbers(order)[1:] == expected
    Refund.objects.create(order=order, amount_minor=7, status="succeeded", initiated_by="user")
    receipts.pdf(order)
    assert numbers(order)[1:] == [*expected, ("000042-4", 7)]


def test_buyer_and_tax_rate_of_stripe_are_printed(sandbox, account, fakepay, settings):
    settings.STRIPE_TAX = True
    fakepay.stripe.tax_percent = 19
    fakepay.stripe.buyer = {
        "name": "Żaneta Müller",
        "address": {
            "line1": "Hauptstraße 1", "line2": None, "postal_code": "10115", "city": "Berlin",
            "state": None, "country": "DE",
        },
        "tax_ids": [{"type": "eu_vat", "value": "DE123456789"}],
    }  # fmt: skip
    order = purchases.begun(account, provider="stripe")
    fakepay.stripe.pay(order.provider_order_id)
    order = checkout.sync_order(order.pk)
    text = words(receipts.pdf(order))
    for line in (
        "Żaneta Müller", "Hauptstraße 1", "10115 Berlin", "DE", "Tax number DE123456789",
        "Tax (VAT 19 %)", account.user.email,
    ):  # fmt: skip
        assert line in text


def test_razorpay_invoice_has_the_buyers_own_address(sandbox, account, fakepay, settings, client):
    settings.RAZORPAY_TAX_PERCENT = Decimal(18)
    client.force_login(account.user)
    details = {"name": "山田太郎", "address": "1 Street\nMumbai", "tax_id": "GST 1"}
    assert client.post("/billing/invoice-address/", details).status_code == 302
    order = purchases.begun(account, provider="razorpay")
    fakepay.razorpay.pay(order.provider_order_id)
    order = checkout.sync_order(order.pk)
    assert order.tax_minor == 7627  # of 50000
    text = words(receipts.pdf(order))
    for line in ("山田太郎", "1 Street", "Mumbai", "Tax number GST 1", "Tax (18 %)"):
        assert line in text


def test_receipt_takes_very_long_names(account, settings):
    settings.SELLER_NAME = "Limited " * 60
    order = bought(account, package_name="Wide" * 25)
    assert "Invoice 000042" in words(receipts.pdf(order))


def test_receipt_is_downloaded_under_its_number(account, client, valkey_url):
    client.force_login(account.user)
    response = client.get(f"/billing/orders/{bought(account).pk}/receipt.pdf")
    assert response["Content-Type"] == "application/pdf"
    assert response["Content-Disposition"] == 'attachment; filename="invoice-000042.pdf"'
    assert response.content.startswith(b"%PDF")
