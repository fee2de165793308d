"""Every address of the admin, opened and posted to by each role: rights hold, and reading changes nothing."""

from __future__ import annotations

import logging
import re
import uuid
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from allauth.usersessions.models import UserSession
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.contrib.sessions.models import Session
from django.db import connection, models
from django.test import Client
from django.urls import URLPattern, get_resolver, reverse

from accounts.models import User
from billing.models import Account, AuditRecord, Order
from chat.models import Conversation, Provider, Run
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
        "queue_index": 0,
        "scheduler_index": 0,
        "connection_index": 0,
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
        named = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route)
        yield "/" + named.format_map(defaultdict(lambda: "none", row))
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
