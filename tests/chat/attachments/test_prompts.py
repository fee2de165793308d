"""Attachments on their way to the model: parts and texts of the prompt, their price, and what is refused."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from chat.attachments import content
from chat.conversations import branches, prompt_builder
from chat.errors import ChatError
from chat.generation import generate
from chat.models import Attachment, LanguageModel, Message, MessageAttachment, Run
from chat.runs import cost, next_message, start
from chatproject.lib import db, private_files
from tests.support.conversations import client_id, send
from tests.support.fake_llm import FakeLLM
from tests.support.files import attach, picture
from tests.support.runs import mark_done

pytestmark = pytest.mark.usefixtures("valkey_url", "transactional_db")


@pytest.fixture(autouse=True)
def folder(settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path / "private"
    return settings.PRIVATE_ROOT


@pytest.fixture
def seeing(assistant) -> LanguageModel:
    """The assistant's model, which sees images."""
    LanguageModel.objects.update(vision=True)
    return LanguageModel.objects.get(pk=assistant.model.pk)


def sent_content(run: Run) -> Any:
    """The content of the last message as the worker would send it."""
    fresh = Run.objects.select_related("assistant", "model", "message__parent").get(pk=run.pk)
    return prompt_builder.build(fresh, with_files=True).messages[-1]["content"]


def data_url(one: Attachment) -> str:
    data = private_files.path(one.file).read_bytes()
    return f"data:{one.content_type};base64,{base64.b64encode(data).decode()}"


async def test_files_reach_the_model_and_stay_with_it(
    owner, conversation, seeing, provider: FakeLLM, worker_loop
):
    image, text = (
        await db.run(attach, owner),
        await db.run(attach, owner, b"line\n</file>", "a.txt"),
    )
    run = await db.run(send, owner, conversation, "Look", attachment_ids=[image.pk, text.pk])
    await generate.run(run.pk, 1)
    body = '<file-2 name="a.txt">\nline\n</file>\n</file-2>\n\nLook'
    expected = [
        {"type": "image_url", "image_url": {"url": data_url(image)}},
        {"type": "text", "text": body},
    ]
    assert provider.requests[-1]["messages"][-1] == {"role": "user", "content": expected}
    run = await Run.objects.aget(pk=run.pk)
    assert run.status == "done"
    # Regenerated, and edited to another text.
    again = await db.run(
        start.regenerate, user=owner, message_id=run.message_id, client_id=client_id()
    )
    await generate.run(again.run.pk, 1)
    assert provider.requests[-1]["messages"][-1]["content"] == expected
    sent = await Message.objects.aget(children=run.message_id)
    edited = await db.run(
        start.edit, user=owner, message_id=sent.pk, text="See", client_id=client_id()
    )
    await generate.run(edited.run.pk, 1)
    assert provider.requests[-1]["messages"][-1]["content"][1]["text"].endswith("\n\nSee")
    # In a copy, which links to the same files.
    copy = await db.run(branches.fork, user=owner, message_id=run.message_id, client_id=client_id())
    assert await MessageAttachment.objects.filter(message__conversation=copy).acount() == 2
    run = await db.run(send, owner, copy, "And now?")
    # Another model, which sees nothing, does not get the image of an earlier message.
    await LanguageModel.objects.aupdate(vision=False)
    await generate.run(run.pk, 1)
    first = provider.requests[-1]["messages"][1]["content"]
    assert (
        first == f'[The image "picture.png" is left out: this model cannot see images.]\n\n{body}'
    )


def test_message_needs_no_text_beside_its_files(owner, conversation, seeing):
    run = send(owner, conversation, " ", attachment_ids=[attach(owner, name="Cat.png").pk])
    assert [part["type"] for part in sent_content(run)] == ["image_url"]
    run.conversation.refresh_from_db()
    assert run.conversation.title == "Cat.png"
    assert Attachment.objects.get().expires_at is None


def test_message_without_files_needs_no_more_queries(owner, conversation, seeing):
    counts = []
    mark_done(send(owner, conversation))  # the first one reads no chunk of earlier messages
    for files in ([], [attach(owner).pk], [attach(owner).pk, attach(owner).pk]):
        with CaptureQueriesContext(connection) as queries:
            run = send(owner, conversation, attachment_ids=files)
        counts.append(len(queries))
        mark_done(run)
    assert counts[1] == counts[2] == counts[0] + 1
    bare = send(owner, conversation)
    fresh = Run.objects.select_related("assistant", "model", "message__parent").get(pk=bare.pk)
    with CaptureQueriesContext(connection) as queries:
        prompt_builder.build(fresh)
    assert len(queries) == 1


