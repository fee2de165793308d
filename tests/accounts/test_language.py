"""The language of pages: that of the user's row, else of the cookie, else of the browser."""

from __future__ import annotations

import re
from uuid import uuid4

import pytest
from asgiref.sync import sync_to_async
from django.core import mail
from django.test import Client

from accounts.models import User
from billing.models import Invoice, Order
from billing.payments import invoices
from chat import errors, protocol
from chat.models import Message, Run
from chat.runs import finish
from chatproject.lib import languages
from tests.support.sockets import open_tab

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

PASSWORD = "a-long-password-17"


def shown(response) -> tuple[str, str]:
    """Return the language and the direction that a page declares."""
    found = re.search(r'<html lang="(\w+)" dir="(\w+)"', response.content.decode())
    assert found
    assert found[1] == response["Content-Language"]
    assert {"Accept-Language", "Cookie"} <= set(response["Vary"].split(", "))
    return found[1], found[2]


def test_visitor_gets_the_language_of_browser_or_cookie():
    client = Client(headers={"Accept-Language": "fr, de-AT;q=0.8, es;q=0.5"})
    page = client.get("/accounts/login/")
    assert shown(page) == ("de", "ltr")
    assert "catalogs/de.js" in page.content.decode()
    chosen = client.post(
        "/accounts/language/", {"language": "ar", "next": "/accounts/signup/?next=/"}
    )
    assert chosen.headers["Location"] == "/accounts/signup/?next=/"
    assert shown(client.get("/accounts/login/")) == ("ar", "rtl")
    client.post("/accounts/language/", {"language": "tlh", "next": "https://example.org/"})
    page = client.get("/accounts/login/")
    assert shown(page) == ("en", "ltr")
    assert "catalogs/" not in page.content.decode()


def test_user_keeps_the_language_on_all_devices():
    client = Client(headers={"Accept-Language": "es"})
    client.post("/accounts/signup/", {"email": "reader@example.org", "password1": PASSWORD})
    user = User.objects.get()
    assert user.language == "es"
    saved = client.post("/settings/", {"language": "de"}, follow=True)
    assert shown(saved) == ("de", "ltr")
    assert 'value="de" lang="de" selected' in saved.content.decode()
    assert client.post("/settings/", {"language": "tlh"}).status_code == 400
    # The sign-in page of this device, and the pages of another one that has no cookie yet.
    assert client.cookies["language"].value == "de"
    other = Client(headers={"Accept-Language": "es"})
    other.force_login(user)
    assert shown(other.get("/settings/")) == ("de", "ltr")
    assert other.cookies["language"].value == "de"
    assert shown(other.get("/nowhere/")) == ("de", "ltr")


def test_mails_come_in_the_language_of_their_recipient():
    user = User.objects.create_user("leser@example.org", PASSWORD, language="de")
    client = Client(headers={"Accept-Language": "es"})
    client.post("/accounts/password/reset/", {"email": user.email})
    client.post("/accounts/password/reset/", {"email": "nadie@example.org"})
    known, unknown = mail.outbox
    assert known.subject.endswith("Neues Passwort wählen")
    assert known.body.startswith("Guten Tag,")
    assert unknown.body.startswith("Hola:")


async def test_socket_answers_in_the_language_of_its_user():
    user = await sync_to_async(User.objects.create_user)(
        "qari@example.org", PASSWORD, language="ar"
    )
    async with open_tab(user) as tab:
        await tab.send(type="chat.send", client_id="a", text=" ")
        error = await tab.until("error")
    assert (error["code"], error["message"]) == ("empty_text", "الرسالة فارغة. اكتب شيئًا أولًا.")


def test_events_and_invoices_stay_in_the_language_of_their_request(settings):
    run = Run(
        id=uuid4(),
        conversation_id=uuid4(),
        status=Run.Status.FAILED,
        error_code="empty_reply",
        error_message=errors.ONLY_THOUGHTS,
        model_snapshot={"name": "Stub", "language": "de"},
        message=Message(id=uuid4(), role=Message.Role.ASSISTANT, status="failed"),
    )
    run.message.siblings = None
    with languages.use("es"):
        event = finish.event(run)
    assert isinstance(event, protocol.RunFailed)
    assert (
        event.message
        == "Das Modell hörte nach dem Nachdenken ohne Antwort auf. Versuchen Sie es erneut."
    )
    assert event.message in event.html
    order = Order(user=User(language="ar"))
    assert invoices.language_of(order, []) == "en"
    order.user.language = "es"
    assert invoices.language_of(order, []) == "es"
    assert invoices.language_of(order, [Invoice(content={"language": "de"})]) == "de"
