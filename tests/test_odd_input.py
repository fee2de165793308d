"""Odd characters and values, wherever a request can carry them, are refused and never a 500."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from html import unescape
from typing import Any
from urllib.parse import quote

import pytest
from django.apps import apps
from django.contrib import admin
from django.db import models
from django.test import AsyncClient, Client
from django.urls import get_resolver, reverse

from accounts.models import User
from chat.models import Conversation, MessagePart
from tests.accounts.test_pages import patterns
from tests.support import billing_rows
from tests.support.conversations import begin, send
from tests.support.people import assistant
from tests.support.visitor import Visitor, without_limits

__all__ = ["assistant"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

# Percent-encoded, as in a query.
VALUES = {
    "NUL": "a%00b",
    "lone surrogate": "%ED%A0%80",
    "broken UTF-8": "%FF%FE%C3",
    "long number": "9" * 30,
    "very long number": "9" * 5000,
    "negative": "-99999999999999999999",
    "exponent": "1e400",
    "NaN": "NaN",
    "infinity": "-Infinity",
    "year zero": "0000-00-00",
    "no date": "2026-13-45",
    "far date": "99999-12-31%2023:59:59",
    "edge of dates": "9999-12-31%2023:59:59-23:59",
    "words": "nobody%20knows",
    "list": "1,2,,x",
    "brackets": "%5B%5D%7B%7D",
    "quotes": "%27%22%3B--%5C",
    "noncharacters": "%EF%BF%BE%E2%80%AE%F3%A0%80%81%0D%0A",
    "emoji": "%F0%9F%98%80" * 300,
    "many words": "a%20" * 3000,
    "empty": "",
    "percent": "%25s%25(x)s",
}

PARAMETERS = [
    "q", "p", "o", "e", "all", "_popup", "_changelist_filters", "next", "email", "month",
    "before", "after", "edit", "model", "kind", "currency", "code", "page", "nonce", "from", "to", "id",
    "app_label", "model_name", "field_name", "term", "days", "year", "login", "conversation", "text",
]  # fmt: skip
FIELDS = [
    *PARAMETERS, "title", "name", "password", "password1", "amount", "reason", "package", "provider",
    "limit", "client_id", "client_key", "order", "offer", "action", "job_ids", "_selected_action",
    "action_add", "action_remove", "uidb36", "key", "assistant", "slug", "index", "select_across",
]  # fmt: skip
# A walk over everything takes half an hour: ODD_INPUT=all. Otherwise each parameter meets some values.
EVERYTHING = os.environ.get("ODD_INPUT") == "all"
TIME_LIMIT = 3_600 if EVERYTHING else 400  # seconds of one walk

# Each walk takes every eighth page, filter or action, and all of them in `make ci-long`.
walks = pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.long)])


LOOKUPS = [
    "", "__exact", "__id__exact", "__gte", "__in", "__isnull", "__year", "__month", "__day", "__range",
    "__date", "__regex",
]  # fmt: skip


@pytest.fixture
def staff(settings, assistant) -> User:
    """A superuser with a chat, and a row in every table."""
    without_limits(settings)
    user = User.objects.create_superuser("staff@example.org", "a-long-password-17")
    run = send(user, begin(user, assistant), "Hello there")
    MessagePart.objects.create(message=run.message, position=0, kind="reasoning", data={"text": ""})
    billing_rows.make()
    return user


def addresses() -> Iterator[tuple[str, str]]:
    """Yield the name and an existing address of every page."""
    for name, route, _ in patterns(get_resolver()):
        found: dict[str, Any] = {}
        for kind, parameter in re.findall(r"<(?:(\w+):)?(\w+)>", route):
            label = {"object_id": None, "provider": "stripe", "app_label": "billing"}.get(
                parameter, ""
            )
            found[parameter] = label or key_for(name, kind, parameter)
        yield name, address_of(route, found)


def key_for(name: str, kind: str, parameter: str) -> str:
    model: type[models.Model] | None = None
    known = {
        "conversation_id": "chat.Conversation",
        "run_id": "chat.Run",
        "message_id": "chat.Message",
        "order_id": "billing.Order",
        "account_id": "billing.Account",
        "user_id": "accounts.User",
    }
    if parameter in known:
        model = apps.get_model(known[parameter])
    elif parameter == "object_id" and (match := re.match(r"admin:([a-z]+)_(\w+)_\w+$", name)):
        with suppress(LookupError):  # admin:view_on_site has no model
            model = apps.get_model(match[1], match[2])
    row = model._default_manager.first() if model else None
    return str(row.pk) if row else "1"


def address_of(route: str, found: dict[str, Any]) -> str:
    route = re.sub(r"<(?:\w+:)?(\w+)>", lambda match: found[match[1]], route)
    route = re.sub(r"\(\?P<\w+>[^)]*\)", "something", route)
    return "/" + re.sub(r"[\^$\\]|\\Z", "", route).replace("Z", "", 0)


def fields_of(html: str) -> dict[str, str]:
    """The names of a page's form fields, with their values."""
    found = {}
    for tag in re.findall(r"<(?:input|select|textarea|button)\b[^>]*>", html):
        if name := re.search(r'\bname="([^"]+)"', tag):
            value = re.search(r'\bvalue="([^"]*)"', tag)
            found[unescape(name[1])] = unescape(value[1]) if value else ""
    return found


