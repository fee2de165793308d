"""Razorpay's API, its hosted page and its dashboard."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any
from urllib.parse import parse_qsl

from tests.support.fakepay.postman import Postman, razorpay_event, sign_for_razorpay
from tests.support.fakepay.shared import Json, Refusal, Replays, new_id

KEY_ID = "rzp_test_fakepay"
KEY_SECRET = "secret-of-fakepay"


class RazorpaySide:
    """The provider's state, in plain dicts: tests change them to contradict our orders."""

    def __init__(self, postman: Postman) -> None:
        self.replays = Replays()
        self.orders: dict[str, Json] = {}
        self.payments: dict[str, Json] = {}
        self.refunds: dict[str, Json] = {}
        self.disputes: dict[str, Json] = {}
        self.can_list_disputes = True
        self.lists_lag = False  # lists of refunds lack the newest
        self._postman = postman

    # --- The API --------------------------------------------------------------------------------

    def answer(
        self, method: str, path: str, text: str, headers: Any, fault: str
    ) -> tuple[int, Json]:
        """Answer a request; `text` is the query or the JSON."""
        token = base64.b64encode(f"{KEY_ID}:{KEY_SECRET}".encode()).decode()
        if headers.get("Authorization") != f"Basic {token}":
            return 401, _error("BAD_REQUEST_ERROR", "Authentication failed")
        if fault == "429":
            return 429, _error("BAD_REQUEST_ERROR", "Request throttled")
        params = json.loads(text) if method == "POST" else dict(parse_qsl(text))
        key = headers.get("X-Refund-Idempotency")
        try:
            if key and (kept := self.replays.find(key, [path, params])):
                return kept
        except ValueError:
            return 400, _error("BAD_REQUEST_ERROR", "Different request body for the same key.")
        status, body = 500, _error("SERVER_ERROR", "We are facing some trouble.")
        if fault != "500":
            try:
                answer = self._route(method, path, params)
                if fault != "done-500":
                    status, body = 200, answer
            except Refusal as refusal:
                status, body = refusal.status, refusal.body
        if key:
            self.replays.keep(key, [path, params], status, body)
        return status, body

    def _route(self, method: str, path: str, params: Json) -> Json:
        if path == "/v1/orders":
            if method == "POST":
                return self._create_order(params)
            return _page(_collection(self.orders, receipt=params["receipt"]), params)
        if found := re.fullmatch(r"/v1/orders/(\w+)", path):
            return _find(self.orders, found[1])
        if found := re.fullmatch(r"/v1/orders/(\w+)/payments", path):
            return _collection(self.payments, order_id=_find(self.orders, found[1])["id"])
        if found := re.fullmatch(r"/v1/payments/(\w+)/refund", path):
            payment = _find(self.payments, found[1])
            return self._refund(payment, params["amount"], params["notes"], params["receipt"])
        if found := re.fullmatch(r"/v1/payments/(\w+)/refunds", path):
            refunds = {} if self.lists_lag else self.refunds
            return _page(_collection(refunds, payment_id=found[1]), params)
        if path == "/v1/disputes" and self.can_list_disputes:
            return _page(_collection(self.disputes), params)
        raise Refusal(400, _error("BAD_REQUEST_ERROR", "The requested URL was not found."))

    def _create_order(self, params: Json) -> Json:
        order_id = new_id("order")
        self.orders[order_id] = {
            "id": order_id,
            "entity": "order",
            "amount": params["amount"],
            "amount_paid": 0,
            "created_at": int(time.time()),
            "currency": params["currency"],
            "notes": params["notes"] or [],
            "receipt": params["receipt"],
            "status": "created",
        }
        return self.orders[order_id]

    # --- The buyer on the page ------------------------------------------------------------------

    def pay(self, order_id: str) -> str:
        """Pay, captured at once. Returns the payment's id."""
        payment = self._attempt(order_id, "authorized")
        self._capture(payment)
        return str(payment["id"])

    def fail(self, order_id: str) -> str:
        """Try a payment that the bank declines. Returns the payment's id."""
        payment = self._attempt(order_id, "failed")
        payment["error_description"] = "Your payment was declined by the bank."
        self._post("payment.failed", payment=payment)
        return str(payment["id"])

    def pay_late(self, order_id: str) -> str:
        """Pay, while the bank has not decided; `settle_late` completes it. Returns the payment's id."""
        return str(self._attempt(order_id, "authorized")["id"])

    def settle_late(self, order_id: str) -> None:
        """Capture the last attempt, even a failed one."""
        [*_, payment] = [item for item in self.payments.values() if item["order_id"] == order_id]
        payment["error_description"] = None
        self._capture(payment)

    def returned(self, payment_id: str) -> dict[str, str]:
        """The form that the buyer's browser posts to the callback URL."""
        order_id = self.payments[payment_id]["order_id"]
        return {
            "razorpay_payment_id": payment_id,
            "razorpay_order_id": order_id,
            "razorpay_signature": sign_for_razorpay(
                f"{order_id}|{payment_id}".encode(), KEY_SECRET
            ),
        }

    # --- Staff in the dashboard -----------------------------------------------------------------

    def refund(self, payment_id: str, amount: int | None = None) -> str:
        payment = self.payments[payment_id]
        left = payment["amount"] - payment["amount_refunded"]
        refund = self._refund(payment, left if amount is None else amount, {}, None)
        return str(refund["id"])

    def fail_refund(self, refund_id: str) -> None:
        refund = self.refunds[refund_id]
        refund["status"] = "failed"
        payment = self.payments[refund["payment_id"]]
        payment["amount_refunded"] -= refund["amount"]
        payment["status"] = "captured"
        self._post("refund.failed", refund=refund)

    def open_dispute(self, payment_id: str) -> str:
        payment = self.payments[payment_id]
        dispute_id = new_id("disp")
        self.disputes[dispute_id] = {
            "id": dispute_id,
            "entity": "dispute",
            "amount": payment["amount"],
            "amount_deducted": 0,
            "created_at": int(time.time()),
            "currency": payment["currency"],
            "payment_id": payment_id,
            "status": "open",
        }
        self._post("payment.dispute.created", payment=payment, dispute=self.disputes[dispute_id])
        return dispute_id

    def withdraw(self, dispute_id: str) -> None:
        dispute = self.disputes[dispute_id]
        dispute["amount_deducted"] = dispute["amount"]
        self._post_dispute(dispute, "under_review")

    def win(self, dispute_id: str) -> None:
        dispute = self.disputes[dispute_id]
        dispute.update(status="won", amount_deducted=0)
        self._post_dispute(dispute, "won")

    def lose(self, dispute_id: str) -> None:
        dispute = self.disputes[dispute_id]
        dispute.update(status="lost", amount_deducted=dispute["amount"])
        self._post_dispute(dispute, "lost")

    # --- Parts of the above ---------------------------------------------------------------------

    def _attempt(self, order_id: str, status: str) -> Json:
        order = self.orders[order_id]
        order["status"] = "attempted"
        payment_id = new_id("pay")
        self.payments[payment_id] = {
            "id": payment_id,
            "entity": "payment",
            "amount": order["amount"],
            "amount_refunded": 0,
            "captured": False,
            "created_at": int(time.time()),
            "currency": order["currency"],
            "error_description": None,
            "notes": order["notes"],
            "order_id": order_id,
            "status": status,
        }
        return self.payments[payment_id]

    def _capture(self, payment: Json) -> None:
        order = self.orders[payment["order_id"]]
        payment.update(status="captured", captured=True)
        order.update(status="paid", amount_paid=order["amount"])
        self._post("payment.captured", payment=payment)
        self._post("order.paid", payment=payment, order=order)

    def _refund(self, payment: Json, amount: int, notes: Json, receipt: str | None) -> Json:
        left = payment["amount"] - payment["amount_refunded"]
        if payment["currency"] == "KWD" and amount % 10:
            raise Refusal(400, _error("BAD_REQUEST_ERROR", "The last digit must be 0"))
        if not 0 < amount <= left:
            text = "The total refund amount is greater than the refund payment amount"
            raise Refusal(400, _error("BAD_REQUEST_ERROR", text))
        refund_id = new_id("rfnd")
        payment["amount_refunded"] += amount
        if payment["amount_refunded"] == payment["amount"]:
            payment["status"] = "refunded"
        self.refunds[refund_id] = {
            "id": refund_id,
            "entity": "refund",
            "amount": amount,
            "created_at": int(time.time()),
            "currency": payment["currency"],
            "notes": notes or [],
            "payment_id": payment["id"],
            "receipt": receipt,
            "status": "processed",
        }
        self._post("refund.processed", refund=self.refunds[refund_id], payment=payment)
        return self.refunds[refund_id]

    def _post_dispute(self, dispute: Json, what: str) -> None:
        payment = self.payments[dispute["payment_id"]]
        self._post(f"payment.dispute.{what}", payment=payment, dispute=dispute)

    def _post(self, kind: str, **entities: Json) -> None:
        self._postman.post("razorpay", razorpay_event(kind, **entities))


def _collection(stored: dict[str, Json], **wanted: str) -> Json:
    items = [
        item
        for item in reversed(stored.values())
        if all(item[field] == value for field, value in wanted.items())
    ]
    return {"entity": "collection", "count": len(items), "items": items}


def _page(collection: Json, params: Json) -> Json:
    skip, count = int(params.get("skip", 0)), int(params.get("count", 10))
    items = [
        item for item in collection["items"] if item["created_at"] >= int(params.get("from", 0))
    ][skip : skip + count]
    return {"entity": "collection", "count": len(items), "items": items}


def _find(stored: dict[str, Json], wanted: str) -> Json:
    if wanted not in stored:
        raise Refusal(400, _error("BAD_REQUEST_ERROR", "The id provided does not exist"))
    return stored[wanted]


def _error(code: str, description: str) -> Json:
    return {"error": {"code": code, "description": description, "reason": "NA"}}
