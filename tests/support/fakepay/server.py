"""The HTTP server: the two APIs, the pages where buyers pay, and faults on demand."""

from __future__ import annotations

import html
import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from tests.support.fakepay.postman import Postman
from tests.support.fakepay.razorpay_side import RazorpaySide
from tests.support.fakepay.shared import Refusal
from tests.support.fakepay.stripe_side import StripeSide

BUTTONS = {"pay": "Pay", "fail": "Fail", "late": "Pay late", "close": "Close"}


class FakePay:
    """Both providers on one port, while the context lasts."""

    def __init__(self, port: int = 0, *, settle_late_after: float | None = None) -> None:
        self.postman = Postman()
        self.stripe = StripeSide(self.postman)
        self.razorpay = RazorpaySide(self.postman)
        self.requests: list[tuple[str, str, str]] = []  # method, path, query or body
        self.faults: deque[str] = deque()  # of the next requests; see `fault`
        self.settle_late_after = settle_late_after  # seconds; None: by hand
        self.lock = threading.RLock()
        self.held = threading.Event()
        self.stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
        self._server.daemon_threads = True
        self._server.pay = self  # type: ignore[attr-defined] # handlers reach their server only
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.stripe.url = self.url

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.postman.stop()
        self._server.shutdown()
        self._server.server_close()

    def fault(self, *kinds: str) -> None:
        """Add faults for the next requests to an API, one each.

        They are 429, 500, done-500 (done, but answered with 500), html, hang, cut (done, but not
        answered), hold (done, then `held` is set, and there is no answer), and an empty text for none. The first answer to an idempotency key is repeated.
        """
        self.faults.extend(kinds)

    def press(self, provider: str, order_id: str, button: str) -> str:
        """Press a button of the payment page; returns the payment's id, or "" unless it is `pay`."""
        side = self.stripe if provider == "stripe" else self.razorpay
        with self.lock:
            if button == "pay":
                return side.pay(order_id)
            if button == "fail":
                side.fail(order_id)
            if button == "late":
                side.pay_late(order_id)
                if self.settle_late_after is not None:
                    threading.Timer(self.settle_late_after, side.settle_late, [order_id]).start()
        return ""


class _Handler(BaseHTTPRequestHandler):
    server_version = "fakepay"

    @property
    def pay(self) -> FakePay:
        return self.server.pay  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET", urlsplit(self.path).query)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._handle("POST", self.rfile.read(length).decode())

    def _handle(self, method: str, text: str) -> None:
        path = urlsplit(self.path).path
        if path == "/v1/checkout/embedded":
            self._show_razorpay_page(dict(parse_qsl(text)))
        elif path.startswith("/pay/"):
            self._pay(method, path, dict(parse_qsl(text)))
        elif path.startswith("/v1/"):
            self._ask_api(method, path, text)
        else:
            self._send(200, _page("A document", "<p>Nothing more to see.</p>"))

    # --- The APIs -------------------------------------------------------------------------------

    def _ask_api(self, method: str, path: str, text: str) -> None:
        pay = self.pay
        with pay.lock:
            pay.requests.append((method, path, text))
            fault = pay.faults.popleft() if pay.faults else ""
        if fault == "hang":
            pay.stopped.wait()
            return
        if fault == "html":
            self._send(502, "<html><body><h1>502 Bad Gateway</h1></body></html>")
            return
        is_stripe = self.headers.get("Authorization", "").startswith("Bearer ")
        side = pay.stripe if is_stripe else pay.razorpay
        with pay.lock:
            status, body = side.answer(method, path, text, self.headers, fault)
            answer = json.dumps(body)
        if fault == "hold":
            pay.held.set()
            pay.stopped.wait()
        elif fault != "cut":
            self._send(status, answer, "application/json")

    # --- The pages ------------------------------------------------------------------------------

    def _show_razorpay_page(self, fields: dict[str, str]) -> None:
        order = self.pay.razorpay.orders.get(fields.get("order_id", ""))
        if order is None or str(order["amount"]) != fields.get("amount"):
            self._send(400, _page("Razorpay (fake)", "<p>There is no such order.</p>"))
            return
        hidden = "".join(
            _hidden(name, fields.get(name, "")) for name in ("callback_url", "cancel_url")
        )
        action = f"/pay/razorpay/{order['id']}"
        self._send(200, _pay_page("Razorpay", order["amount"], order["currency"], action, hidden))

    def _pay(self, method: str, path: str, fields: dict[str, str]) -> None:
        _, _, provider, order_id = path.split("/")
        try:
            if provider == "stripe":
                self._pay_stripe(method, order_id, fields.get("button", ""))
            else:
                self._pay_razorpay(order_id, fields)
        except (KeyError, Refusal):
            self._send(404, _page("Fake", "<p>This page is closed.</p>"))

    def _pay_stripe(self, method: str, session_id: str, button: str) -> None:
        session = self.pay.stripe.sessions[session_id]
        success, cancel = self.pay.stripe.returns[session_id]
        if method == "POST":
            self.pay.press("stripe", session_id, button)
        if button in ("pay", "late"):
            self._redirect(success)
        elif button == "close":
            self._redirect(cancel)
        else:
            note = "<p>Your card was declined.</p>" if button == "fail" else ""
            amount, currency = session["amount_total"], session["currency"].upper()
            self._send(200, _pay_page("Stripe", amount, currency, self.path, note))

    def _pay_razorpay(self, order_id: str, fields: dict[str, str]) -> None:
        button = fields["button"]
        payment_id = self.pay.press("razorpay", order_id, button)
        if button == "close":
            self._redirect(fields["cancel_url"])
            return
        returned = {"error[code]": "BAD_REQUEST_ERROR", "error[description]": "It failed."}
        if button == "pay":
            returned = self.pay.razorpay.returned(payment_id)
        elif button == "late":
            returned = {}
        hidden = "".join(_hidden(name, value) for name, value in returned.items())
        target = html.escape(fields["callback_url"])
        self._send(
            200,
            _page(
                "Razorpay (fake)",
                f'<form method="post" action="{target}">{hidden}<button>Back to the shop</button>'
                "</form><script>document.forms[0].submit()</script>",
            ),
        )

    # --- HTTP -----------------------------------------------------------------------------------

    def _send(self, status: int, text: str, kind: str = "text/html; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, url: str) -> None:
        self.send_response(303)
        self.send_header("Location", url)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _pay_page(name: str, amount: int, currency: str, action: str, inside: str) -> str:
    buttons = "".join(
        f'<button name="button" value="{value}">{label}</button> '
        for value, label in BUTTONS.items()
    )
    return _page(
        f"{name} (fake)",
        f"<p>{amount} {html.escape(currency)} in the provider's units</p>"
        f'<form method="post" action="{html.escape(action)}">{inside}{buttons}</form>',
    )


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<h1>{title}</h1>{body}</html>"
    )


def _hidden(name: str, value: str) -> str:
    return f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
