"""The receipt as a PDF: what stands on it, and that no letter breaks it."""

from __future__ import annotations

import re
import uuid
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
    """The text of a PDF with core fonts: the strings of its page streams, a line each."""
    assert pdf.startswith(b"%PDF")
    streams = re.findall(rb"stream\n(.*?)\nendstream", pdf, re.DOTALL)
    text = b"\n".join(zlib.decompress(stream) for stream in streams if stream[:1] == b"x")
    found = re.findall(rb"\((.*?)(?<!\\)\) Tj", text)
    return "\n".join(re.sub(rb"\\(.)", rb"\1", line).decode("latin-1") for line in found)


def test_the_receipt_names_seller_buyer_number_lines_tax_and_total(account):
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


def test_a_payment_that_moved_no_money_says_so(account):
    assert "no money was moved" in words(receipts.pdf(bought(account, livemode=False)))


def test_each_refund_that_went_through_has_a_credit_note_that_keeps_its_number(account):
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
def test_there_is_no_receipt_for_what_was_not_paid(account, status):
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
def test_letters_that_the_fonts_lack_are_replaced_visibly(account, written, printed):
    account.user.email = written
    account.user.save()
    order = Order.objects.get(pk=bought(account).pk)
    assert f"For: {printed}" in words(receipts.pdf(order))


def test_very_long_names_stay_on_the_page(account, settings):
    settings.SELLER_NAME = "Limited " * 60
    order = bought(account, package_name="Wide" * 25)
    assert "Invoice 000042" in words(receipts.pdf(order))


def test_the_receipt_is_the_owners_alone(account, client, valkey_url):
    order = bought(account)
    path = f"/billing/orders/{order.pk}/receipt.pdf"
    assert client.get(path)["Location"].startswith("/accounts/login/")
    client.force_login(money.open_account().user)
    assert client.get(path).status_code == 404
    client.force_login(account.user)
    response = client.get(path)
    assert response["Content-Type"] == "application/pdf"
    assert response["Content-Disposition"] == 'attachment; filename="invoice-000042.pdf"'
    assert response.content.startswith(b"%PDF")
    assert client.get(f"/billing/orders/{uuid.uuid4()}/receipt.pdf").status_code == 404
