"""The matrix of access: every page, socket command and API operation, by each kind of user.

Pages without an object in their address are walked automatically; an object in one must be in OBJECTS, and a command
with an id in FRAMES. A missing one fails, and the message says where to add it.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.urls import get_resolver, reverse
from django.utils import timezone
from PIL import Image

from accounts import api_keys
from accounts.access import PUBLIC_VIEWS
from accounts.models import ApiKey, Scope, User
from accounts.privacy import leaving
from billing.models import Order
from chat import protocol
from chat.api import urls as api
from chat.api.rest import reference
from chat.api.rest.urls import api as rest
from chat.attachments import uploads
from chat.documents.models import Document, StatisticsLink
from chat.insights.models import Category, Insight, InsightJob
from chat.models import (
    Assistant,
    Attachment,
    ChatExport,
    ChatImport,
    Conversation,
    ConversationShare,
    LanguageModel,
    Message,
    MessageAttachment,
    MessagePart,
    NextMessage,
    Project,
    Prompt,
    PublicLink,
    Run,
    UserNote,
    Webhook,
    WebhookDelivery,
)
from chat.tools.models import McpServer, RunStep
from chat.web import run_follower
from chatproject.asgi import application
from chatproject.lib import private_files
from tests.accounts.test_pages import an_address, patterns
from tests.support import documents as some_documents
from tests.support import money
from tests.support.conversations import begin, send
from tests.support.people import assistant, owner, stranger
from tests.support.sockets import open_tab
from tests.support.tables import chart_in
from tests.support.visitor import Visitor, without_limits

__all__ = ["assistant", "owner", "stranger"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

SECRET = "Zanzibar"  # in all texts of the owner
READER = "reader@example.org"

# Pages with a conversation, a message or a run in their address that a reader by share may open or post to.
READABLE = {
    ("chat:conversation", "get"),
    ("chat:active_run", "get"),
    ("chat:attachment", "get"),
    ("chat:thumbnail", "get"),
    ("chat:part_data", "get"),
    ("chat:chart_picture", "get"),
    # Addresses of several methods have the name of each.
    ("rest:read_conversation", "get"),
    ("rest:change_conversation", "get"),
    ("rest:delete_conversation", "get"),
    ("rest:list_messages", "get"),
}
# Operations for keys alone: a session is refused.
OF_KEYS = {
    *("rest:read_webhook", "rest:change_webhook", "rest:delete_webhook", "rest:renew_secret"),
    *("rest:test_webhook", "rest:list_deliveries", "rest:read_delivery", "rest:resend_delivery"),
}
# The address of these is the permission, and a reader may copy a chat: tests/chat/web/test_sharing.py.
BY_ADDRESS = {
    "chat:report_public",
    "chat:public",
    "chat:public_file",
    "chat:public_thumbnail",
    "chat:public_statistics",
    "chat:statistics_card",
    "chat:copy_public",
}
COPY = ("chat:copy_shared", "reader", "post")
# Pages of the admin without an object.
OF_ALL_STAFF = {"admin:index", "admin:jsi18n", "admin:password_change_done"}
# Pages that need more than their object: a parameter, or the work of a job.
QUERIES = {"chat:export": "?format=json"}
# Operations whose body is read before their object: without one the answer is the same for all users.
BODIES: dict[str, dict[str, Any]] = {
    "rest:decide": {"allow": True},
    "rest:retry_document": {"chat": ""},
}
# Operations of documents that only some have: the key of their document in OBJECTS.
DOCUMENTS = {"rest:read_statistics": "chat_document_id", "rest:read_table": "table_document_id"}
METHODS = {"rest:bind_document": ("put",), "rest:unbind_document": ("put", "delete")}
UNFINISHED = {"billing:receipt", "chat:export_file"}
# Pages that answer to other parameters than their address, or whose address is the permission.
OTHERS = {
    "admin_shortcut": "there is none, for all: tests/test_admin_permissions.py",
    "account_confirm_email": "its key is the permission: tests/accounts/test_changes.py",
    "account_reset_password_from_key": "its key is the permission: tests/accounts/test_pages.py",
    **dict.fromkeys(
        ("chat:imprint_version", "chat:privacy_version", "chat:terms_version"),
        "the site's texts, the same for all: tests/chat/web/test_consent.py",
    ),
    "account_sign_in_link": "its token is the permission: tests/accounts/test_sso.py",
    **dict.fromkeys(
        ("socialaccount_begin", "socialaccount_callback"),
        "the provider decides: tests/accounts/test_sso.py",
    ),
    "account_invitation": "its token is the permission: tests/accounts/test_joining.py",
    "chat:preview_insights": "of staff with a permission: tests/chat/insights/test_pages.py",
    "remove_factor": "asks its owner for the password: tests/accounts/test_factors.py",
    "billing:webhook": "signed by its provider: tests/billing",
    "billing:sandbox": "the fake checkout of development: tests/billing",
}


@pytest.fixture
def reader(transactional_db: None) -> User:
    return User.objects.create_user(READER, "correct horse battery")


@pytest.fixture
def staff(transactional_db: None) -> User:
    """A member of staff without any permission."""
    return User.objects.create_user("staff@example.org", "correct horse battery", is_staff=True)


@pytest.fixture
def closed(transactional_db: None) -> User:
    """A deactivated user, with whom the chat is shared as well."""
    user = User.objects.create_user("closed@example.org", "correct horse battery")
    User.objects.filter(pk=user.pk).update(is_active=False)
    return user


@pytest.fixture
def objects(owner, reader, closed, assistant, settings, tmp_path) -> dict[str, Any]:
    """An object of the owner for each parameter of an address; the chat is shared with the reader."""
    settings.PRIVATE_ROOT = tmp_path
    settings.SHARE_WITH_USERS = settings.SHARE_BY_LINK = True
    without_limits(settings)
    chat = begin(owner, assistant, title=f"{SECRET} chat", system_prompt=f"{SECRET} prompt")
    question = Message.objects.create(conversation=chat, role="user", text=f"{SECRET} question")
    reply = Message.objects.create(
        conversation=chat, parent=question, role="assistant", text=SECRET, html=f"<p>{SECRET}</p>"
    )
    Conversation.objects.filter(pk=chat.pk).update(leaf=reply)
    for user in (reader, closed):
        ConversationShare.objects.create(
            conversation=chat, owner=owner, email=user.email, user=user
        )
    link = PublicLink.objects.create(conversation=chat, owner=owner, title=SECRET)
    image = io.BytesIO()
    Image.new("RGB", (2, 2)).save(image, "PNG")
    size = image.tell()
    image.seek(0)
    shared_file = uploads.add(user=owner, name=f"{SECRET}.png", size=size, file=image)
    MessageAttachment.objects.create(message=question, attachment=shared_file)
    Message.objects.filter(pk=question.pk).update(attached=[shared_file.snapshot])
    run = send(owner, begin(owner, assistant, title=f"{SECRET} other"), f"{SECRET} running")
    call = RunStep.objects.create(
        run=run, number=1, request=1, attempt=1, kind="call", status="waiting", name="lookup",
        arguments=f'{{"query": "{SECRET}"}}',
    )  # fmt: skip
    MessagePart.objects.create(
        message=reply, position=8, kind="tool",
        data={"call": str(call.number), "name": "lookup", "arguments": {}, "result": SECRET},
    )  # fmt: skip
    assistant_of_owner = Assistant.objects.create(
        slug="own", name=f"{SECRET} assistant", model=assistant.model, owner=owner, personal=True
    )
    document = some_documents.uploaded(owner, f"{SECRET} paragraph", f"{SECRET}.txt")
    chat_document = some_documents.uploaded(owner, some_documents.CHAT, f"{SECRET} chat.txt")
    table_document = some_documents.uploaded(owner, f"word\n{SECRET}\n", "sales.csv")
    statistics = StatisticsLink.objects.create(
        document=chat_document, owner=owner, title=SECRET, sections=["totals"], card=b"PNG"
    )
    now = timezone.now()
    webhook = Webhook.objects.create(
        owner=owner, name=f"{SECRET} hook", url=f"https://example.org/{SECRET}", host="example.org"
    )
    sent = WebhookDelivery.objects.create(
        webhook=webhook, event="ping", body=f'"{SECRET}"', due_at=now, created_at=now
    )
    # Its users are the members of a group.
    server = McpServer.objects.create(
        name=f"{SECRET} server", slug="secret", url="https://example.org/mcp", auth="oauth"
    )
    server.groups.add(Group.objects.create(name="Members"))
    owner.groups.add(*server.groups.all())
    kind = document.kind
    category = Category.objects.create(
        slug="matrix", name="Matrix", description="All", price=1, kind=kind
    )
    job = InsightJob.objects.create(
        owner=owner, document=document, category=category, language="en", price=1, total=1
    )
    insight = Insight.objects.create(
        job=job, key="one", name="One", position=0, prompt="Hm", status="done",
        schema={"type": "object", "properties": {"text": {"type": "string"}}}, data={"text": SECRET},
    )  # fmt: skip
    return {
        "category_slug": category.slug,
        "insight_id": insight.pk,
        "conversation_id": chat.pk,
        "message_id": reply.pk,
        "run_id": run.pk,
        "call": call.number,
        "attachment_id": shared_file.pk,
        "part_id": chart_in(reply, SECRET).pk,
        "assistant_id": assistant_of_owner.pk,
        "project_id": Project.objects.create(owner=owner, name=f"{SECRET} project").pk,
        "prompt_id": Prompt.objects.create(owner=owner, title=f"{SECRET} title", text=SECRET).pk,
        "export_id": ChatExport.objects.create(owner=owner, beat_at=now).pk,
        "import_id": ChatImport.objects.create(owner=owner, beat_at=now, size=1).pk,
        "key_id": api_keys.create(owner, api_keys.Terms(name=f"{SECRET} key"))[0].pk,
        "order_id": money.order(owner.account).pk,
        "token": link.token,
        "statistics_token": statistics.token,
        "document_id": document.pk,
        "chat_document_id": chat_document.pk,
        "table_document_id": table_document.pk,
        "name": "sales",
        "first": 0,
        "last": 0,
        "note_id": UserNote.objects.create(user=owner, text=SECRET, created_by="user").pk,
        "server_id": server.pk,
        "webhook_id": webhook.pk,
        "delivery_id": sent.pk,
    }


PARAMETER = re.compile(r"<\w+:(\w+)>|\(\?P<(\w+)>")


def parameters(route: str) -> list[str]:
    return [first or second for first, second in PARAMETER.findall(route)]


def routes() -> Iterator[tuple[str, str]]:
    for name, route, _ in sorted(patterns(get_resolver()), key=lambda one: (one[0], one[1])):
        if name not in OTHERS:
            yield name, route


def address(name: str, route: str, objects: dict[str, Any]) -> str:
    """Return an address of a route with the objects of the owner; those of the admin are its rows' keys."""
    if name in DOCUMENTS:
        objects = objects | {"document_id": objects[DOCUMENTS[name]]}
    for parameter in parameters(route):
        if parameter in objects:
            route = re.sub(rf"<\w+:{parameter}>", str(objects[parameter]), route)
    return an_address(route) + QUERIES.get(name, "")


