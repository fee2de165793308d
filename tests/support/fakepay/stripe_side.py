"""Stripe's API, its payment page and its dashboard."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from tests.support.fakepay.postman import Postman, stripe_event
from tests.support.fakepay.shared import Json, Refusal, Replays, new_id

KEY = "sk_test_fakepay"


class StripeSide:
    """The provider's state, in plain dicts: tests change them to contradict our orders."""

    def __init__(self, postman: Postman) -> None:
        self.url = ""  # of the server
        self.tax_percent = 0  # contained in the price, where automatic tax is asked for
        self.buyer: Json = {"name": None, "address": None}  # as typed on the payment page
        self.replays = Replays()
        self.sessions: dict[str, Json] = {}
        self.intents: dict[str, Json] = {}
        self.refunds: dict[str, Json] = {}
        self.disputes: dict[str, Json] = {}
        self.detached: list[str] = []  # payment methods
        self.declined_methods: dict[str, str] = {}  # payment method: decline code
        self.returns: dict[str, tuple[str, str]] = {}  # session: success and cancel URL
        self.lists_lag = False  # lists lack the newest objects
        self._postman = postman

    # --- The API --------------------------------------------------------------------------------

    def answer(
        self, method: str, path: str, text: str, headers: Any, fault: str
    ) -> tuple[int, Json]:
        """Answer a request; `text` is the query or the form."""
        if headers.get("Authorization") != f"Bearer {KEY}":
            return 401, _error("invalid_request_error", "Invalid API Key provided.")
        params = nest(text)
        key = headers.get("Idempotency-Key") if method == "POST" else None
        if key:
            try:
                kept = self.replays.find(key, [path, params])
            except ValueError:
                return 400, _error("idempotency_error", "Keys are for the same parameters only.")
            if kept:
                return kept
        if fault == "429":
            return 429, _error("rate_limit_error", "Too many requests.")
        status, body = 500, _error("api_error", "Something is wrong at our end.")
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
        if (method, path) == ("POST", "/v1/checkout/sessions"):
            return self._create_session(params)
        if (method, path) == ("POST", "/v1/payment_intents"):
            return self._charge(params)
        if (method, path) == ("POST", "/v1/refunds"):
            intent = _find(self.intents, params["payment_intent"])
            return self._refund(intent, int(params["amount"]), params.get("metadata", {}))
        if method == "POST" and (found := re.fullmatch(r"/v1/payment_methods/(\w+)/detach", path)):
            if found[1] in self.detached:
                words = "The payment method you provided is not attached to a customer."
                raise Refusal(400, _error("invalid_request_error", words))
            self.detached.append(found[1])
            return {"id": found[1], "object": "payment_method", "customer": None}
        if method == "GET":
            for name in ("refunds", "disputes", "payment_intents"):
                if path == f"/v1/{name}":
                    return self._list(name, params)
            if found := re.fullmatch(r"/v1/checkout/sessions/(\w+)", path):
                return self._show_session(_find(self.sessions, found[1]))
            if found := re.fullmatch(r"/v1/payment_intents/(\w+)", path):
                return _find(self.intents, found[1])
        raise Refusal(404, _error("invalid_request_error", f"Unrecognized request: {path}"))

    def _create_session(self, params: Json) -> Json:
        [item] = params["line_items"]
        price = item["price_data"]
        amount = int(price["unit_amount"])
        with_tax = params.get("automatic_tax", {}).get("enabled") == "true"
        tax = amount * self.tax_percent // (100 + self.tax_percent) if with_tax else 0
        session_id = new_id("cs_test")
        self.sessions[session_id] = {
            "id": session_id,
            "object": "checkout.session",
            "amount_total": amount,
            "client_reference_id": params.get("client_reference_id"),
            "currency": price["currency"],
            "customer": None,
            "customer_details": None,
            "invoice": None,
            "livemode": False,
            "metadata": params.get("metadata", {}),
            "payment_intent": None,
            "payment_status": "unpaid",
            "status": "open",
            "total_details": {
                "amount_tax": tax,
                "breakdown": {
                    "taxes": [
                        {
                            "amount": tax,
                            "rate": {"display_name": "VAT", "percentage": float(self.tax_percent)},
                        }
                    ]
                },
            },
            "url": f"{self.url}/pay/stripe/{session_id}",
            # Not part of the answer.
            "_intent": params.get("payment_intent_data", {}),
            "_has_customer": params.get("customer_creation") == "always",
        }
        self.returns[session_id] = (params["success_url"], params["cancel_url"])
        return self._show_session(self.sessions[session_id])

    def _show_session(self, session: Json) -> Json:
        shown = {name: value for name, value in session.items() if not name.startswith("_")}
        shown["url"] = session["url"] if session["status"] == "open" else None
        if intent := self.intents.get(session["payment_intent"] or ""):
            shown["payment_intent"] = dict(intent)
        if session["invoice"]:
            shown["invoice"] = {
                "id": session["invoice"],
                "object": "invoice",
                "hosted_invoice_url": f"https://stripe.example.org/invoice/{session['invoice']}",
            }
        return shown

    def _charge(self, params: Json) -> Json:
        intent = self._new_intent(int(params["amount"]), params["currency"], params["metadata"])
        intent["customer"] = params["customer"]
        code = self.declined_methods.get(params["payment_method"])
        if code:
            self._decline(intent, code)
            self._post("payment_intent.payment_failed", intent)
            raise Refusal(
                402,
                _error("card_error", "Your card was declined.", code, payment_intent=intent),
            )
        intent["payment_method"] = params["payment_method"]
        self._succeed(intent)
        self._post("payment_intent.succeeded", intent)
        return intent

    def _list(self, name: str, params: Json) -> Json:
        stored: dict[str, Json] = getattr(self, "intents" if name == "payment_intents" else name)
        wanted = {
            field: params[field] for field in ("payment_intent", "customer") if field in params
        }
        items = [
            item
            for item in reversed(stored.values())
            if not self.lists_lag and all(item[field] == value for field, value in wanted.items())
        ]
        return {"object": "list", "url": f"/v1/{name}", "has_more": False, "data": items}

    # --- The buyer on the page ------------------------------------------------------------------

    def pay(self, session_id: str) -> str:
        """Pay by card. Returns the payment's id."""
        session = self.sessions[session_id]
        intent = self._confirm(session)
        self._complete(session, intent)
        self._post("payment_intent.succeeded", intent)
        self._post("checkout.session.completed", self._notice_of(session))
        return str(intent["id"])

    def fail(self, session_id: str) -> None:
        """Try a card that is declined; the page stays open."""
        intent = self._confirm(self.sessions[session_id])
        self._decline(intent, "generic_decline")
        self._post("payment_intent.payment_failed", intent)

    def pay_late(self, session_id: str) -> None:
        """Pay by a method that takes days; `settle_late` or `fail_late` ends it."""
        session = self.sessions[session_id]
        intent = self._confirm(session)
        intent["status"] = "processing"
        session["status"] = "complete"
        self._post("checkout.session.completed", self._notice_of(session))

    def settle_late(self, session_id: str) -> None:
        session = self.sessions[session_id]
        self._complete(session, self.intents[session["payment_intent"]])
        self._post("checkout.session.async_payment_succeeded", self._notice_of(session))

    def fail_late(self, session_id: str) -> None:
        session = self.sessions[session_id]
        self._decline(self.intents[session["payment_intent"]], "insufficient_funds")
        self._post("checkout.session.async_payment_failed", self._notice_of(session))

    def expire(self, session_id: str) -> None:
        """Close the page, as Stripe does after a day without a payment."""
        self.sessions[session_id]["status"] = "expired"
        self._post("checkout.session.expired", self._notice_of(self.sessions[session_id]))

    # --- Staff in the dashboard -----------------------------------------------------------------

    def refund(self, payment_id: str, amount: int | None = None) -> str:
        """Send back an amount in Stripe's units, or the whole rest."""
        intent = self.intents[payment_id]
        left = intent["amount_received"] - self._refunded(payment_id)
        refund = self._refund(intent, left if amount is None else amount, {})
        return str(refund["id"])

    def fail_refund(self, refund_id: str) -> None:
        self.refunds[refund_id]["status"] = "failed"
        self._post("refund.failed", self.refunds[refund_id])

    def open_dispute(self, payment_id: str, *, inquiry: bool = False) -> str:
        """Let the buyer ask the bank for the money. An inquiry only asks us a question."""
        intent = self.intents[payment_id]
        dispute_id = new_id("du")
        self.disputes[dispute_id] = {
            "id": dispute_id,
            "object": "dispute",
            "amount": intent["amount_received"],
            "balance_transactions": [],
            "charge": intent["latest_charge"]["id"],
            "currency": intent["currency"],
            "livemode": False,
            "metadata": {},
            "payment_intent": payment_id,
            "status": "warning_needs_response" if inquiry else "needs_response",
        }
        self._post("charge.dispute.created", self.disputes[dispute_id])
        return dispute_id

    def withdraw(self, dispute_id: str) -> None:
        self._move(self.disputes[dispute_id], -1)
        self._post("charge.dispute.funds_withdrawn", self.disputes[dispute_id])

    def win(self, dispute_id: str) -> None:
        dispute = self.disputes[dispute_id]
        dispute["status"] = "won"
        self._post("charge.dispute.closed", dispute)
        if dispute["balance_transactions"]:
            self._move(dispute, 1)
            self._post("charge.dispute.funds_reinstated", dispute)

    def lose(self, dispute_id: str) -> None:
        self.disputes[dispute_id]["status"] = "lost"
        self._post("charge.dispute.closed", self.disputes[dispute_id])

    # --- Parts of the above ---------------------------------------------------------------------

    def _confirm(self, session: Json) -> Json:
        """Return the session's payment, which the first attempt to pay creates."""
        if session["status"] != "open":
            raise Refusal(400, _error("invalid_request_error", "The page is closed."))
        if not session["payment_intent"]:
            data = session["_intent"]
            intent = self._new_intent(
                session["amount_total"], session["currency"], data.get("metadata", {})
            )
            intent["setup_future_usage"] = data.get("setup_future_usage")
            session["payment_intent"] = intent["id"]
        return self.intents[session["payment_intent"]]

    def _complete(self, session: Json, intent: Json) -> None:
        intent["payment_method"] = intent["payment_method"] or new_id("pm")
        self._succeed(intent)
        session.update(status="complete", payment_status="paid", invoice=new_id("in"))
        session["customer_details"] = self.buyer
        if session["_has_customer"]:
            session["customer"] = intent["customer"] = new_id("cus")

    def _new_intent(self, amount: int, currency: str, metadata: Json) -> Json:
        intent_id = new_id("pi")
        self.intents[intent_id] = {
            "id": intent_id,
            "object": "payment_intent",
            "amount": amount,
            "amount_received": 0,
            "currency": currency,
            "customer": None,
            "last_payment_error": None,
            "latest_charge": None,
            "livemode": False,
            "metadata": metadata,
            "payment_method": None,
            "setup_future_usage": None,
            "status": "requires_payment_method",
        }
        return self.intents[intent_id]

    def _succeed(self, intent: Json) -> None:
        charge_id = new_id("ch")
        intent.update(
            status="succeeded",
            amount_received=intent["amount"],
            last_payment_error=None,
            latest_charge={
                "id": charge_id,
                "object": "charge",
                "receipt_url": f"https://stripe.example.org/receipt/{charge_id}",
            },
        )

    def _decline(self, intent: Json, code: str) -> None:
        error = _error("card_error", "Your card was declined.", code)["error"]
        intent.update(status="requires_payment_method", last_payment_error=error)

    def _refunded(self, payment_id: str) -> int:
        return sum(
            refund["amount"]
            for refund in self.refunds.values()
            if refund["payment_intent"] == payment_id and refund["status"] != "failed"
        )

    def _refund(self, intent: Json, amount: int, metadata: Json) -> Json:
        left = intent["amount_received"] - self._refunded(intent["id"])
        if intent["currency"] == "kwd" and amount % 10:
            raise Refusal(400, _error("invalid_request_error", "The last digit must be 0."))
        if not 0 < amount <= left:
            code = "charge_already_refunded" if not left else "amount_too_large"
            raise Refusal(400, _error("invalid_request_error", "More than was paid.", code))
        refund_id = new_id("re")
        self.refunds[refund_id] = {
            "id": refund_id,
            "object": "refund",
            "amount": amount,
            "charge": intent["latest_charge"]["id"],
            "currency": intent["currency"],
            "metadata": metadata,
            "payment_intent": intent["id"],
            "status": "succeeded",
        }
        self._post("refund.created", self.refunds[refund_id])
        self._post(
            "charge.refunded",
            {
                "id": intent["latest_charge"]["id"],
                "object": "charge",
                "amount_refunded": self._refunded(intent["id"]),
                "livemode": False,
                "metadata": intent["metadata"],
                "payment_intent": intent["id"],
            },
        )
        return self.refunds[refund_id]

    def _move(self, dispute: Json, sign: int) -> None:
        dispute["balance_transactions"].append(
            {
                "id": new_id("txn"),
                "object": "balance_transaction",
                "amount": sign * dispute["amount"],
                "currency": dispute["currency"],
            }
        )

    def _notice_of(self, session: Json) -> Json:
        """Return the session as webhooks carry it, with nothing expanded."""
        return self._show_session(session) | {
            "payment_intent": session["payment_intent"],
            "invoice": session["invoice"],
        }

    def _post(self, kind: str, subject: Json) -> None:
        self._postman.post("stripe", stripe_event(kind, subject))


def nest(text: str) -> Json:
    """Read a form of Stripe's: `a[b]=1&c[0][d]=2` is {"a": {"b": "1"}, "c": [{"d": "2"}]}."""
    tree: Json = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        *path, last = re.findall(r"[^\[\]]+", name)
        place = tree
        for step in path:
            place = place.setdefault(step, {})
        place[last] = value
    return {name: _lists(value) for name, value in tree.items()}


def _lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if all(name.isdecimal() for name in value):
        return [_lists(item) for item in value.values()]
    return {name: _lists(item) for name, item in value.items()}


def _find(stored: dict[str, Json], wanted: str) -> Json:
    if wanted not in stored:
        raise Refusal(
            404, _error("invalid_request_error", f"No such object: {wanted}", "resource_missing")
        )
    return stored[wanted]


def _error(kind: str, message: str, code: str = "", **more: Any) -> Json:
    error: Json = {"type": kind, "message": message} | more
    if kind == "card_error":
        is_own = code == "authentication_required"
        error |= {"code": code if is_own else "card_declined", "decline_code": code}
    elif code:
        error["code"] = code
    return {"error": error}
