"""The template of a message, as pages and events use it."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from accounts.models import User
from chat.models import Assistant, Conversation, Message, MessagePart, Run, new_id
from chat.rendering import markdown
from chat.rendering.message import message_html


class Reader(HTMLParser):
    """What stands in a piece of HTML: its buttons' names, and the text that is not markup."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.buttons: list[str] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in {"button", "a"}:
            self.buttons.append(given.get("aria-label") or "")
        assert "style" not in given

    def handle_data(self, data: str) -> None:
        self.words += data


def read(message: Message) -> Reader:
    return Reader(message_html(message))


@pytest.fixture
def sent(conversation: Conversation) -> Message:
    return Message.objects.create(conversation=conversation, role="user", text="Hello")


@pytest.fixture
def reply(sent: Message, owner: User, assistant: Assistant) -> Message:
    message = Message.objects.create(
        conversation=sent.conversation, parent=sent, role="assistant", status="pending"
    )
    Run.objects.create(
        conversation=sent.conversation,
        message=message,
        user=owner,
        client_id=str(new_id()),
        assistant=assistant,
        model=assistant.model,
        model_snapshot={"name": "Stub"},
    )
    return message


def finish(reply: Message, status: str, text: str, **run: object) -> Message:
    reply.status, reply.text, reply.html = status, text, markdown.to_html(text) if text else ""
    for name, value in run.items():
        setattr(reply.run, name, value)
    return reply


def test_what_a_user_wrote_is_shown_as_it_was_typed(sent: Message):
    sent.text = "<script>alert(1)</script>\n  {{ two }} & *three*"
    html = message_html(sent)
    assert (
        '<div class="own-text">&lt;script&gt;alert(1)&lt;/script&gt;\n  {{ two }} &amp; *three*</div>'
        in html
    )
    assert f'data-id="{sent.id}"' in html


def test_one_can_edit_what_one_wrote(sent: Message):
    assert f'form="edit" name="edit" value="{sent.id}"' in message_html(sent)
    assert read(sent).buttons == ["Edit message"]


def test_a_reply_that_is_waited_for_has_room_for_text_and_thoughts(reply: Message):
    html = message_html(reply)
    assert f'data-run="{reply.run.id}"' in html
    assert 'data-status="pending"' in html
    assert '<div class="stream"></div>' in html
    assert '<div class="reasoning-text"></div>' in html
    assert "Queued" in html
    assert Reader(html).buttons == []


def test_a_reply_that_a_worker_has_says_so(reply: Message):
    reply.run.status = Run.Status.RUNNING
    assert "Reading your message…" in message_html(reply)


def test_a_finished_reply_can_be_copied_and_asked_for_again_and_names_its_model(reply: Message):
    html = message_html(finish(reply, "done", "It is *so*."))
    assert '<div class="prose"><p>It is <em>so</em>.</p>\n</div>' in html
    assert Reader(html).buttons == ["Copy reply", "Regenerate"]
    assert '<span class="action-model">Stub</span>' in html
    assert "notice" not in html


def test_a_failed_reply_keeps_its_text_says_what_happened_and_has_one_button_to_try_again(
    reply: Message,
):
    finish(
        reply,
        "failed",
        "Half a",
        error_code="provider_timeout",
        error_message="The model did not answer in time. Try again.",
    )
    found = read(reply)
    assert "Half a" in found.words
    assert "The model did not answer in time. Try again." in found.words
    assert "provider_timeout" in found.words
    html = message_html(reply)
    assert html.count("data-regenerate") == 1
    assert found.words.count("Try again") == 2  # in the sentence, on the button


def test_a_failed_reply_without_text_has_nothing_to_copy(reply: Message):
    finish(reply, "failed", "", error_code="internal", error_message="It broke.")
    assert read(reply).buttons == [""]
    assert "prose" not in message_html(reply)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Half a", "You stopped this reply. The text so far is saved."),
        ("", "You stopped this reply before it started."),
    ],
)
def test_a_stopped_reply_says_what_became_of_it(reply: Message, text: str, words: str):
    assert words in read(finish(reply, "stopped", text)).words


def test_a_reply_that_reached_its_limit_says_so(reply: Message):
    finish(reply, "done", "One", finish_reason="length")
    assert "The reply reached its maximum length." in read(reply).words


def test_thoughts_are_folded_away_and_escaped(reply: Message):
    MessagePart.objects.create(
        message=reply, position=0, kind="reasoning", data={"text": "<b>hm</b>\n so"}
    )
    html = message_html(finish(reply, "done", "Yes"))
    assert "Reasoning" in html
    assert '<div class="reasoning-text">&lt;b&gt;hm&lt;/b&gt;\n so</div>' in html
    assert '<details class="reasoning">' in html  # not open


def test_a_reply_whose_run_is_gone_is_still_shown(reply: Message):
    Run.objects.all().delete()
    gone = Message.objects.get(pk=reply.pk)
    html = message_html(finish_without_run(gone))
    assert "Kept" in html
    assert "data-run" not in html


def finish_without_run(reply: Message) -> Message:
    reply.status, reply.text, reply.html = "done", "Kept", "<p>Kept</p>"
    return reply


def test_rendering_with_its_run_at_hand_asks_the_database_only_for_parts(
    reply: Message, django_assert_num_queries
):
    finish(reply, "done", "Yes")
    with django_assert_num_queries(1):
        message_html(reply)