def content(answer: Any) -> bytes:
    """Return the bytes of an answer, also of a streamed one."""
    if not getattr(answer, "is_async", False):
        return b"".join(answer)

    async def read() -> bytes:
        return b"".join([part async for part in answer])

    return asyncio.run(read())


def test_each_object_of_an_address_is_known(objects):
    missing = {
        (name, parameter)
        for name, route in routes()
        if not name.startswith("admin:")
        for parameter in parameters(route)
        if parameter not in objects
    }
    assert not missing, (
        "Add an object of the owner for these parameters to the fixture `objects` of tests/test_access.py (or the "
        f"page to OTHERS, with the reason), and pages for readers to READABLE: {sorted(missing)}"
    )


def state(owner: User) -> list[Any]:
    """Return all that requests of other users must leave as it is."""
    kinds: tuple[Any, ...] = (
        *(Conversation, Project, Prompt, Assistant, Attachment, ChatExport, ChatImport, Webhook),
        *(Document, InsightJob),
    )
    rows = [list(kind.objects.filter(owner=owner).order_by("pk").values()) for kind in kinds]
    for row in rows[0]:
        row.pop("opened_at")
    of_chats = (Message, Run, NextMessage, ConversationShare, PublicLink)
    rows += [
        list(kind.objects.filter(conversation__owner=owner).order_by("pk").values())
        for kind in of_chats
    ]
    return [
        *rows,
        list(RunStep.objects.filter(run__user=owner).order_by("pk").values()),
        list(Insight.objects.filter(job__owner=owner).order_by("pk").values()),
    ]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.long)])
