"""Projects by forms: pages, moves with undo, instructions in prompts, limits, and other users' projects."""

from __future__ import annotations

import threading
from contextlib import closing, suppress
from datetime import timedelta
from html import unescape

import pytest
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import User
from chat.conversations import projects, prompt_builder
from chat.errors import ChatError
from chat.generation.generate import claim
from chat.models import Assistant, Conversation, LanguageModel, Project, Run
from chat.recovery.retention import Retention
from chat.runs import cost
from chat.web.pages import NO_ID
from tests.support.conversations import begin, send

pytestmark = pytest.mark.usefixtures("valkey_url")


@pytest.fixture
def page(owner: User, assistant: Assistant) -> Client:
    client = Client()
    client.force_login(owner)
    return client


@pytest.fixture
def project(owner: User) -> Project:
    made: Project = Project.objects.create(owner=owner, name="Tides", instructions="Be brief.")
    return made


def undo_value(html: str) -> str:
    """Return the value of the button that undoes the last change."""
    return unescape(html.split('name="undo" value="')[1].split('"')[0])


def test_project_is_created_changed_and_deleted(page, owner, assistant):
    other = LanguageModel.objects.create(name="Other", provider_model="other", restricted=True)
    html = page.post("/projects/", {"name": " ", "instructions": "x"}).content.decode()
    assert "A project needs a name." in html
    assert ">\r\nx</textarea>" in html.replace("\n", "\r\n")
    made = page.post("/projects/", {"name": " Spring   tides ", "instructions": "a\r\nb"})
    [project] = Project.objects.all()
    assert made.url == project.get_absolute_url()
    assert (project.name, project.instructions) == ("Spring tides", "a\nb")

    fields = {"name": "Tides", "instructions": "", "model": assistant.model_id}
    assert page.post(made.url, fields | {"model": other.pk}, follow=True).status_code == 409
    html = page.post(made.url, fields, follow=True).content.decode()
    assert "The project is saved." in html
    assert "Spring" not in html
    project.refresh_from_db()
    assert project.model == assistant.model
    assert page.post(made.url, {"name": "x" * 61}).status_code == 400
    assert page.post(made.url, {"name": "x", "instructions": "x" * 8_001}).status_code == 400
    assert page.post(made.url, {"name": "x", "model": "y"}).status_code == 409

    chat = begin(owner, assistant, title="Ebb", project=project)
    moved = begin(owner, assistant, title="Flow", project=project)
    html = page.post(f"{made.url}delete/", follow=True).content.decode()
    assert "Its chats are kept." in html
    assert page.get(made.url).status_code == 404
    chat.refresh_from_db()
    assert chat.project is None
    projects.move(user=owner, conversation_ids=[moved.pk], project_id=None)
    Conversation.objects.filter(pk=moved.pk).update(moved_at=timezone.now())
    html = page.post("/chats/undo/", {"undo": undo_value(html)}, follow=True).content.decode()
    assert "The project was restored, with 1 chat." in html
    assert "Ebb" in page.get(made.url).content.decode()


def test_chats_are_moved_with_undo(page, owner, assistant, project, stranger):
    other = Project.objects.create(owner=owner, name="Moon")
    chats = [begin(owner, assistant, title=f"Chat {n}") for n in range(3)]
    Conversation.objects.filter(pk=chats[0].pk).update(project=other)
    theirs = begin(stranger, assistant)
    form = {"chat": [each.pk for each in (*chats, theirs)], "from": "list"}
    html = page.post(f"{project.get_absolute_url()}move/", form, follow=True).content.decode()
    assert "3 chats were moved to" in html
    assert set(project.conversations.all()) == set(chats)
    theirs.refresh_from_db()
    assert theirs.project is None

    undo = undo_value(html)
    html = page.post("/chats/undo/", {"undo": undo}, follow=True).content.decode()
    assert "3 chats are back where they were." in html
    assert [each.title for each in other.conversations.all()] == ["Chat 0"]
    assert not project.conversations.exists()
    html = page.post("/chats/undo/", {"undo": undo}, follow=True).content.decode()
    assert "0 chats are back" in html  # a repetition has no further effect

    address = "/projects/none/move/"
    form = {"chat": [chats[0].pk], "from": f"conversation {chats[0].pk}"}
    html = page.post(address, form, follow=True).content.decode()
    assert "is in no project now." in html
    assert 'data-chat-project dir="auto" hidden' in html
    # Without its project a chat that is moved back stays outside.
    project_id = other.pk
    projects.move(user=owner, conversation_ids=[chats[0].pk], project_id=project_id)
    _found, _into, at = projects.move(
        user=owner, conversation_ids=[chats[0].pk], project_id=project.pk
    )
    projects.delete(user=owner, project_id=project_id)
    assert projects.undo_move(user=owner, at=at) == 1
    chats[0].refresh_from_db()
    assert chats[0].project is None


@pytest.mark.parametrize("origin", ["nowhere", "project x", f"settings {NO_ID}"])
def test_wrong_origin_of_move_is_refused(page, conversation, project, origin):
    form = {"chat": [conversation.pk], "from": origin}
    assert page.post(f"{project.get_absolute_url()}move/", form).status_code == 404


