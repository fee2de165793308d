"""Every address of the admin, opened and posted to by each role: rights hold, and reading changes nothing."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from allauth.usersessions.models import UserSession
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.db import connection, models
from django.test import Client
from django.urls import URLPattern, get_resolver, reverse

from accounts.models import User
from billing.models import Account, AuditRecord, Order, UsageRecord
from chat.documents.models import Document, StatisticsLink
from chat.insights.models import Insight, InsightJob
from chat.models import (
    ApiCall,
    Assistant,
    ChatExport,
    ChatImport,
    Conversation,
    IdempotencyKey,
    LanguageModel,
    Message,
    MessagePart,
    Prompt,
    Provider,
    PublicLink,
    Report,
    Run,
    Webhook,
)
from chatproject.lib.mail.models import OutgoingMail
from tests.support import staff_rows

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey_url")]

# Each role takes every sixth address, and all of them in `make ci-long`.
walks = pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.long)])
OWN = {"/admin/", "/admin/jsi18n/", "/admin/password_change/done/"}  # of all staff
# Fields of all forms at once, such as someone posts who knows their names.
FORM = {
    "confirmed": "1",
    "post": "yes",
    "reason": "None",
    "amount": "5",
    "base_url": "https://thief.example.org/v1",
    "email": "thief@example.org",
    "name": "Changed",
    "password1": "another-password-23",
    "password2": "another-password-23",
    "usable_password": "true",
    "is_superuser": "on",
    "enabled": "on",
}


@pytest.fixture
def boss() -> Iterator[User]:
    logging.disable()  # of a traceback for each refusal
    yield staff_rows.make()
    logging.disable(logging.NOTSET)


def addresses() -> Iterator[str]:
    """Every address below /admin/, with the keys of rows that exist."""
    row = {
        "user_id": User.objects.filter(is_staff=False).latest("pk").pk,
        "account_id": Account.objects.latest("pk").pk,
        "order_id": Order.objects.latest("pk").pk,
        "conversation_id": Conversation.objects.latest("pk").pk,
        "run_id": Run.objects.filter(status="running").get().pk,
        "pk": Provider.objects.latest("pk").pk,
        **dict.fromkeys(("queue_index", "scheduler_index", "connection_index"), 0),
        **dict.fromkeys(
            ("job_id", "worker_id", "key", "result_id", "scheduler_name", "cron_job_name"), "none"
        ),
        "row": "1/1/",
        "app_label": "chat",
        "url": "none/",
        "action": "none",
    }
    for route in routes(get_resolver().url_patterns):
        if not route.startswith("admin/") or "(?P<" in route or route == "admin/logout/":
            continue
        found = re.match(r"admin/(\w+)/(\w+)/", route)
        if found and ("object_id" in route or "<id>" in route):
            model = apps.get_model(found[1], found[2])
            key = model._default_manager.order_by("pk").last()
            assert key is not None, model
            row["object_id"] = row["id"] = key.pk
        if "content_type_id" in route:  # of a row whose page's address is a secret
            row["content_type_id"] = ContentType.objects.get_for_model(PublicLink).pk
            row["object_id"] = PublicLink.objects.latest("pk").pk
        named = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route)
        missing = {*re.findall(r"{(\w+)}", named)} - row.keys()
        assert not missing, f"add the key of a row for {missing} of {route} to `addresses`"
        yield "/" + named.format_map(row)
    yield from (reverse("admin:app_list", args=[label]) for label in ("billing", "chat"))


def routes(patterns: list[Any], before: str = "") -> Iterator[str]:
    """The routes of patterns and of those that they include."""
    for pattern in patterns:
        route = before + re.sub(r"[\^$]|/\?", "", str(pattern.pattern))
        if isinstance(pattern, URLPattern):
            yield route
        else:
            yield from routes(pattern.url_patterns, route)


def forms(address: str) -> Iterator[dict[str, Any]]:
    """The forms to post to an address: of a list, each action for all rows."""
    form = FORM | {"nonce": str(uuid.uuid4())}
    found = re.fullmatch(r"/admin/(\w+)/(\w+)/", address)
    model = found and found[1] in apps.app_configs and apps.all_models[found[1]].get(found[2])
    if not model or model not in admin.site._registry or not model._meta.managed:
        yield from (form | {"action": action} for action in ("password", "approve", "factors"))
        return
    keys = list(model._base_manager.values_list("pk", flat=True))
    actions = admin.site._registry[model].actions or ()
    for action in ("delete_selected", *actions):
        name = action if isinstance(action, str) else action.__name__
        yield form | {"action": name, "_selected_action": keys, "index": "0"}


def contents() -> dict[str, str]:
    """A digest of each table, but those of sessions and of the admin's log."""
    found = {}
    with connection.cursor() as cursor:
        for model in apps.get_models():
            if model._meta.managed and model not in (Session, UserSession, LogEntry):
                table = connection.ops.quote_name(model._meta.db_table)
                rows = f"SELECT t::text AS row FROM {table} t"  # noqa: S608 # our own table
                cursor.execute(f"SELECT md5(string_agg(row, '' ORDER BY row)) FROM ({rows}) t")  # noqa: S608
                found[table] = cursor.fetchone()[0]
    return found