def test_pages_follow_the_matrix(objects, owner, reader, stranger, staff, closed, step):
    """Each kind of user takes another part of the pages, and all of them in `make ci-long`."""
    before = state(owner)
    people = {
        "reader": Visitor(reader),
        "other": Visitor(stranger),
        "anonymous": Visitor(),
        "staff": Visitor(staff),
        "closed": Visitor(closed),
    }
    wrong = []
    for place, (name, route) in enumerate(routes()):
        has_object = bool(parameters(route)) and not name.startswith("admin:")
        # tests/test_admin_permissions.py walks the admin, too.
        rarer = 10 if name.startswith("admin:") and step > 1 else 1
        is_of_chat = {"conversation_id", "message_id", "attachment_id", "part_id"} & set(
            parameters(route)
        )
        for number, (who, visitor) in enumerate(people.items()):
            # The pages of objects always for the two users who might see others' objects.
            is_always = has_object and who in ("reader", "other")
            if not is_always and (place + number) % (step * rarer):
                continue
            for method in ("get", "post"):
                if name in BY_ADDRESS or (name, who, method) == COPY:
                    continue
                body = method == "post" and BODIES.get(name)
                sent = {"data": body, "content_type": "application/json"} if body else {}
                answer = visitor.request(method, address(name, route, objects), **sent)
                status = answer.status_code
                text = content(answer)
                found = SECRET.encode() in text
                is_public = name in PUBLIC_VIEWS or name in ("rest:docs", "rest:openapi")
                if who in ("anonymous", "closed"):
                    is_right = status in (302, 401, 404, 405) or is_public
                elif name.startswith(("admin:", "django_rq")):
                    is_right = status in (302, 401, 403, 404, 405) or name in OF_ALL_STAFF
                elif not has_object or is_public:
                    is_right = status < 500
                elif name in OF_KEYS:
                    is_right = status in (401, 405)
                elif who == "reader" and (name, method) in READABLE:
                    is_right, found = status == 200, False
                elif who == "reader" and is_of_chat:
                    is_right = status in (204, 302, 403, 404, 405)
                else:
                    is_right = status in (204, 302, 404, 405)
                lists = who == "reader" and name == "chat:shared_with_me"
                if not is_right or status >= 500 or (found and not lists):
                    wrong.append((who, method, name, status, "secret" if found else ""))
    assert wrong == [], "\n".join(map(str, wrong))
    assert state(owner) == before


