"""The terms, the privacy notice and the imprint: published by staff, read by all, agreed to by users."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts import consent
from accounts.models import Consent, LegalDocument, User
from chat.rendering.document import to_html

pytestmark = pytest.mark.usefixtures("valkey_url", "assistant")

PASSWORD = "a-long-password-17"
ADD = "/admin/accounts/legaldocument/add/"


def publish(kind: str, version: int, **fields: Any) -> LegalDocument:
    values = {"language": "en", "needs_consent": kind == "terms", "text": f"# {kind} {version}"}
    values |= {"published_at": timezone.now(), **fields}
    one = LegalDocument.objects.create(kind=kind, version=version, **values)
    LegalDocument.objects.filter(pk=one.pk).update(html=to_html(str(values["text"])))
    consent.memory.forget()
    return one


@pytest.fixture
def page(owner: User) -> Client:
    client = Client()
    client.force_login(owner)
    return client


def agree(page: Client, *documents: LegalDocument, back: str = "/chats/") -> Any:
    return page.post("/consent/", {"documents": consent.key_of(documents), "next": back})


def test_site_without_documents_asks_for_nothing(page):
    consent.memory.forget()
    assert page.get("/chats/").status_code == 200
    assert page.get("/consent/").status_code == 302
    visitor = Client()
    html = visitor.get("/accounts/signup/").content.decode()
    assert "legal-links" not in html
    assert 'name="agrees"' not in html
    for path in ("/terms/", "/privacy/1/", "/imprint/", "/terms/99999999999999999999/"):
        assert visitor.get(path).status_code == 404


def test_sign_up_stores_consent_to_what_was_shown():
    terms = publish("terms", 1, text="No *spam*. <script>")
    publish("imprint", 1)
    publish("privacy", 1, published_at=None)
    client = Client()
    html = client.get("/accounts/signup/").content.decode()
    assert 'href="/terms/"' in html
    assert 'href="/imprint/"' in html
    assert 'href="/privacy/"' not in html
    shown = client.get("/terms/").content.decode()
    assert "<em>spam</em>" in shown
    assert "<script>" not in shown.split("<main")[1]
    form = {"email": "new@example.org", "password1": PASSWORD, "documents": str(terms.pk)}
    refused = client.post("/accounts/signup/", form).content.decode()
    assert "Agree to create an account." in refused
    newer = publish("terms", 2)
    outdated = client.post("/accounts/signup/", form | {"agrees": "on"}).content.decode()
    assert "The documents have changed meanwhile." in outdated
    assert f'name="documents" value="{newer.pk}"' in outdated
    assert not User.objects.filter(email="new@example.org").exists()
    form |= {"agrees": "on", "documents": str(newer.pk)}
    assert client.post("/accounts/signup/", form).status_code == 302
    assert list(Consent.objects.values_list("user__email", "kind", "version")) == [
        ("new@example.org", "terms", 2)
    ]
    assert client.get("/chats/").status_code == 200


def test_new_version_asks_at_the_next_page(page, owner):
    first = publish("terms", 1)
    response = page.get("/chats/?page=2")
    assert response["Location"] == "/consent/?next=%2Fchats%2F%3Fpage%3D2"
    # Without consent one can leave, with one's data; requests of scripts and forms are answered.
    for path in ("/chats/export/", "/settings/data/", "/accounts/logout/", "/terms/", "/consent/"):
        assert page.get(path).status_code == 200, path
    assert page.get("/chats/", headers={"Accept": "application/json"}).status_code == 200
    assert page.post("/accounts/profile/", {"display_name": "Ada"}).status_code == 302
    assert page.get("/accounts/profile/").status_code == 302
    assert agree(page, first)["Location"] == "/chats/"
    assert page.get("/chats/").status_code == 200

    publish("terms", 2, needs_consent=False)  # a correction
    publish("terms", 1, language="de")  # a translation
    assert page.get("/chats/").status_code == 200

    third = publish("terms", 3, changes="We now sell boats.")
    privacy = publish("privacy", 1, needs_consent=True)
    html = page.get("/consent/").content.decode()
    assert "We now sell boats." in html
    assert "Our terms have changed" in html
    assert agree(page, third).status_code == 409  # not all that is shown now
    assert Consent.objects.count() == 1
    assert agree(page, third, privacy, back="//evil.example/")["Location"] == "/"
    assert page.get("/chats/").status_code == 200
    assert agree(page, third, privacy).status_code == 302  # in another tab
    assert Consent.objects.count() == 3

    html = page.get("/accounts/profile/").content.decode()
    for version in (1, 3):
        assert f'href="/terms/{version}/"' in html
    old = Client().get("/terms/1/").content.decode()
    assert "terms 1" in old
    assert "Show the current version" in old
    assert "Show the current version" not in Client().get("/terms/3/").content.decode()


def test_document_is_shown_in_the_language_of_the_page():
    publish("imprint", 1, text="Address")
    publish("imprint", 1, text="Anschrift", language="de")
    publish("privacy", 1, text="Solo en español", language="es")
    german = Client(headers={"Accept-Language": "de"})
    assert "Anschrift" in german.get("/imprint/").content.decode()
    assert "Address" in Client(headers={"Accept-Language": "es"}).get("/imprint/").content.decode()
    assert "Solo en" in german.get("/privacy/").content.decode()


def test_page_makes_no_query_for_consent(page):
    page.get("/chats/")
    with CaptureQueriesContext(
        connection,
    ) as before:
        page.get("/chats/")
    agree(page, publish("terms", 1))
    page.get("/chats/")
    with CaptureQueriesContext(connection) as after:
        assert page.get("/chats/").status_code == 200
    assert len(after) == len(before)


def test_staff_publish_and_no_one_changes_it_afterwards(owner, page):
    client = Client()
    client.force_login(User.objects.create_superuser("staff@example.org", PASSWORD))
    form = {"kind": "terms", "language": "en", "text": "Be *kind*", "needs_consent": "on"}
    assert client.post(ADD, form).status_code == 302
    draft = LegalDocument.objects.get()
    assert (draft.version, draft.published_at) == (1, None)
    consent.memory.forget()
    assert Client().get("/terms/").status_code == 404
    assert page.get("/chats/").status_code == 200
    change = reverse("admin:accounts_legaldocument_change", args=[draft.pk])
    assert "<em>kind</em>" in client.get(change).content.decode()
    published = form | {"version": "1", "publish": "on"}
    assert client.post(change, published).status_code == 302
    consent.memory.forget()  # the transaction of this test does not end
    assert page.get("/chats/").status_code == 302
    assert client.post(change, published | {"text": "Pay more"}).status_code == 403
    delete = reverse("admin:accounts_legaldocument_delete", args=[draft.pk])
    assert client.post(delete, {"post": "yes"}).status_code == 403
    draft.refresh_from_db()
    assert draft.text == "Be *kind*"
    for language, version in (("de", 1), ("en", 2), ("de", 2)):
        assert client.post(ADD, form | {"language": language}).status_code == 302
        assert LegalDocument.objects.latest("pk").version == version
    assert client.post(ADD, form | {"version": "1"}).status_code == 200
    imprint = client.post(ADD, form | {"kind": "imprint"})
    assert "Users cannot agree to an imprint." in imprint.content.decode()
    assert LogEntry.objects.count() == 5
