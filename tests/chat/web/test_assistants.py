"""Assistants: made, shared, chosen and deleted by pages without a script; others' are not found."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import User
from chat.conversations import assistants, lifecycle, prompt_builder
from chat.conversations.offers import Choice
from chat.errors import ChatError
from chat.generation import generate
from chat.models import Assistant, Conversation, LanguageModel, Run
from chat.recovery.retention import Retention
from chat.runs import cost, start
from chat.tools.models import McpServer, McpTool
from tests.support.conversations import client_id, send
from tests.support.html_forms import posted_form
from tests.support.runs import mark_done

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

NOT_FOUND = "not_found"


def signed_in(user) -> Client:
    client = Client()
    client.force_login(user)
    return client


def fields(assistant, **changes) -> dict[str, Any]:
    return {
        "name": "  Tutor  of\tmaths ",
        "icon": "cap",
        "description": "Asks back.",
        "system_prompt": "Never give the solution.",
        "suggestions": "\n Fractions? \n\nRoots?\n",
        "model": str(assistant.model_id),
        "temperature": "0.3",
        "client_id": "form-1",
        **changes,
    }


def make(user, assistant, **changes) -> Assistant:
    response = signed_in(user).post("/assistants/new/", fields(assistant, **changes))
    assert response.status_code == 302, response.content.decode()
    return Assistant.objects.get(pk=int(response["Location"].removeprefix("/?assistant=")))


def test_own_assistant_answers_a_new_chat(owner, stranger, assistant, settings):
    settings.ASSISTANT_SHARING = True
    tutor = make(owner, assistant)
    assert make(owner, assistant) == tutor  # the same form, posted twice
    assert (tutor.name, tutor.owner, tutor.shared) == ("Tutor of maths", owner, False)
    assert tutor.suggestions == ["Fractions?", "Roots?"]
    assert lifecycle.default_assistant(owner) == assistant

    page = signed_in(owner)
    html = page.get(f"/?assistant={tutor.pk}").content.decode()
    assert "You are chatting with Tutor of maths" in html
    assert "Fractions?" in html
    posted = {"text": "Hi", "client_id": "first", "assistant": tutor.pk, "model": tutor.model_id}
    chat = page.post("/c/new/", posted)["Location"].removesuffix("#end")
    run = Run.objects.get()
    assert (run.assistant, run.model_snapshot["temperature"]) == (tutor, 0.3)
    work = generate.claim(run.pk, 1)
    assert work is not None
    assert prompt_builder.build(work).messages[0]["content"] == "Never give the solution."
    assert "Assistant: Tutor of maths" in page.get(chat).content.decode()

    # Nothing of it exists for others.
    visitor = signed_in(stranger)
    assert "Tutor" not in visitor.get("/assistants/").content.decode()
    assert visitor.get(f"/?assistant={tutor.pk}")["Location"] == "/assistants/"
    for path in (f"/assistants/{tutor.pk}/", f"/assistants/{tutor.pk}/delete/"):
        assert visitor.post(path, fields(assistant)).status_code == 404
    assert visitor.post("/c/new/", posted).status_code == 404
    answer = {"Accept": "application/json"}
    assert visitor.post("/c/estimate/", posted, headers=answer).status_code == 404
    for refused in (cost.estimate, cost.estimate_each):
        with pytest.raises(ChatError, match=NOT_FOUND):
            refused(user=stranger, text="Hi", assistant_id=tutor.pk)
    with pytest.raises(ChatError, match=NOT_FOUND):
        start.compare(
            user=stranger,
            text="Hi",
            client_id=client_id(),
            model_ids=[assistant.model_id, LanguageModel.objects.create(name="B").pk],
            choice=Choice(assistant_id=tutor.pk),
        )
    tutor.refresh_from_db()
    assert (tutor.deleted_at, tutor.name) == (None, "Tutor of maths")


def test_chat_goes_on_whatever_becomes_of_its_assistant(owner, stranger, assistant, settings):
    settings.ASSISTANT_SHARING = True
    tutor = make(owner, assistant, shared="on")
    visitor = signed_in(stranger)
    assert "Tutor of maths" in visitor.get("/assistants/").content.decode()
    choice = Choice(assistant_id=tutor.pk)
    run = start.send(user=stranger, text="Hi", client_id=client_id(), choice=choice).run
    mark_done(run)
    chat = run.conversation
    path = chat.get_absolute_url()

    def check(words: str) -> None:
        assert words in visitor.get(path).content.decode()
        assert mark_done(send(stranger, chat)).assistant == tutor
        with pytest.raises(ChatError, match=NOT_FOUND):
            start.send(user=stranger, text="Hi", client_id=client_id(), choice=choice)

    assert "goes on with it" not in visitor.get(path).content.decode()
    rows = Assistant.objects.filter(pk=tutor.pk)
    for change, undo in (
        ({"shared": False}, {"shared": True}),
        ({"enabled": False}, {"enabled": True}),
    ):
        rows.update(**change)
        check("no longer shared" if "shared" in change else "staff have disabled")
        rows.update(**undo)
    settings.ASSISTANT_SHARING = False
    check("no longer shared")
    settings.ASSISTANT_SHARING = True
    owner.is_active = False
    owner.save()
    check("no longer shared")
    rows.update(owner=None)  # as the deletion of its owner does
    check("was deleted")
    assert Retention().purge(timezone.now()) == 0
    assert rows.exists()  # a chat has it
    Run.objects.all().delete()
    Conversation.objects.all().delete()
    Retention().purge(timezone.now())
    assert not rows.exists()
    assert Assistant.objects.get() == assistant


def test_restricted_assistant_is_for_its_groups(owner, stranger, assistant):
    group = Group.objects.create(name="Research")
    closed = Assistant.objects.create(
        slug="closed", name="Closed", model=assistant.model, restricted=True, position=9
    )
    closed.groups.add(group)
    Assistant.objects.filter(pk=assistant.pk).update(position=10)
    choice = Choice(assistant_id=closed.pk)
    assert lifecycle.default_assistant(owner) == assistant
    assert lifecycle.default_assistant() == assistant
    with pytest.raises(ChatError, match=NOT_FOUND):
        start.send(user=owner, text="Hi", client_id=client_id(), choice=choice)
    owner.groups.add(group)
    assert lifecycle.default_assistant(owner) == closed
    run = mark_done(start.send(user=owner, text="Hi", client_id=client_id()).run)
    assert run.assistant == closed
    owner.groups.clear()
    with pytest.raises(ChatError, match="not_allowed: The assistant Closed is now restricted"):
        send(owner, run.conversation)
    html = signed_in(owner).get(run.conversation.get_absolute_url()).content.decode()
    assert "now restricted to other users" in html
    stranger.is_staff = True
    assert closed in assistants.offered(stranger)


def test_effort_of_an_assistant_is_kept_to_its_model(owner, assistant):
    model = assistant.model
    LanguageModel.objects.filter(pk=model.pk).update(efforts=["low", "high"])
    tutor = make(owner, assistant, effort="high")
    choice = Choice(assistant_id=tutor.pk)
    run = start.send(user=owner, text="Hi", client_id=client_id(), choice=choice).run
    assert run.model_snapshot["effort"] == "high"
    chosen = Choice(assistant_id=tutor.pk, effort="low")
    run = start.send(user=owner, text="Hi", client_id=client_id(), choice=chosen).run
    assert run.model_snapshot["effort"] == "low"
    plain = LanguageModel.objects.create(name="Plain", provider_model="stub-model")
    response = signed_in(owner).post(
        f"/assistants/{tutor.pk}/", fields(assistant, effort="high", model=str(plain.pk))
    )
    assert response.status_code == 400
    assert "Plain does not have this reasoning effort" in response.content.decode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": " \t"}, "This field is required"),
        ({"name": "x" * 61}, "at most 60 characters"),
        ({"icon": "skull"}, "skull is not one of the available"),
        ({"description": "x" * 201}, "at most 200"),
        ({"system_prompt": "x" * 10_001}, "at most 10000"),
        ({"suggestions": "a\n" * 7}, "Keep 6 or less"),
        ({"suggestions": "x" * 301}, "Shorten it to 300"),
        ({"model": "9" * 30}, "not one of the available"),
        ({"model": ""}, "This field is required"),
        ({"temperature": "nan"}, "not one of the available"),
    ],
)
def test_refused_form_keeps_what_was_typed(owner, assistant, change, words):
    response = signed_in(owner).post(
        "/assistants/new/", fields(assistant) | {"description": "Typed text"} | change
    )
    html = response.content.decode()
    assert response.status_code == 400
    assert words in html
    assert "Nothing was saved" in html
    assert "description" in change or "Typed text" in html
    assert Assistant.objects.count() == 1


def test_assistants_are_bounded_and_listed_in_parts(owner, stranger, assistant, settings):
    settings.ASSISTANT_SHARING = True

    def add(number: int) -> None:
        Assistant.objects.create(
            slug=f"s{number}",
            name=f"Shared {number // 2:02}",
            model=assistant.model,
            owner=stranger,
            personal=True,
            shared=True,
        )

    for number in range(assistants.MOST_OWN):
        add(number)
    response = signed_in(stranger).post("/assistants/new/", fields(assistant))
    assert response.status_code == 400
    assert "You have 50 assistants" in response.content.decode()
    page = signed_in(owner)

    def statements(path: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert page.get(path).status_code == 200
        return len(captured)

    few = statements("/assistants/?q=shared+00")
    assert statements("/assistants/?q=shared") == few
    seen: list[int] = []
    after = ""
    while True:
        found = assistants.gallery(owner, "SHARED", after)
        seen += [one.pk for one in found.shared]
        if not (after := found.next):
            break
    assert len(seen) == len(set(seen)) == 50
    for odd in ("x/y", "9" * 40 + "/a", "1/\x01", "%00"):
        assert page.get("/assistants/", {"after": odd, "q": "50%_'"}).status_code == 200


@pytest.fixture
def server() -> McpServer:
    """A server with one tool."""
    made = McpServer.objects.create(name="Tickets", slug="tickets", url="https://mcp.example.org/")
    McpTool.objects.create(server=made, name="find", description="Find", schema={}, allowed=True)
    return made


def test_tools_are_chosen_in_the_form(owner, assistant, server):
    page = signed_in(owner)
    # No model of the site can call tools: the form has no field that does nothing.
    assert "Calculator" not in page.get("/assistants/new/").content.decode()
    LanguageModel.objects.update(tools=True)
    html = page.get("/assistants/new/").content.decode()
    assert "All tools of Tickets" in html
    assert "Web search" not in html  # off on this site
    assert "query_table" not in html  # of chats with documents
    chosen = ["calculate", "mcp:tickets"]
    made = make(owner, assistant, tools=chosen)
    assert made.tools == chosen
    address = f"/assistants/{made.pk}/"
    refused = page.post(address, fields(assistant, tools=["calculate", "rm"]))
    assert refused.status_code == 400
    server.delete()
    html = page.get(address).content.decode()
    assert "mcp:tickets (not available)" in html
    page.post(address, fields(assistant, tools=chosen))
    made.refresh_from_db()
    assert made.tools == chosen
    page.post(address, fields(assistant))
    made.refresh_from_db()
    assert made.tools == []


def test_staff_choose_tools_of_servers_too(assistant, server):
    staff = User.objects.create_superuser("staff@example.org", "correct horse battery")
    page = signed_in(staff)
    Assistant.objects.update(tools=["gone"])
    address = f"/admin/chat/assistant/{assistant.pk}/change/"
    form = page.get(address)
    html = form.content.decode()
    for words in ("Calculator (calculate)", "All tools of Tickets", "find (tickets_find)"):
        assert words in html
    assert "gone (not available)" in html
    posted: dict[str, Any] = posted_form(form) | {"tools": ["query_table", "tickets_find"]}
    assert page.post(address, posted).status_code == 302
    assistant.refresh_from_db()
    assert assistant.tools == ["query_table", "tickets_find"]