def test_owner_reaches_each_object(objects, owner):
    """Otherwise the matrix would compare the answers to objects that do not exist."""
    visitor = Visitor(owner)
    not_found = []
    for name, route in routes():
        if parameters(route) and not name.startswith("admin:") and name not in UNFINISHED:
            if "delete" in name:
                continue  # the other pages need the object
            target = address(name, route, objects)
            answers = [visitor.request(one, target) for one in METHODS.get(name, ("get", "post"))]
            if {one.status_code for one in answers} <= {403, 404, 405}:
                not_found.append((name, [one.status_code for one in answers]))
    assert not_found == [], "\n".join(map(str, not_found))


# --- Socket commands --------------------------------------------------------------------------

# Each command about an object, with the parameter of OBJECTS that its field names.
FRAMES: dict[str, dict[str, Any]] = {
    "chat.send": {"conversation": "conversation_id", "client_id": None, "text": None},
    "chat.compare": {
        "conversation": "conversation_id",
        "client_id": None,
        "text": None,
        "models": None,
    },
    "next.queue": {"conversation": "conversation_id", "client_id": None, "text": None},
    "next.edit": {"conversation": "conversation_id"},
    "next.remove": {"conversation": "conversation_id"},
    "next.send": {"conversation": "conversation_id"},
    "run.regenerate": {"message": "message_id", "client_id": None},
    "run.continue": {"message": "message_id", "client_id": None},
    "message.edit": {"message": "question_id", "client_id": None, "text": None},
    "branch.select": {"message": "message_id"},
    "run.stop": {"run": "run_id"},
    "tool.decide": {"run": "run_id", "call": "call", "allow": None},
    "resume": {"run": "run_id"},
    "conversation.read": {"conversation": "conversation_id"},
    "draft.save": {"conversation": "conversation_id", "text": None},
}
WITHOUT_OBJECT = {"ping"}


