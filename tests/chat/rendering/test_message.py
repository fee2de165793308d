"""The template of a message, which pages and events share."""

from __future__ import annotations

from html.parser import HTMLParser
from io import StringIO

import pytest
from django.core.management import call_command
from django.test.signals import template_rendered
from django.utils import translation

from accounts.models import User
from chat.models import Assistant, Conversation, Message, MessagePart, Run, Siblings, new_id
from chat.rendering import document as markdown
from chat.rendering.message import message_html, rendered
from chatproject.lib.skeletons import HOLES


class Reader(HTMLParser):
    """Reads a piece of HTML: the labels of its buttons and links, and the text without markup."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.buttons: list[str] = []
        self.words = ""
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


def test_user_text_is_shown_as_typed(sent):
    sent.text = "<script>alert(1)</script>\n  {{ two }} & *three*"
    html = message_html(sent)
    assert (
        '<div class="own-text" dir="auto">&lt;script&gt;alert(1)&lt;/script&gt;\n  {{ two }} &amp; *three*</div>'
        in html
    )
    assert f'data-id="{sent.id}"' in html


def test_own_message_has_edit_button(sent):
    assert f'form="edit" name="edit" value="{sent.id}"' in message_html(sent)
    assert read(sent).buttons == ["Copy message", "Edit message", "Copy the chat up to here"]


def test_queued_reply_has_containers_for_stream(reply):
    html = message_html(reply)
    assert f'data-run="{reply.run.id}"' in html
    assert 'data-status="pending"' in html
    assert '<div class="stream"></div>' in html
    assert '<div class="reasoning-text" dir="auto"></div>' in html
    assert "Queued" in html
    assert Reader(html).buttons == []


def test_running_reply_shows_progress(reply):
    reply.run.status = Run.Status.RUNNING
    assert "Reading your message…" in message_html(reply)


def test_finished_reply_has_actions_and_model(reply):
    html = message_html(finish(reply, "done", "It is *so*."))
    assert '<div class="prose"><p dir="auto">It is <em>so</em>.</p>\n</div>' in html
    assert Reader(html).buttons == [
        *("Copy reply", "Regenerate"),
        *("Regenerate with another model", "Copy the chat up to here"),
        *("Good reply", "Bad reply", "More about this reply"),
    ]
    assert '<span class="action-model"><bdi>Stub</bdi></span>' in html
    assert "notice" not in html


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
def test_finished_reply_without_text_has_retry(reply, reason):
    html = message_html(finish(reply, "done", "", finish_reason=reason))
    assert html.count("data-regenerate") == 1
    assert "Try again" in Reader(html).words


def test_failed_reply_has_text_error_and_retry(reply):
    error = "The model did not answer in time. Try again."
    finish(reply, "failed", "Half a", error_code="provider_timeout", error_message=error)
    found = read(reply)
    assert "Half a" in found.words
    assert error in found.words
    assert "provider_timeout" in found.words
    assert message_html(reply).count("data-regenerate") == 1
    assert found.words.count("Try again") == 2  # in the sentence, on the button


def test_failed_reply_without_text_has_no_copy_button(reply):
    finish(reply, "failed", "", error_code="internal", error_message="It broke.")
    assert read(reply).buttons == [""]
    assert "prose" not in message_html(reply)


@pytest.mark.parametrize(
    ("status", "text", "reason", "words"),
    [
        ("stopped", "Half a", "", "You stopped this reply. The text so far is saved."),
        ("stopped", "", "", "You stopped this reply before it started."),
        ("done", "One", "length", "The reply reached its maximum length."),
        ("done", "", "stop", "The model returned no text."),
        ("done", "", "content_filter", "The model provider's filter blocked this reply."),
        ("done", "One", "content_filter", "content filter cut this reply short"),
        ("done", "", "length", "thinking used the whole length"),
    ],
)
def test_incomplete_reply_is_marked(reply, status, text, reason, words):
    assert words in read(finish(reply, status, text, finish_reason=reason)).words


@pytest.mark.parametrize(
    ("status", "charged", "words"),
    [
        ("stopped", 20_000, "The model had already read your message: 0.02 credits were charged."),
        ("stopped", 0, "You stopped this reply before it started. Nothing was charged."),
        ("done", 0, "The model returned no text. Nothing was charged."),
        ("failed", 0, "It broke. Nothing was charged."),
    ],
)
def test_reply_without_text_says_its_charge(reply, status, charged, words):
    finish(reply, status, "", charged=charged, error_message="It broke.")
    assert words in read(reply).words


def test_reasoning_is_collapsed_and_escaped(reply):
    MessagePart.objects.create(
        message=reply, position=0, kind="reasoning", data={"text": "<b>hm</b>\n so"}
    )
    html = message_html(finish(reply, "done", "Yes"))
    assert "Reasoning" in html
    assert '<div class="reasoning-text" dir="auto">&lt;b&gt;hm&lt;/b&gt;\n so</div>' in html
    assert '<details class="reasoning">' in html  # not open


def test_reply_without_run_is_shown(reply):
    Run.objects.all().delete()
    html = message_html(finish(Message.objects.get(pk=reply.pk), "done", "Kept"))
    assert "Kept" in html
    assert "data-run" not in html


def test_rendering_queries_only_parts(reply, django_assert_num_queries):
    finish(reply, "done", "Yes")
    with django_assert_num_queries(1):
        message_html(reply)


def test_reasoning_shows_its_duration(reply):
    finish(reply, "done", "One")
    reply.ordered_parts = [MessagePart(kind="reasoning", data={"text": "hm", "seconds": 12})]
    assert "Thought for 12 s" in message_html(reply)


def test_old_replies_are_rendered_again(reply):
    finish(reply, "done", "**One**").save()
    Message.objects.filter(pk=reply.pk).update(html="<p>old</p>")
    call_command("render_messages", batch=1, pause=0, stdout=(output := StringIO()))
    reply.refresh_from_db()
    assert reply.html == markdown.to_html("**One**")
    assert "1 changed" in output.getvalue()
    call_command("render_messages", after=reply.pk, pause=0, stdout=(output := StringIO()))
    assert output.getvalue() == "All replies are rendered.\n"


ODD = f"<b>&amp; %(name)s {{{{ id }}}} {HOLES[0]} {HOLES[5]}"


@pytest.mark.parametrize("language", ["en", "de", "ar"])
def test_skeletons_give_the_html_of_the_template(sent, reply, language):
    """In all shapes, with text that looks like a hole; a second message of a shape renders no template."""
    usual = {"name": ODD, "answered_by": None}
    shapes: list[Message] = []
    first, second, third = sorted(new_id() for _ in range(3))
    for siblings in (
        None,
        *(Siblings.of(one, [first, second, third]) for one in (first, second, third)),
    ):
        shapes.append(Message(id=new_id(), role="user", text=ODD))
        shapes.append(Message(id=new_id(), role="user", text=""))
        for rating, html, charged, snapshot, thoughts in (
            ("", ODD, None, usual, []),
            ("good", "<p>Yes</p>", 0, {"name": "Stub"}, [{"text": ODD, "seconds": 1234}]),
            (
                "bad",
                "",
                1_234_567_890,
                usual | {"answered_by": {"name": ODD}},
                [{"text": ""}, {"text": ODD}],
            ),
            ("", ODD, 1, {}, [{"text": ODD, "seconds": 1.5}]),
        ):
            shown = Message(id=new_id(), role="assistant", text="Yes", html=html)
            shown.rating = rating
            shown.ordered_parts = [
                MessagePart(message=shown, position=n, kind="reasoning", data=data)
                for n, data in enumerate(thoughts)
            ]
            run = Run(message=shown, status="done", finish_reason="stop", charged=charged)
            run.model_snapshot = snapshot
            shapes.append(shown)
        imported = Message(id=new_id(), role="assistant", text="Yes", html=ODD)
        imported.ordered_parts = [MessagePart(message=imported, kind="origin", data={"model": ODD})]
        shapes.append(imported)
        for one in shapes[-7:]:
            one.siblings = siblings
    names: list[str] = []

    def note(template: object, **kwargs: object) -> None:
        names.append(str(template))

    with translation.override(language):
        for one in shapes:
            assert message_html(one) == rendered(one)
        template_rendered.connect(note)
        try:
            for one in shapes:
                message_html(one)
        finally:
            template_rendered.disconnect(note)
    assert names == []


def test_unusual_replies_follow_the_template(reply):
    failed = finish(Message.objects.select_related("run").get(pk=reply.pk), "failed", "")
    done = finish(reply, "done", "Yes")
    for change in (
        {},
        {"is_compared": True},
        {"failed_sibling": failed},
        {"status": "stopped"},
    ):
        for name, value in change.items():
            setattr(done, name, value)
        for reason in ("stop", "length", "content_filter"):
            done.run.finish_reason = reason
            assert message_html(done) == rendered(done)
            marked = message_html(done, is_first_sent=True)
            assert marked == rendered(done, is_first_sent=True) != message_html(done)