def signed_in(user: User, **options: Any) -> Client:
    client = Client(**options)
    client.force_login(user)
    return client


def staff(*codenames: str, prefix: str = "-") -> User:
    """A member of staff with the permissions of these names, or that begin so."""
    user = User.objects.create_user("clerk@example.org", is_staff=True)
    wanted = models.Q(codename__in=codenames) | models.Q(codename__startswith=prefix)
    user.user_permissions.set(Permission.objects.filter(wanted))
    return user


@walks
@pytest.mark.parametrize("who", ["user", "staff"])
def test_pages_are_closed_without_permissions(boss: User, who: str, step: int):
    client = signed_in(staff() if who == "staff" else User.objects.create_user("a@example.org"))
    before, opened = contents(), set()
    for address in [*addresses()][::step]:
        for form in (None, *forms(address)):
            response = client.get(address) if form is None else client.post(address, form)
            assert response.status_code in (200, 302, 401, 403, 404, 405), address
            if response.status_code == 200:
                opened.add(address)
    assert opened <= (OWN if who == "staff" else {"/admin/login/", "/admin/jsi18n/"})
    assert contents() == before


# --- Texts of users ------------------------------------------------------------------------------

SECRET = "Zanzibar"
# Columns that no member of staff sees without the permission to view messages, or at all.
OF_MESSAGES: dict[type[models.Model], tuple[str, ...]] = {
    Conversation: ("title", "system_prompt"),
    Document: ("name",),
    Message: ("text", "html"),
    MessagePart: ("data",),
    Run: ("prefix", "prefix_reasoning", "error_message"),
}
HIDDEN: dict[type[models.Model], tuple[str, ...]] = {
    ApiCall: ("request",),
    Assistant: ("name", "system_prompt"),
    ChatExport: ("file",),
    Document: ("file", "details", "statistics"),
    ChatImport: ("file", "file_name", "notes"),
    IdempotencyKey: ("digest",),
    OutgoingMail: ("content",),
    Prompt: ("title", "text"),
    PublicLink: ("token", "title", "shown_name"),
    StatisticsLink: ("token", "title"),
    Run: ("model_snapshot",),
    UsageRecord: ("assistant",),
    Webhook: ("url", "name"),
}


@pytest.fixture
def secret(boss: User) -> str:
    """A word in all texts of a user: of messages, a private assistant, documents, transfers, a call and a link."""
    owner = User.objects.filter(is_staff=False, conversations__isnull=False).latest("pk")
    serving = LanguageModel.objects.latest("pk")
    mine = Assistant.objects.create(
        slug="own", name=SECRET, system_prompt=SECRET, model=serving, owner=owner, personal=True
    )
    Prompt.objects.create(owner=owner, title=SECRET, text=SECRET)
    Conversation.objects.update(assistant=mine)
    Run.objects.update(assistant=mine, model_snapshot={"assistant": SECRET, "name": "Stub"})
    UsageRecord.objects.filter(pk=UsageRecord.objects.latest("pk").pk).update(assistant=SECRET)
    Report.objects.filter(pk=Report.objects.latest("pk").pk).update(
        message=None,
        link=PublicLink.objects.get(),
        conversation=PublicLink.objects.get().conversation,
    )
    Insight.objects.update(data={"text": SECRET})
    for model, columns in (*OF_MESSAGES.items(), *HIDDEN.items()):
        if model in (Assistant, Prompt, UsageRecord, OutgoingMail, IdempotencyKey):
            continue
        fields = {model._meta.get_field(name) for name in columns if name != "model_snapshot"}
        model._base_manager.update(
            **{
                one.name: [[SECRET, SECRET]] if isinstance(one, models.JSONField) else SECRET
                for one in fields
            }
        )
    return SECRET