def test_each_socket_command_is_in_the_matrix():
    missing = set(protocol.CLIENT_EVENTS) - set(FRAMES) - WITHOUT_OBJECT
    assert not missing, (
        f"Add these commands to FRAMES of tests/test_access.py, or to WITHOUT_OBJECT: {sorted(missing)}"
    )


@pytest.mark.asyncio
async def test_socket_commands_follow_the_matrix(
    objects, assistant, owner, reader, stranger, staff
):
    question = await Message.objects.aget(conversation=objects["conversation_id"], role="user")
    fields = {"context_tokens": 8_000, "max_output_tokens": 2_000, "provider_model": "stub-model"}
    second = await LanguageModel.objects.acreate(name="Second", **fields)
    models = [assistant.model_id, second.pk]
    values = {"client_id": "a", "text": "Hi", "models": models, "allow": True}
    before = await sync_to_async(state)(owner)
    wrong = []
    people = {"reader": reader, "other": stranger, "staff": staff}
    known = objects | {"question_id": question.pk}
    for who, user in people.items():
        async with open_tab(user) as tab:
            for type, fields in FRAMES.items():
                frame = {
                    field: str(known[name]) if name else values[field]
                    for field, name in fields.items()
                }
                await tab.send(type=type, **frame)
                code = (await tab.until("error"))["code"]
                # The run is of a chat that is not shared; a shared one's is followed in test_consumer.py.
                is_shared = who == "reader" and "run" not in fields
                if code != ("not_allowed" if is_shared else "not_found"):
                    wrong.append((who, type, code))
            assert SECRET not in str(tab.received)
    await run_follower.close_clients()
    assert wrong == []
    assert await sync_to_async(state)(owner) == before


# --- API operations ---------------------------------------------------------------------------