def test_new_chat_has_project_and_its_choice(page, owner, assistant, project, conversation):
    chosen = LanguageModel.objects.create(
        name="Larger", provider_model=assistant.model.provider_model, context_tokens=9_000
    )
    Project.objects.filter(pk=project.pk).update(model=chosen)
    html = page.get(f"/?project={project.pk}").content.decode()
    assert f'<input type="hidden" name="project" value="{project.pk}">' in html
    assert f'data-project="{project.pk}"' in html
    assert "Tides</a>" in html
    refused = page.post("/c/new/", {"text": "", "project": project.pk}).content.decode()
    assert f'<input type="hidden" name="project" value="{project.pk}">' in refused
    page.post("/c/new/", {"text": "Why?", "project": project.pk})
    run = Run.objects.get(message__parent__text="Why?")
    assert (run.conversation.project, run.model) == (project, chosen)
    claimed = claim(run.pk, 1)
    assert claimed is not None
    sent = prompt_builder.build(claimed).messages
    assert sent[0] == {
        "role": "system",
        "content": f"{assistant.system_prompt}\n\nBe brief.".strip(),
    }
    # A quote and an estimate count the instructions, of stored and of new conversations.
    Project.objects.filter(pk=project.pk).update(instructions="word " * 1_000)
    inside = begin(owner, assistant, project=Project.objects.get(pk=project.pk))
    assert (
        send(owner, inside, "Hi").prompt_estimate > send(owner, conversation, "Hi").prompt_estimate
    )
    with_it = cost.estimate(user=owner, text="Hi", project_id=project.pk)
    without = cost.estimate(user=owner, text="Hi")
    assert with_it is not None
    assert without is not None
    assert with_it.usual > without.usual


def test_other_users_project_is_not_found(page, stranger, conversation):
    theirs = Project.objects.create(owner=stranger, name="Theirs")
    address = theirs.get_absolute_url()
    assert page.get(address).status_code == 404
    assert page.get(f"/?project={theirs.pk}").status_code == 404
    assert page.get("/?project=x").status_code == 404
    for path, form in (
        (address, {"name": "Mine"}),
        (f"{address}delete/", {}),
        (f"{address}move/", {"chat": [conversation.pk]}),
        ("/c/new/", {"text": "Hi", "project": theirs.pk}),
    ):
        assert page.post(path, form).status_code == 404, path
    theirs.refresh_from_db()
    assert theirs.name == "Theirs"
    assert theirs.deleted_at is None
    assert "Theirs" not in page.get("/projects/").content.decode()


def test_project_that_is_posted_twice_is_one(page, owner):
    for fields in ({"name": "A"}, {"name": "A"}, {"name": "A", "instructions": "Other"}):
        page.post("/projects/", fields)
    assert sorted(Project.objects.values_list("instructions", flat=True)) == ["", "Other"]
    Project.objects.update(created_at=timezone.now() - timedelta(minutes=1))
    page.post("/projects/", {"name": "A"})
    assert Project.objects.count() == 3


def test_number_of_projects_is_bounded(page, owner, monkeypatch, conversation):
    monkeypatch.setattr(projects, "MAX_PROJECTS", 2)
    for name in ("One", "Two"):
        page.post("/projects/", {"name": name})
    html = page.post("/projects/", {"name": "Three"}).content.decode()
    assert "You can have up to 2 projects." in html
    assert 'value="Three"' in html
    one = Project.objects.get(name="One")
    _project, at = projects.delete(user=owner, project_id=one.pk)
    page.post("/projects/", {"name": "Three"})
    with pytest.raises(ChatError, match="up to 2"):
        projects.undo_delete(user=owner, at=at)
    with transaction.atomic():
        assert projects.take(user=owner, name="Four", instructions="") is None


def test_queries_do_not_grow_with_projects(page, owner, assistant, project):
    def count() -> list[int]:
        counts = []
        for path in ("/", "/chats/", "/projects/", project.get_absolute_url(), "/search/?q=chat"):
            with CaptureQueriesContext(connection) as queries:
                assert page.get(path).status_code == 200
            counts.append(len(queries))
        return counts

    def add() -> None:
        for number in range(5):
            made = Project.objects.create(owner=owner, name=f"Project {number}")
            begin(owner, assistant, title="A chat", project=made)
            begin(owner, assistant, title="A chat", project=project)

    add()
    few = count()
    add()
    assert count() == few


def test_search_shows_project(page, owner, assistant, project):
    begin(owner, assistant, title="Ebb and flow", project=project)
    assert "<bdi>Tides</bdi>" in page.get("/search/results/?q=ebb").content.decode()


@pytest.mark.django_db(transaction=True)
def test_chat_never_moves_into_deleted_project(owner, assistant, project):
    """A move and a deletion at once: whichever is first, the chat is in no deleted project."""
    for _turn in range(5):
        made = Project.objects.create(owner=owner, name="Brief")
        chat = begin(owner, assistant)
        barrier = threading.Barrier(2)

        def at_once(call, barrier=barrier) -> None:
            barrier.wait()
            with closing(connection), suppress(ChatError):  # the deletion was first: not found
                call()

        threads = [
            threading.Thread(target=at_once, args=[call])
            for call in (
                lambda chat=chat, made=made: projects.move(
                    user=owner, conversation_ids=[chat.pk], project_id=made.pk
                ),
                lambda made=made: projects.delete(user=owner, project_id=made.pk),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        chat.refresh_from_db()
        assert chat.project is None


def test_deleted_project_is_purged(owner, assistant, project):
    chat = begin(owner, assistant, project=project)
    projects.delete(user=owner, project_id=project.pk)
    retention = Retention()
    retention.purge(timezone.now())
    assert Project.objects.filter(pk=project.pk).exists()
    retention.purge(timezone.now() + timedelta(days=400))
    assert not Project.objects.filter(pk=project.pk).exists()
    assert Conversation.objects.filter(pk=chat.pk).exists()