@walks
def test_texts_need_their_permission(boss: User, secret: str, step: int):
    """Of a member of staff with all others: on no page, in no search, and by no filter in an address."""
    clerk = User.objects.create_user("clerk@example.org", is_staff=True)
    clerk.user_permissions.set(Permission.objects.exclude(codename="view_message"))
    client = signed_in(clerk)
    opened = 0
    for address in [*addresses()][::step]:
        for query in ({}, {"q": secret.lower()}):
            response = client.get(address, query)
            shown = b"".join(iter(response)).decode()
            assert secret not in shown + response.get("Location", "").partition("?")[0], address
            opened += response.status_code == 200
    assert opened > 10
    for model, columns in (*OF_MESSAGES.items(), *HIDDEN.items()):
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
        for column in columns if model not in (Assistant, Prompt) else ():
            query = {f"{column}__startswith": "Z"}
            assert client.get(reverse(name), query).status_code in (400, 403), (model, column)
    jobs = reverse(f"admin:{InsightJob._meta.app_label}_insightjob_changelist")
    for lookup in ("document__name__startswith", "insights__data__icontains"):
        assert client.get(jobs, {lookup: "Z"}).status_code == 400, lookup
    clerk.user_permissions.add(Permission.objects.get(codename="view_message"))
    for row in (Conversation.objects.latest("pk"), Message.objects.latest("pk")):
        looks = LogEntry.objects.filter(object_id=row.pk).count()
        page = reverse(f"admin:chat_{row._meta.model_name}_change", args=[row.pk])
        assert secret in client.get(page).content.decode()
        assert LogEntry.objects.filter(object_id=row.pk, user=clerk).count() == looks + 1


# Beginnings of pages beside the tables, by the permission that opens them.
BESIDE = {
    "view_run": "/admin/chat/live/",
    "view_status": "/admin/status/",
    "view_queue": "/admin/django_rq/",
}


@pytest.mark.long
def test_single_permission_opens_its_table_alone(boss: User, secret: str):
    clerk = User.objects.create_user("clerk@example.org", is_staff=True)
    every = [*addresses()]
    wrong = []
    for number, one in enumerate(Permission.objects.select_related("content_type").order_by("pk")):
        clerk.user_permissions.set([one])
        client = signed_in(clerk)
        kind = one.content_type
        table = f"/admin/{kind.app_label}/{kind.model}/"
        mine = {table, f"/admin/{kind.app_label}/", *OWN}
        for place, address in enumerate(every):
            is_own = address.startswith((table, BESIDE.get(one.codename, table))) or address in mine
            if not is_own and (place + number) % 60:
                continue
            response = client.get(address)
            if response.status_code == 200:
                has_text = secret in response.content.decode() and one.codename != "view_message"
                wrong += [(one.codename, address, has_text)] if has_text or not is_own else []
    assert wrong == [], "\n".join(map(str, wrong))


# --- Changes -------------------------------------------------------------------------------------


@walks
def test_viewers_change_nothing(boss: User, step: int):
    clerk = staff(prefix="view_")
    client = signed_in(clerk)
    before = contents()
    for address in [*addresses()][::step]:
        for form in forms(address):
            assert client.post(address, form).status_code < 500, address
    after = contents()
    # A check of the ledger, which only reads, is started with the permission to see its result.
    actions = {*AuditRecord.objects.filter(actor=clerk).values_list("action", flat=True)}
    assert actions == {"check ledger"} or (step > 1 and not actions)
    assert {table for table in after if after[table] != before[table]} <= {'"billing_auditrecord"'}


@walks
def test_reading_changes_nothing(boss: User, step: int):
    """Not even by an address that has the fields of a form."""
    client = signed_in(boss)
    before, newest = contents(), LogEntry.objects.latest("pk").pk
    for address in [*addresses()][::step]:
        is_list = any("_selected_action" in form for form in forms(address))
        for query in [{}] if is_list else forms(address):
            assert client.get(address, query).status_code < 500, (address, query)
    assert contents() == before
    logged = LogEntry.objects.filter(user=boss, pk__gt=newest)
    looks = {*logged.values_list("change_message", flat=True)}
    expected = {"Looked at the messages", "Looked at the text"}
    assert looks == expected or (step > 1 and looks < expected)


@walks
def test_forms_need_their_token(boss: User, step: int):
    client = signed_in(boss, enforce_csrf_checks=True)
    before = contents()
    for address in [*addresses()][::step]:
        for form in forms(address):
            assert client.post(address, form).status_code in (403, 404), address
    assert contents() == before