def test_image_is_refused_before_a_blind_model_gets_it(owner, conversation, assistant):
    image = attach(owner)
    with pytest.raises(ChatError, match="no_vision: Stub cannot see images"):
        send(owner, conversation, attachment_ids=[image.pk])
    assert not Message.objects.exists()
    assert Attachment.objects.get().expires_at is not None
    found = cost.estimate(user=owner, text="Hi", attachment_ids=[image.pk])
    assert found is not None
    assert "cannot see images" in found.problem
    each = cost.estimate_each(user=owner, text="Hi", attachment_ids=[image.pk])
    assert "cannot see images" in each[assistant.model.pk].problem
    # Also when the model was changed after the message.
    LanguageModel.objects.update(vision=True)
    run = mark_done(send(owner, conversation, attachment_ids=[image.pk]))
    LanguageModel.objects.update(vision=False)
    with pytest.raises(ChatError, match="no_vision"):
        start.regenerate(user=owner, message_id=run.message_id, client_id=client_id())
    kept = send(owner, conversation, "Without it")
    assert (
        "picture.png"
        in prompt_builder.build(
            Run.objects.select_related("assistant", "model", "message").get(pk=kept.pk),
            with_files=True,
        ).messages[1]["content"]
    )


def test_files_are_counted_and_held_for(owner, conversation, seeing):
    plain = cost.estimate(user=owner, text="Hi")
    text = attach(owner, b"word " * 2_000, "a.txt")
    with_text = cost.estimate(user=owner, text="Hi", attachment_ids=[text.pk])
    image = attach(owner, picture(size=(1_024, 1_024)))
    with_image = cost.estimate(user=owner, text="Hi", attachment_ids=[image.pk])
    assert plain
    assert with_text
    assert with_image
    # 20 credits for a million tokens: 10,000 bytes of text have about 2,500.
    assert 50_000 <= with_text.usual - plain.usual <= 51_000
    assert with_image.usual - plain.usual == 1_400 * 20
    assert with_text.most - plain.most >= 10_000 * 20 - 80 * 2_000
    LanguageModel.objects.update(image_tokens=4_000)
    dearer = cost.estimate(user=owner, text="Hi", attachment_ids=[image.pk])
    assert dearer
    assert dearer.usual - plain.usual == 4_000 * 20
    run = send(owner, conversation, "Hi", attachment_ids=[text.pk])
    assert run.prompt_estimate > 2_500


def test_files_beyond_the_window_are_refused(owner, conversation, assistant):
    text = attach(owner, b"word " * 6_000, "a.txt")
    with pytest.raises(ChatError, match="text_too_long: The files have about 7,5"):
        send(owner, conversation, attachment_ids=[text.pk])
    found = cost.estimate_each(user=owner, text="Hi", attachment_ids=[text.pk])
    assert "larger context" in found[assistant.model.pk].problem


def test_files_of_others_and_removed_ones_are_refused(owner, stranger, conversation, seeing):
    theirs, mine = attach(stranger), attach(owner)
    for ids in ([theirs.pk], [mine.pk, theirs.pk]):
        with pytest.raises(ChatError, match="file_missing"):
            send(owner, conversation, attachment_ids=ids)
    mine.delete()
    with pytest.raises(ChatError, match="file_missing"):
        send(owner, conversation, attachment_ids=[mine.pk])
    assert cost.estimate(user=owner, text="Hi", attachment_ids=[theirs.pk]) == cost.estimate(
        user=owner, text="Hi"
    )


def test_newest_images_fit_and_older_ones_are_noted(seeing):
    room = content.Room()
    one = {"id": "x", "kind": "image", "name": "a", "size": 1_500_000, "width": 9, "height": 9}
    newest = content.Files.of(seeing, [one] * 10, room)
    older = content.Files.of(seeing, [one] * 3, room)
    assert (len(newest.images), len(older.images), len(older.notes)) == (10, 0, 3)
    assert older.bound > 0


def test_lost_file_is_noted_in_the_prompt(owner, conversation, seeing):
    image, text = attach(owner), attach(owner, b"words", "a.txt")
    run = send(owner, conversation, "Hi", attachment_ids=[image.pk, text.pk])
    private_files.remove(image.file)
    private_files.remove(text.file)
    assert sent_content(run) == (
        '[The file "a.txt" was deleted.]\n\n[The file "picture.png" was deleted.]\n\nHi'
    )


def test_files_of_a_queued_message_are_sent_with_it(owner, conversation, seeing):
    run = send(owner, conversation)
    image = attach(owner)
    queued = next_message.queue(
        user=owner,
        text="",
        client_id=client_id(),
        conversation_id=conversation.pk,
        attachment_ids=[image.pk],
    )
    assert queued.attachments == [image.pk]
    image.refresh_from_db()
    assert image.expires_at is not None
    assert image.expires_at > timezone.now() + timedelta(days=20)
    mark_done(run)
    next_message.proceed(conversation.pk)
    sent = Message.objects.filter(role="user").latest("pk")
    assert [one["id"] for one in sent.attached or ()] == [str(image.pk)]