HOOK = "/api/v1/webhooks/{webhook_id}"
PAPER = "/api/v1/documents/{document_id}"
CHAT = "/api/v1/conversations/{conversation_id}"
# Of each operation: the scope that it needs, its body, and the statuses of the owner, of another user and of a reader
# by share. An incomplete body shows that the key was accepted; reading comes before changing, and deleting last.
OPERATIONS: dict[tuple[str, str], tuple[Scope, dict[str, Any], int, int, int]] = {
    ("GET", "/v1/models"): (Scope.MODELS, {}, 200, 200, 200),
    ("GET", "/v1/models/.+"): (Scope.MODELS, {}, 200, 200, 200),
    ("POST", "/v1/chat/completions"): (Scope.MODELS, {}, 400, 400, 400),
    ("POST", "/v1/responses"): (Scope.MODELS, {}, 400, 400, 400),
    ("POST", "/v1/embeddings"): (Scope.MODELS, {}, 400, 400, 400),
    ("GET", "/api/v1/conversations"): (Scope.READ, {}, 200, 200, 200),
    ("GET", "/api/v1/conversations/{conversation_id}"): (Scope.READ, {}, 200, 404, 200),
    ("GET", "/api/v1/conversations/{conversation_id}/messages"): (Scope.READ, {}, 200, 404, 200),
    ("GET", "/api/v1/runs/{run_id}"): (Scope.READ, {}, 200, 404, 404),
    ("GET", "/api/v1/runs/{run_id}/events"): (Scope.READ, {}, 204, 404, 404),
    ("GET", "/api/v1/runs/{run_id}/wait"): (Scope.READ, {}, 200, 404, 404),
    ("GET", "/api/v1/search"): (Scope.READ, {}, 200, 200, 200),
    ("GET", "/api/v1/balance"): (Scope.USAGE, {}, 200, 200, 200),
    ("GET", "/api/v1/usage"): (Scope.USAGE, {}, 200, 200, 200),
    ("GET", "/api/v1/ledger"): (Scope.USAGE, {}, 200, 200, 200),
    ("GET", "/api/v1/webhooks"): (Scope.WEBHOOKS, {}, 200, 200, 200),
    ("GET", f"{HOOK}"): (Scope.WEBHOOKS, {}, 200, 404, 404),
    ("GET", f"{HOOK}/deliveries"): (Scope.WEBHOOKS, {}, 200, 404, 404),
    ("GET", f"{HOOK}/deliveries/{{delivery_id}}"): (Scope.WEBHOOKS, {}, 200, 404, 404),
    ("POST", "/api/v1/webhooks"): (Scope.WEBHOOKS, {}, 422, 422, 422),
    ("PATCH", f"{HOOK}"): (Scope.WEBHOOKS, {"name": SECRET}, 200, 404, 404),
    ("POST", f"{HOOK}/secret"): (Scope.WEBHOOKS, {}, 200, 404, 404),
    ("POST", f"{HOOK}/test"): (Scope.WEBHOOKS, {}, 201, 404, 404),
    ("POST", f"{HOOK}/deliveries/{{delivery_id}}/resend"): (Scope.WEBHOOKS, {}, 200, 404, 404),
    ("DELETE", f"{HOOK}"): (Scope.WEBHOOKS, {}, 204, 404, 404),
    ("GET", "/api/v1/documents"): (Scope.DOCUMENTS, {}, 200, 200, 200),
    ("POST", "/api/v1/documents"): (Scope.DOCUMENTS, {}, 422, 422, 422),
    ("GET", f"{PAPER}"): (Scope.DOCUMENTS, {}, 200, 404, 404),
    ("GET", f"{PAPER}/blocks"): (Scope.DOCUMENTS, {}, 200, 404, 404),
    # It is no chat, and has no tables.
    ("GET", f"{PAPER}/statistics"): (Scope.DOCUMENTS, {}, 404, 404, 404),
    ("GET", f"{PAPER}/tables"): (Scope.DOCUMENTS, {}, 200, 404, 404),
    ("GET", f"{PAPER}/tables/{{name}}/csv"): (Scope.DOCUMENTS, {}, 404, 404, 404),
    ("POST", f"{PAPER}/retry"): (Scope.DOCUMENTS, {}, 200, 404, 404),
    ("GET", f"{CHAT}/documents"): (Scope.DOCUMENTS, {}, 200, 404, 403),
    ("PUT", f"{CHAT}/documents/{{document_id}}"): (Scope.DOCUMENTS, {}, 200, 404, 403),
    ("DELETE", f"{CHAT}/documents/{{document_id}}"): (Scope.DOCUMENTS, {}, 204, 404, 404),
    ("GET", "/api/v1/documents/{document_id}/insights"): (Scope.DOCUMENTS, {}, 200, 404, 404),
    ("POST", "/api/v1/documents/{document_id}/insights/{category_slug}/unlock"): (
        *(Scope.DOCUMENTS, {}, 200, 404, 404),
    ),
    ("POST", "/api/v1/insights/{insight_id}/retry"): (Scope.DOCUMENTS, {}, 200, 404, 404),
    ("POST", "/api/v1/conversations"): (Scope.WRITE, {"title": SECRET}, 201, 201, 201),
    ("POST", "/api/v1/runs"): (Scope.WRITE, {"text": " "}, 400, 400, 400),
    ("POST", "/api/v1/runs/{run_id}/stop"): (Scope.WRITE, {}, 200, 404, 404),
    ("POST", "/api/v1/runs/{run_id}/tools/{call}"): (Scope.WRITE, {"allow": True}, 200, 404, 404),
    ("PATCH", "/api/v1/conversations/{conversation_id}"): (
        Scope.WRITE,
        {"pinned": True},
        *(200, 404, 403),
    ),
    ("DELETE", "/api/v1/conversations/{conversation_id}"): (Scope.WRITE, {}, 204, 404, 403),
    ("DELETE", f"{PAPER}"): (Scope.DOCUMENTS, {}, 204, 404, 404),
}
QUERY: dict[str, dict[str, Any]] = {
    "/api/v1/search": {"q": "word"},
    "/api/v1/runs/{run_id}/events": {"after": 10**9},
}


def test_each_api_operation_is_in_the_matrix():
    known = {(method, f"{api.BASE}{route}") for method, route, _ in api.ROUTES}
    for path, methods in reference.document(rest)["paths"].items():
        known |= {(method.upper(), path) for method in methods}
    assert known == set(OPERATIONS), (
        "Add these operations to OPERATIONS of tests/test_access.py, or remove them: "
        f"{sorted(known ^ set(OPERATIONS))}"
    )


