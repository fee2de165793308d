"""MCP servers as sources of tools: lists, calls, accounts of users, and servers that fail or mean harm."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth.models import Group
from django.test import Client
from django.utils import timezone
from mcp_types import Tool, ToolAnnotations

from chat.tools import registry
from chat.tools.mcp import authorization, discovery, jobs, schemas, source, tokens
from chat.tools.mcp.models import McpConnection, McpServer, McpTool
from chat.tools.registry import ToolError, ToolResult
from tests.chat.tools.test_registry import context
from tests.support.mcp_server import FakeMcp, mcp_server

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


@pytest.fixture(scope="module")
def running():
    with mcp_server() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeMcp, settings) -> FakeMcp:
    settings.SITE_URL = "https://parley.example"
    fresh = FakeMcp(url=running.url)
    running.__dict__.update(fresh.__dict__)
    return running


@pytest.fixture
def server(fake: FakeMcp) -> McpServer:
    made = McpServer(name="Library", slug="library", url=fake.url)
    made.headers = {"X-Api-Key": "k3y"}
    made.save()
    return made


@pytest.fixture
def closed(server: McpServer, fake: FakeMcp) -> McpServer:
    """The server, where each user connects an account."""
    fake.is_closed = True
    McpServer.objects.update(auth="oauth")
    asyncio.run(jobs.refresh(server.pk))
    return McpServer.objects.get()


def call(user, name: str, **arguments: Any) -> ToolResult:
    """Call a tool as the loop does."""
    given = context(user_id=user.pk)
    [found] = [one for one in source.tools_of(given) if one.name == name]
    return asyncio.run(found.call(given, arguments))  # type: ignore[arg-type]


def offered(user) -> list[str]:
    return [one.name for one in source.tools_of(context(user_id=user.pk))]


def test_tools_are_listed_offered_and_called(server, fake, owner):
    asyncio.run(jobs.refresh(server.pk))
    stored = McpServer.objects.get()
    assert (stored.problem, stored.listed_at is not None) == ("", True)
    names = ["library_fail", "library_lend", "library_look_up", "library_sleep"]
    assert offered(owner) == names
    tools = {one.name: one for one in source.tools_of(context(user_id=owner.pk))}
    reads, lends = tools["library_look_up"], tools["library_lend"]
    assert (reads.has_effect, reads.needs_approval) == (False, False)
    assert (lends.has_effect, lends.needs_approval, lends.source) == (True, True, "mcp:library")
    assert lends.schema["required"] == ["book"]
    result = call(owner, "library_look_up", word="owls")
    assert result.text.startswith("All about owls.")
    assert result.untrusted
    assert call(owner, "library_lend", book="Emma").text == "Emma is yours for 7 days."
    assert fake.calls == [("look_up", "owls"), ("lend", ("Emma", 7))]
    assert fake.headers[-1]["x-api-key"] == "k3y"
    assert "k3y" not in stored.encrypted_headers
    assert registry.tools_for(
        context(user_id=owner.pk), ["mcp:library"], lambda _: True
    ).keys() == {*names}


def test_failures_are_told_in_words(server, fake, owner):
    asyncio.run(jobs.refresh(server.pk))
    with pytest.raises(ToolError, match="reported an error") as caught:
        call(owner, "library_fail")
    assert caught.value.untrusted
    McpServer.objects.update(seconds=1)
    with pytest.raises(ToolError, match="Library did not answer in time") as caught:
        call(owner, "library_sleep", seconds=3)
    assert "unknown whether" in caught.value.for_model()
    McpServer.objects.update(url="http://127.0.0.1:9/mcp")
    with pytest.raises(ToolError, match="could not be reached"):
        call(owner, "library_look_up", word="owls")
    asyncio.run(jobs.refresh(server.pk))
    assert "could not be reached" in McpServer.objects.get().problem
    assert McpTool.objects.filter(missing_since=None).count() == 4  # the list of before stays


def test_staff_decide_which_tools_and_who(server, owner, stranger):
    asyncio.run(jobs.refresh(server.pk))
    McpTool.objects.filter(name="lend").update(approval="never")
    McpTool.objects.filter(name="sleep").update(allowed=False)
    group = Group.objects.create(name="Readers")
    server.groups.add(group)
    owner.groups.add(group)
    assert offered(stranger) == []
    found = {one.name: one for one in source.tools_of(context(user_id=owner.pk))}
    assert "library_sleep" not in found
    assert not found["library_lend"].needs_approval
    McpServer.objects.update(enabled=False)
    assert offered(owner) == []


def test_later_tools_wait_for_staff(server):
    def store(*listed: Tool) -> dict[str, McpTool]:
        discovery.store_tools(server.pk, list(listed), "2025-06-18", timezone.now())
        return {one.name: one for one in McpTool.objects.all()}

    plain = {"type": "object", "properties": {}}
    reads = ToolAnnotations(read_only_hint=True)
    first = store(Tool(name="a", input_schema=plain), Tool(name="b", input_schema=plain))
    assert all(one.allowed for one in first.values())
    circle = {"type": "object", "properties": {"x": {"$ref": "#"}}}
    found = store(
        Tool(name="a", input_schema=plain, annotations=reads, description="x\x00" * 9_000),
        Tool(name="c", input_schema=plain),
        Tool(name="evil", input_schema=circle),
    )
    assert found.keys() == {"a", "b", "c"}
    assert (found["c"].allowed, found["b"].missing_since is None) == (False, False)
    # It was one with effects when staff allowed it.
    assert (found["a"].needs_approval, len(found["a"].description)) == (True, 4_000)


def test_names_are_unique_and_suit_providers(server):
    made = [McpTool(server=server, name=name) for name in ("a.b", "a/b", "x" * 100, "x" * 101, "é")]
    found = source.names(made)
    assert len(set(found)) == 5
    assert all(registry.NAME.fullmatch(name) for name in found)


@pytest.mark.parametrize(
    "schema",
    [
        "text",
        {"type": "string"},
        {
            "properties": {"a": {"$ref": "#/$defs/a"}},
            "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}},
        },
        {"properties": {"a": {"$ref": "https://example.org/schema.json"}}},
        {"properties": {"a": {"$ref": "#/$defs/none"}}},
        {"properties": {f"p{n}": {"type": "string"} for n in range(3_000)}},
        {"description": "x" * 30_000},
    ],
)
def test_hostile_schema_is_refused(schema):
    with pytest.raises(schemas.BadSchema):
        schemas.bounded(schema)


def test_schema_that_multiplies_or_nests_is_refused():
    deep: dict[str, Any] = {}
    for _ in range(1_000):
        deep = {"items": deep}
    with pytest.raises(schemas.BadSchema, match="deep"):
        schemas.bounded({"properties": {"a": deep}})
    laughs: dict[str, Any] = {"l0": {"enum": ["ha"] * 20}}
    for level in range(1, 9):
        laughs[f"l{level}"] = {"anyOf": [{"$ref": f"#/$defs/l{level - 1}"}] * 10}
    with pytest.raises(schemas.BadSchema):
        schemas.bounded({"properties": {"a": {"$ref": "#/$defs/l8"}}, "$defs": laughs})


def test_schema_keeps_its_meaning():
    given = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "properties": {"examples": {"$ref": "#/$defs/list", "description": "Some"}},
        "$defs": {"list": {"type": "array", "items": {"type": "string"}}},
    }
    items = {"type": "array", "items": {"type": "string"}, "description": "Some"}
    assert schemas.bounded(given) == {"type": "object", "properties": {"examples": items}}


def permitted(client: Client, server: McpServer, fake: FakeMcp) -> dict[str, str]:
    """Connect as a browser does, up to the way back."""
    page = client.post(f"/settings/tools/{server.pk}/")
    [link] = [one for one in page.content.decode().split('"') if one.startswith(fake.origin)]
    return fake.permit(link.replace("&amp;", "&"))


def test_user_connects_an_account_and_ends_it(closed, fake, client, owner):
    assert "Connect an account" in closed.problem
    client.force_login(owner)
    assert b"Library" in client.get("/settings/tools/").content
    assert offered(owner) == []
    answer = permitted(client, closed, fake)
    asked = next(iter(fake.codes.values()))
    assert (asked["resource"], asked["scope"]) == (fake.url, "read offline_access")
    assert asked["redirect_uri"] == "https://parley.example/settings/tools/connected/"
    client.get("/settings/tools/connected/", answer)
    [connection] = McpConnection.objects.all()
    assert b"Connecting" in client.get("/settings/tools/").content
    asyncio.run(jobs.exchange(str(connection.pk)))
    assert b"Connected since" in client.get("/settings/tools/").content
    assert call(owner, "library_look_up", word="owls").text.startswith("All about owls")
    [stored] = McpConnection.objects.all()
    [token] = fake.tokens
    assert token not in stored.encrypted_tokens
    assert stored.tokens["access_token"] == token
    # The answer is good for one use.
    client.get("/settings/tools/connected/", answer)
    assert McpConnection.objects.get().step == ""

    client.post(f"/settings/tools/{closed.pk}/end/")
    assert offered(owner) == []
    asyncio.run(jobs.revoke(str(connection.pk)))
    assert not fake.tokens
    assert not fake.refresh_tokens
    assert not McpConnection.objects.exists()


@pytest.fixture
def connection(closed, fake, client, owner) -> McpConnection:
    client.force_login(owner)
    found = authorization.receive(owner, permitted(client, closed, fake))
    asyncio.run(jobs.exchange(str(found.pk)))
    return McpConnection.objects.select_related("server").get()


def test_expired_token_is_refreshed_once(connection, fake, owner):
    McpConnection.objects.update(expires_at=timezone.now())
    old = McpConnection.objects.select_related("server").get()

    async def both() -> list[str]:
        return list(await asyncio.gather(tokens.fresh(old), tokens.fresh(old)))

    first, second = asyncio.run(both())
    assert first == second != connection.tokens["access_token"]
    assert [form.get("grant_type") for _path, form in fake.requests].count("refresh_token") == 1
    # A token that the server refuses before its time is refreshed as well.
    fake.tokens.clear()
    assert call(owner, "library_look_up", word="owls").text.startswith("All about owls")


def test_ended_authorisation_asks_to_connect_again(connection, fake, owner, client):
    fake.tokens.clear()
    fake.refuses_tokens = True
    with pytest.raises(ToolError, match="not connected to Library"):
        call(owner, "library_look_up", word="owls")
    assert offered(owner) == []
    assert b"has ended the connection" in client.get("/settings/tools/").content


@pytest.mark.parametrize(
    "change",
    [{"error": "access_denied"}, {"iss": "https://evil.example"}, {"iss": ""}, {"code": ""}],
)
def test_refused_answer_connects_nothing(closed, fake, client, owner, change):
    client.force_login(owner)
    answer = permitted(client, closed, fake) | change
    client.get("/settings/tools/connected/", answer)
    stored = McpConnection.objects.get()
    assert (stored.step, stored.encrypted_code) == ("", "")
    assert stored.problem


def test_answer_of_another_user_is_refused(closed, fake, client, owner, stranger):
    client.force_login(owner)
    answer = permitted(client, closed, fake)
    other = Client()
    other.force_login(stranger)
    other.get("/settings/tools/connected/", answer)
    assert McpConnection.objects.get().step == "asked"


def test_server_without_pkce_is_not_used(server, fake, client, owner):
    fake.is_closed, fake.pkce = True, ("plain",)
    McpServer.objects.update(auth="oauth")
    asyncio.run(jobs.refresh(server.pk))
    assert "PKCE" in McpServer.objects.get().problem
    client.force_login(owner)
    page = client.post(f"/settings/tools/{server.pk}/", follow=True)
    assert b"cannot be connected" in page.content


def test_metadata_at_private_hosts_are_refused(server, fake, monkeypatch):
    """The server's own address is the staff's choice; those that it names are not."""
    fake.is_closed = True
    McpServer.objects.update(auth="oauth")
    inside = "http://127.0.0.2:1"
    monkeypatch.setattr(
        fake,
        "answer",
        lambda path, form: (200, {"resource": fake.url, "authorization_servers": [inside]}),
    )
    asyncio.run(jobs.refresh(server.pk))
    assert "may not be contacted" in McpServer.objects.get().problem


def test_query_of_the_address_is_kept(closed, fake, owner):
    McpServer.objects.update(
        oauth=closed.oauth | {"authorization_endpoint": "https://a.example/?x=1"}
    )
    address = authorization.begin(owner, McpServer.objects.get())
    assert parse_qs(urlsplit(address).query)["x"] == ["1"]