class Walk:
    """Requests as staff, with a record of the answers of 500 and above."""

    def __init__(self, user: User | None) -> None:
        self.visitor = Visitor(user)
        self.failed: list[tuple[str, ...]] = []

    def get(self, what: str, address: str) -> str:
        response = self.visitor.request("get", address)
        if response.status_code >= 500:
            self.failed.append(("GET", what, address[:160]))
        if "html" not in response.get("Content-Type", "") or response.streaming:
            return ""
        return response.content.decode()

    def post(self, what: str, address: str, body: str) -> None:
        response = self.visitor.request(
            "post", address, body, content_type="application/x-www-form-urlencoded"
        )
        if response.status_code >= 500:
            self.failed.append(("POST", what, address[:160]))


def some(turn: int, count: int, *always: str) -> dict[str, str]:
    """Return `count` of VALUES, others at each turn, and those that are always tried."""
    if EVERYTHING:
        return VALUES
    names = list(VALUES)
    chosen = [names[(turn * count + number) % len(names)] for number in range(count)]
    return {name: VALUES[name] for name in (*always, *chosen)}


@walks
@pytest.mark.timeout(TIME_LIMIT)
def test_pages_refuse_odd_parameters_and_fields(staff, step):
    walk = Walk(staff)
    for turn, (name, address) in enumerate(addresses()):
        if turn % step:
            continue
        html = walk.get(name, address)
        names = {*FIELDS, *fields_of(html)} - {"csrfmiddlewaretoken"}
        kept = {
            field: value
            for field, value in fields_of(html).items()
            if re.search(r"-(TOTAL|INITIAL|MIN_NUM|MAX_NUM)_FORMS$", field)
        }
        for value_name, value in some(turn, 1, "NUL").items():
            query = "&".join(f"{parameter}={value}" for parameter in PARAMETERS)
            walk.get(f"{name} {value_name}", f"{address}?{query}")
            if name.startswith("admin:"):
                # The admin refuses it before it reads anything else.
                walk.get(f"{name} {value_name}", f"{address}?_to_field={value}")
            body = "&".join(f"{quote(field)}={value}" for field in names - kept.keys())
            management = "".join(f"&{quote(field)}={kept[field]}" for field in kept)
            walk.post(f"{name} {value_name}", address, body + management)
        walk.post(f"{name} NUL alone", address, "%00=%00")
    assert walk.failed == [], "\n".join(map(str, walk.failed))


@walks
@pytest.mark.timeout(TIME_LIMIT)
def test_paths_refuse_odd_values(staff, step):
    walk = Walk(staff)
    routes = [each for each in patterns(get_resolver()) if "<" in each[1]]
    for turn, (name, route, _) in enumerate(routes[::step]):
        for value_name, value in some(turn, 3, "NUL").items():
            found = dict.fromkeys(re.findall(r"<(?:\w+:)?(\w+)>", route), value or "x")
            route_of = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"<\1>", route)
            found |= dict.fromkeys(re.findall(r"<(?:\w+:)?(\w+)>", route_of), value or "x")
            walk.get(f"{name} {value_name}", address_of(route_of, found))
            walk.post(f"{name} {value_name}", address_of(route_of, found), "a=b")
    for value in VALUES.values():
        walk.get("no page", f"/{value}/")
    assert walk.failed == [], "\n".join(map(str, walk.failed))


