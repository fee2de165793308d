"""The frame of all signed-in pages: the sidebar with its chats, also on pages of other apps."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.template import Context
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import User
from chat.models import Draft, Project
from chatproject.templatetags.fragments import CachedNode
from tests.support.conversations import add_turns, begin

pytestmark = pytest.mark.usefixtures("valkey_url")

PAGES = ("/billing/", "/billing/usage/", "/accounts/email/", "/accounts/password/change/")


@pytest.fixture
def page(owner) -> Client:
    client = Client()
    client.force_login(owner)
    return client


@pytest.mark.parametrize("path", PAGES)
def test_pages_of_other_apps_have_the_sidebar(page, owner, assistant, path):
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            html = page.get(path).content.decode()
        assert "Ebb and flow" in html
        assert "Tides" in html
        assert html.count("<chat-sidebar") == 1
        return len(captured)

    def add() -> None:
        for _number in range(3):
            made = Project.objects.create(owner=owner, name="Tides")
            begin(owner, assistant, title="Ebb and flow", project=made)

    add()
    page.get(path)  # allauth stores the address at the first visit
    few = queries()
    add()
    assert queries() == few
    part = page.get(path, headers={"X-Swap": "1"}).content.decode()
    assert "<chat-app" in part
    assert "<chat-sidebar" not in part


def test_pages_without_sidebar_read_none(page, owner, assistant):
    begin(owner, assistant, title="Ebb and flow")
    with CaptureQueriesContext(connection) as captured:
        assert page.get("/nowhere/").status_code == 404
    assert not [one for one in captured if "chat_conversation" in one["sql"]]


def test_cached_fragments_equal_the_whole_templates(owner, stranger, assistant, monkeypatch):
    """For a second user, after the fragments were made for the first: nothing of a page is another user's."""
    pages: list[tuple[Client, str]] = []
    for user in (owner, stranger):
        client = Client()
        client.force_login(user)
        project = Project.objects.create(owner=user, name=f"<{user.pk}>")
        fields = {"title": f"</b>{user.pk}", "system_prompt": f"<i>{user.pk}", "project": project}
        chat = begin(user, assistant, pinned_at=timezone.now(), **fields)
        plain = begin(user, assistant)
        sent = add_turns(user, plain, 2)[0]
        Draft.objects.create(
            user=user, conversation=chat, text=f"</textarea>{user.pk}", edited_at=timezone.now()
        )
        pages += [
            (client, path)
            for path in (
                *(chat.get_absolute_url(), f"{plain.get_absolute_url()}?edit={sent.pk}"),
                *("/", "/?temporary=1", f"/?project={project.pk}", "/billing/", "/chats/"),
                *("/settings/", project.get_absolute_url()),
            )
        ]

    def read() -> list[str]:
        found = []
        for is_staff, language in ((False, "en"), (True, "ar")):
            User.objects.update(is_staff=is_staff, single_keys=is_staff, language=language)
            for client, path in pages:
                response = client.get(path, follow=True)
                assert response.status_code == 200, path
                found.append(VARYING.sub("", response.content.decode()))
        return found

    cached = read()
    monkeypatch.setattr(CachedNode, "render", _rendered_whole)
    for cached_page, whole in zip(cached, read(), strict=True):
        assert cached_page == whole


# Tokens, ids of messages that are not sent yet, and ages.
VARYING = re.compile(
    r'name="(csrfmiddlewaretoken|client_id|opened)" value="[^"]*"|data-draft-age="\d+"|[0-9a-f-]{36}-prompt'
)


def _rendered_whole(node: CachedNode, context: Context) -> str:
    """Render the content of a fragment as if its tag were `with`."""
    given = {**node.keys, **node.constants, **dict(node.holes)}
    del given["csrf_token"]
    values = {}
    for name, value in given.items():
        is_key = name in node.keys
        values[name] = value.resolve(context, ignore_failures=is_key)
    with context.push(**values):
        return node.nodelist.render(context)
