"""HEAD answers as GET does, without the body."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.support.conversations import begin


@pytest.mark.django_db(transaction=True)
def test_pages_answer_head_as_get(client: Client, owner, assistant):
    conversation = begin(owner, assistant)
    client.force_login(owner)
    chat, billing = f"/c/{conversation.pk}/", "/billing/"
    for path in ("/", chat, "/chats/", billing, f"{billing}history/", f"{billing}packages.json"):
        page, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (page.status_code, b"")
        assert head["Content-Type"] == page["Content-Type"]
        assert page.status_code == 200
