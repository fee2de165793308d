"""Receipts as PDF: their contents, and letters that the fonts lack."""

from __future__ import annotations

import re
import zlib

import pytest
from django.utils import timezone

from billing.models import Account, Order, Refund
from billing.payments import receipts
from tests.support import money

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
    """Return the text of a PDF with core fonts: the strings of its page streams, a line each."""
    assert pdf.startswith(b"%PDF")
    streams = re.findall(rb"stream\n(.*?)\nendstream", pdf, re.DOTALL)
    text = b"\n".join(zlib.decompress(stream) for stream in streams if stream[:1] == b"x")
    found = re.findall(rb"\((.*?)(?<!\\)\) Tj", text)
    return "\n".join(re.sub(rb"\\(.)", rb"\1", line).decode("latin-1") for line in found)


def test_receipt_states_seller_buyer_items_and_tax(account):
    order = bought(account)
    text = words(receipts.pdf(order))
    for line in (
        "Example Limited",
        "12345 Exampleton",
        "Tax number XX 123",
        "Invoice 000042",
        f"For: {account.user.email}",
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


@pytest.mark.parametrize("status", set(Order.Status) - set(Order.SETTLED))
def test_unpaid_order_has_no_receipt(account, status):
    with pytest.raises(receipts.NotPaid):
        receipts.pdf(bought(account, status=status, paid_at=None, invoice_no=None))


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("jürgen@exämple.org", "jürgen@exämple.org"),
        ("łukasz@example.org", "?ukasz@example.org"),
        ("ātis@example.org", "atis@example.org"),
        ("\N{EM DASH}\N{EURO SIGN}@example.org", "-EUR@example.org"),
        ("用户@例え.jp", "??@??.jp"),
        ("\N{GRINNING FACE}(\\)@example.org", "?(\\)@example.org"),
        ("\u202egro.elpmaxe@x", "?gro.elpmaxe@x"),
    ],
)
def test_letters_outside_the_fonts_are_replaced_visibly(account, written, printed):
    account.user.email = written
    account.user.save()
    order = Order.objects.get(pk=bought(account).pk)
    assert f"For: {printed}" in words(receipts.pdf(order))


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
