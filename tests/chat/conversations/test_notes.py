"""Notes about a user: a part of prompts and their cost, of their user alone, bounded, off by choice."""

from __future__ import annotations

import pytest
from django.test import Client

from chat.conversations import notes, prompt_builder
from chat.conversations.offers import Choice
from chat.errors import ChatError
from chat.generation import generate
from chat.models import Run, UserNote
from chat.runs import cost, start
from tests.support.conversations import client_id, send
from tests.support.runs import mark_done

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def add(user, *texts: str) -> None:
    for text in texts:
        notes.save(user=user, note_id=None, text=text)


def system(run: Run) -> str:
    """Return the instructions that the worker sends."""
    work = generate.claim(run.pk, 1)
    assert work is not None
    first = prompt_builder.build(work).messages[0]
    assert first["role"] == "system"
    return str(first["content"])


def test_notes_are_in_prompts_and_their_cost(owner, stranger, conversation):
    before = cost.estimate(user=owner, text="Hi", conversation_id=conversation.pk)
    add(owner, "Lives in Lisbon", "Eats no meat")
    add(stranger, "Plays chess")
    after = cost.estimate(user=owner, text="Hi", conversation_id=conversation.pk)
    run = send(owner, conversation, "Hi")
    assert before.most < after.most == run.most
    add(owner, "Written after the message was quoted")
    text = f"Be brief.\n\n{notes.HEADING}\n- Lives in Lisbon\n- Eats no meat"
    assert system(run) == text
    mark_done(run)
    assert "after the message" in system(send(owner, conversation, "Again"))


def test_first_message_has_notes_and_temporary_chat_none(owner, assistant):
    add(owner, "Lives in Lisbon")
    chosen = [Choice(assistant_id=assistant.pk, temporary=one) for one in (False, True)]
    first, run = (
        start.send(user=owner, text="Hi", client_id=client_id(), choice=one).run for one in chosen
    )
    assert "Lisbon" in system(first)
    assert system(run) == "Be brief."
    with pytest.raises(ChatError, match="off"):
        notes.remember(run_id=run.pk, call="1", text="Secret")


def test_switched_off_notes_are_neither_read_nor_written(owner, conversation, settings):
    add(owner, "Lives in Lisbon")
    notes.switch(owner, on=False)
    run = send(owner, conversation, "Hi")
    assert system(run) == "Be brief."
    with pytest.raises(ChatError, match="off"):
        notes.remember(run_id=run.pk, call="1", text="Plays chess")
    notes.switch(owner, on=True)
    mark_done(run)
    settings.USER_NOTES = False
    assert system(send(owner, conversation, "Hi")) == "Be brief."


def test_reply_remembers_once_and_is_named(owner, conversation):
    run = send(owner, conversation, "Hi")
    first = notes.remember(run_id=run.pk, call="a", text=" Plays\nchess ")
    again = notes.remember(run_id=run.pk, call="a", text="Plays chess")
    same = notes.remember(run_id=run.pk, call="b", text="plays CHESS")
    assert first.pk == again.pk == same.pk
    assert (first.text, first.message_id) == ("Plays chess", run.message_id)
    page = Client()
    page.force_login(owner)
    link = f'href="/c/{conversation.pk}/#m-{run.message_id}"'
    assert link in page.get("/settings/memory/").content.decode()


def test_prompt_has_the_newest_notes_that_fit(owner):
    texts = [f"{number} " + "x" * 97 for number in range(100)]
    small = notes.in_prompt(texts, 2_000)
    assert [line.split()[1] for line in small.splitlines()[1:]] == [str(n) for n in range(91, 100)]
    assert len(notes.in_prompt(texts, 1_000_000)) < notes.MAX_IN_PROMPT + len(notes.HEADING)
    assert notes.in_prompt(texts, 100) == notes.in_prompt(None, 10_000) == ""


def test_page_adds_changes_and_deletes_notes(owner, stranger):
    page = Client()
    page.force_login(owner)
    page.post("/settings/memory/", {"text": "Lives in <Lisbon>"})
    [note] = UserNote.objects.all()
    address = f"/settings/memory/{note.pk}/"
    assert "Lives in &lt;Lisbon&gt;" in page.get(address).content.decode()
    page.post(address, {"text": "Lives in Porto"})
    assert "Lives in Porto" in page.get("/settings/memory/").content.decode()
    for text in ("", "x" * 301, "a\x00b"):
        assert page.post(address, {"text": text}).status_code == 400
    page.post("/settings/memory/", {"switch": "off"})
    assert "Notes are off" in page.get("/settings/memory/").content.decode()
    page.post("/settings/memory/", {"text": "Plays chess"})
    page.post(f"{address}delete/")
    assert [one.text for one in UserNote.objects.all()] == ["Plays chess"]
    page.post("/settings/memory/delete/")
    assert not UserNote.objects.exists()


def test_user_has_a_hundred_notes_at_most(owner):
    UserNote.objects.bulk_create(
        UserNote(user=owner, text=str(number), created_by="user") for number in range(100)
    )
    with pytest.raises(ChatError) as caught:
        add(owner, "one more")
    assert caught.value.code == "too_many"
