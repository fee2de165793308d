"""The instructions for one chat: a part of its prompts and their cost, bounded, of its owner alone."""

from __future__ import annotations

import json

import pytest
from django.test import Client

from chat import access
from chat.conversations import branches, instructions, prompt_builder
from chat.errors import ChatError
from chat.generation import generate
from chat.models import Conversation
from chat.runs import cost
from chat.transfer import documents, formats
from tests.chat.conversations.test_listing import published
from tests.support.conversations import client_id, send
from tests.support.runs import mark_done

__all__ = ["published"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def test_instructions_are_added_to_those_of_the_assistant(owner, stranger, conversation, published):
    page = Client()
    page.force_login(owner)
    path = f"/c/{conversation.pk}/instructions/"
    before = cost.estimate(user=owner, text="Hi", conversation_id=conversation.pk)
    each = cost.estimate_each(user=owner, text="Hi", conversation_id=conversation.pk)
    posted = {"system_prompt": "\nAnswer in verse.\r\nRhyme. \n"}
    event = published(lambda: page.post(path, posted))
    assert event["type"] == "instructions.changed"
    assert event["system_prompt"] == "Answer in verse.\nRhyme."
    assert page.get(path).content.decode().count("Answer in verse.\nRhyme.") == 1
    after = cost.estimate(user=owner, text="Hi", conversation_id=conversation.pk)
    assert before is not None
    assert after is not None
    assert after.most > before.most
    later = cost.estimate_each(user=owner, text="Hi", conversation_id=conversation.pk)
    assert [one.most for one in later.values()] == [after.most]
    assert [one.most for one in each.values()] == [before.most]

    run = send(owner, conversation, "Hi")
    assert run.most == after.most
    work = generate.claim(run.pk, 1)
    assert work is not None
    first = prompt_builder.build(work).messages[0]
    assert first == {"role": "system", "content": "Be brief.\n\nAnswer in verse.\nRhyme."}

    # The cost of a reply that is generated is fixed.
    refused = page.post(path, {"system_prompt": "Other"})
    assert refused.status_code == 409
    assert "Other" in refused.content.decode()
    mark_done(run)
    assert page.post(path, {"system_prompt": "Other"}).status_code == 302
    copy = branches.fork(user=owner, message_id=run.message_id, client_id=client_id())
    assert copy.system_prompt == "Other"

    shown = access.conversation(owner, conversation.pk)
    text, _next = documents.json(shown)(0)
    exported = json.loads(text)
    assert exported["system_prompt"] == "Other"
    chat = formats.convert(exported)
    assert chat is not None
    assert chat.system_prompt == "Other"

    visitor = Client()
    visitor.force_login(stranger)
    assert visitor.get(path).status_code == 404
    assert visitor.post(path, {"system_prompt": "Mine"}).status_code == 404
    assert Conversation.objects.get(pk=conversation.pk).system_prompt == "Other"


@pytest.mark.parametrize(
    ("text", "code"),
    [("x" * 10_001, "text_too_long"), ("a\x00b", "bad_text"), ("a\ud800b", "bad_text")],
)
def test_impossible_instructions_are_refused(owner, conversation, text, code):
    with pytest.raises(ChatError, match=code):
        instructions.change(user=owner, conversation_id=conversation.pk, text=text)
    instructions.change(user=owner, conversation_id=conversation.pk, text="x" * 10_000)
    instructions.change(user=owner, conversation_id=conversation.pk, text=" ")
    conversation.refresh_from_db()
    assert conversation.system_prompt == ""