@pytest.mark.asyncio
async def test_api_operations_follow_the_matrix(objects, owner, reader, stranger):
    """Keys of several users, and keys that are refused, for every operation."""

    def prepare() -> dict[str, dict[str, str]]:
        ended = {"status": "done", "ended_at": timezone.now(), "seq": 1}
        Run.objects.filter(pk=objects["run_id"]).update(**ended)
        leaver, locked = (
            User.objects.create_user(f"{name}@example.org", "correct horse battery")
            for name in ("leaver", "locked")
        )
        users = {"owner": owner, "other": stranger, "reader": reader}
        users |= {"leaver": leaver, "locked": locked, "expired": owner, "revoked": owner}
        terms = api_keys.Terms(name="x", scopes=Scope.values)
        made = {who: api_keys.create(user, terms) for who, user in users.items()}
        for scope in Scope:
            others = [one.value for one in Scope if one != scope]
            made[scope.value] = api_keys.create(owner, api_keys.Terms(name="x", scopes=others))
        ApiKey.objects.filter(pk=made["expired"][0].pk).update(expires_at=timezone.now())
        api_keys.revoke(made["revoked"][0], by=owner)
        leaving.request(leaver)
        User.objects.filter(pk=locked.pk).update(is_active=False)
        keys = {who: {"authorization": f"Bearer {secret}"} for who, (_, secret) in made.items()}
        return keys | {"anonymous": {}}

    keys = await sync_to_async(prepare)()
    refused = {
        "anonymous": "missing_api_key",
        "expired": "expired_api_key",
        "revoked": "invalid_api_key",
        "locked": "account_inactive",
        "leaver": "account_inactive",
    }
    wrong = []
    transport = httpx2.ASGITransport(app=application)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as client:
        before = await sync_to_async(state)(owner)
        # The owner comes last, who may change and delete.
        for who in (*refused, "scope", "other", "reader", "owner"):
            for (method, route), (scope, body, *statuses) in OPERATIONS.items():
                path = route.replace(".+", "stub-model").format_map(objects)
                answer = await client.request(
                    method,
                    path,
                    headers=keys[scope.value if who == "scope" else who],
                    params=QUERY.get(route),
                    json=body if method in ("POST", "PATCH") else None,
                )
                found: tuple[int, str] = answer.status_code, ""
                if who in refused or who == "scope":
                    error = answer.json()
                    found = answer.status_code, error.get("error", error)["code"]
                    expected = (401, refused.get(who, ""))
                    if who == "scope":
                        expected = (403, "missing_scope")
                else:
                    expected = statuses[("owner", "other", "reader").index(who)], ""
                is_shown = SECRET in answer.text and who == "other" and method == "GET"
                if found != expected or is_shown or "x-request-id" not in answer.headers:
                    wrong.append((who, method, route, found, expected, answer.text[:200]))
            if who == "reader":
                assert await sync_to_async(state)(owner) == before
    await run_follower.close_clients()
    assert wrong == [], "\n".join(map(str, wrong))


# --- Files of users who leave -----------------------------------------------------------------


def test_files_close_when_their_owner_leaves(objects, owner, reader, stranger, settings):
    """Receipts, archives and attachments are the owner's, and of no user after the deletion was requested."""
    name = "exports/archive.zip"
    path = private_files.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"PK")
    ready = {"file": name, "size": 2, "status": "done", "ended_at": timezone.now()}
    ChatExport.objects.filter(pk=objects["export_id"]).update(**ready)
    Order.objects.filter(pk=objects["order_id"]).update(paid_at=timezone.now())
    link, image = objects["token"], objects["attachment_id"]
    files = {
        reverse("billing:receipt", args=[objects["order_id"]]): "owner",
        reverse("chat:export_file", args=[objects["export_id"]]): "owner",
        reverse("chat:attachment", args=[image]): "owner reader",
        reverse("chat:thumbnail", args=[image]): "owner reader",
        reverse("chat:public_file", args=[link, image]): "owner reader other anonymous",
        reverse("chat:public_thumbnail", args=[link, image]): "owner reader other anonymous",
        reverse("chat:statistics_card", args=[objects["statistics_token"]]): (
            "owner reader other anonymous"
        ),
    }
    people = {
        "owner": Visitor(owner),
        "reader": Visitor(reader),
        "other": Visitor(stranger),
        "anonymous": Visitor(),
    }

    def opened() -> dict[str, str]:
        return {
            file: " ".join(
                who
                for who, visitor in people.items()
                if visitor.request("get", file).status_code == 200
            )
            for file in files
        }

    assert opened() == files
    leaving.request(owner)
    assert opened() == dict.fromkeys(files, "")