@walks
@pytest.mark.timeout(TIME_LIMIT)
def test_lists_of_the_admin_refuse_odd_filters(staff, step):
    walk = Walk(staff)
    turn = 0
    for model, site in admin.site._registry.items():
        address = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
        parameters = ["q", "o", "p", "e", "all", "_popup", "_to_field", "is_active__exact"]
        listed: list[Any] = list(site.list_filter)
        filters = [each[0] if isinstance(each, tuple) else each for each in listed]
        filters = [name for name in filters if isinstance(name, str)]
        for name in ["id", "pk", *filters, *([site.date_hierarchy] if site.date_hierarchy else [])]:
            # Each filter with some lookups, others at each turn.
            turn += 1
            lookups = LOOKUPS if EVERYTHING else (LOOKUPS * 2)[turn % len(LOOKUPS) :][:4]
            parameters += [f"{name}{lookup}" for lookup in lookups]
        for parameter in parameters:
            turn += 1
            if turn % step:
                continue
            for value_name, value in some(turn // step, 1).items():
                walk.get(f"{parameter} {value_name}", f"{address}?{parameter}={value}")
        actions = ["delete_selected", *(getattr(each, "__name__", each) for each in site.actions)]
        for action in actions:
            turn += 1
            if turn % step:
                continue
            for value_name, value in some(turn // step, 2, "NUL").items():
                for key in (value, "1"):
                    form = f"action={action}&_selected_action={key}&index={value}&reason={value}"
                    walk.post(f"{action} {value_name}", address, form)
                    walk.post(f"{action} {value_name}", address, f"{form}&select_across={value}")
    assert walk.failed == [], "\n".join(map(str, walk.failed))


@pytest.mark.parametrize("path", ["chat/run/?q=", "autocomplete/?term="])
def test_searches_of_the_admin_have_few_words(staff, path):
    visitor = Visitor(staff)
    assert visitor.request("get", f"/admin/{path}{'a%20' * 20}").status_code != 400
    refused = visitor.request("get", f"/admin/{path}{'a%20' * 21}", HTTP_ACCEPT="text/html")
    assert refused.status_code == 400
    assert "at most 20 words" in refused.content.decode()


@walks
@pytest.mark.timeout(TIME_LIMIT)
def test_visitors_pages_refuse_odd_values(staff, step):
    walk = Walk(None)
    pages = [each for each in addresses() if not each[0].startswith("admin:")]
    pages.append(("admin:index", reverse("admin:index")))
    for turn, (name, address) in enumerate(pages[::step]):
        for value_name, value in some(turn, 4, "NUL").items():
            query = "&".join(f"{parameter}={value}" for parameter in PARAMETERS)
            walk.get(f"{name} {value_name}", f"{address}?{query}")
            body = "&".join(f"{field}={value}" for field in FIELDS)
            walk.post(f"{name} {value_name}", address, body)
    assert walk.failed == [], "\n".join(map(str, walk.failed))


ODD_COOKIES = ["a\x00b", "\xff\xfe\xc3", "9" * 5000, "é", '"\\', "a:b:c"]


@pytest.mark.parametrize("cookie", ["sessionid", "csrftoken", "messages", "known", "other"])
def test_odd_cookies_are_no_error(staff, cookie):
    for value in ODD_COOKIES:
        for path in ("/", "/accounts/login/", "/admin/"):
            client = Client(raise_request_exception=False)
            client.cookies[cookie] = "placeholder"
            response = client.get(path, HTTP_COOKIE=f"{cookie}={value}")
            assert response.status_code < 500, (cookie, value, path)
            post = client.post(path, HTTP_COOKIE=f"{cookie}={value}")
            assert post.status_code < 500


ODD_HEADERS = ["a\x00b", "9" * 5000, "é", "//[", "http://[::1", "a;q=x, b;q=1e999", "\r\n", ""]


@pytest.mark.parametrize(
    "header",
    ["ACCEPT", "ACCEPT_LANGUAGE", "USER_AGENT", "REFERER", "ORIGIN", "X_FORWARDED_FOR",
     "X_FORWARDED_PROTO", "X_REQUESTED_WITH", "X_CSRFTOKEN", "IF_MODIFIED_SINCE", "IF_NONE_MATCH",
     "RANGE", "HOST", "AUTHORIZATION"],
)  # fmt: skip
def test_odd_headers_are_no_error(staff, header):
    visitor = Visitor(staff)
    for value in ODD_HEADERS:
        for path in ("/", "/chats/", "/accounts/email/", "/accounts/login/", "/admin/"):
            for method in ("get", "post"):
                options = {f"HTTP_{header}": value}
                response = visitor.request(method, path, **options)
                assert response.status_code < 500, (header, value, path)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded; charset={}",
        "multipart/form-data; boundary=b; charset={}",
        "text/plain; charset={}",
    ],
)
@pytest.mark.parametrize(
    "charset", ["unicode_escape", "utf-7", "rot13", "base64", "idna", "utf-16"]
)
async def test_odd_charsets_are_refused(staff, content_type, charset):
    """Under ASGI, as in production: WSGI decodes by the charset before any of our code runs."""
    body = '--b\r\nContent-Disposition: form-data; name="title"\r\n\r\n\\ud800\\x00\r\n--b--\r\n'
    client = AsyncClient(raise_request_exception=False)
    await client.aforce_login(staff)
    conversation = await Conversation.objects.aget(owner=staff)
    for method, address in (("POST", f"/c/{conversation.pk}/rename/"), ("GET", "/chats/?q=a")):
        response = await client.generic(
            method, address, body, content_type=content_type.format(charset)
        )
        assert response.status_code == 400
    assert "UTF-8" in response.content.decode()


def test_refusal_of_a_character_is_explained(client, staff):
    client.force_login(staff)
    conversation = Conversation.objects.get(owner=staff)
    address = f"/c/{conversation.pk}/rename/"
    response = client.post(address, {"title": "a\x00b"})
    assert response.status_code == 400
    html = response.content.decode()
    assert "“title” contains a character that cannot be stored" in html
    assert "\x00" not in html
    json = client.post(address, {"title": "a\x00b"}, HTTP_ACCEPT="application/json")
    assert json.json()["code"] == "odd_character"
    conversation.refresh_from_db()
    assert "\x00" not in conversation.title
    assert client.get("/chats/?q=%00").status_code == 400
    assert client.get("/admin/accounts/user/%00/change/").status_code == 400
