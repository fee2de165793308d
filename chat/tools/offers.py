"""The tools that an assistant may offer, for the forms that choose them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from django.utils.functional import Promise
from django.utils.translation import get_language
from django.utils.translation import gettext as _

from chat.tools import registry
from chat.tools.mcp import source
from chat.tools.mcp.models import McpServer, McpTool, usable_servers
from chat.tools.registry import ToolContext

if TYPE_CHECKING:
    from accounts.models import User

# Those that a chat with documents has anyway, and no other one can use.
OF_DOCUMENTS = ("search_documents", "query_table", "make_chart")

NOBODY = UUID(int=0)  # a run, or a conversation, that is none


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool, or all tools of a server: `name` is stored in `Assistant.tools`."""

    name: str
    title: str | Promise


def offered(user: User, stored: Iterable[str] = ()) -> list[Offer]:
    """Return what a user's own assistant may offer: tools that work for the user here, and the user's servers.

    Those that are `stored` already are kept, and named as not available.
    """
    context = ToolContext(
        run_id=NOBODY,
        user_id=user.pk,
        conversation_id=NOBODY,
        project_id=None,
        call="",
        language=get_language() or "en",
        deadline=time.monotonic() + 10,
    )
    found = [
        Offer(one.name, one.title)
        for one in registry.builtin_tools().values()
        if one.name not in OF_DOCUMENTS
        and (not one.permission or user.has_perm(one.permission))
        and (one.available is None or one.available(context))
    ]
    servers = usable_servers(user.pk).order_by("name")
    found += [Offer(one.source, _all_of(one)) for one in servers]
    return [*found, *_others(found, stored)]


def all_tools(stored: Iterable[str] = ()) -> list[tuple[str, list[Offer]]]:
    """Return all that staff may choose from, in groups: tools of Parley, and of each server all or one by one."""
    builtin = [
        Offer(one.name, f"{one.title} ({one.name})") for one in registry.builtin_tools().values()
    ]
    groups = [(str(_("Tools")), builtin)]
    tools = McpTool.objects.filter(allowed=True, missing_since=None).select_related("server")
    rows = list(tools.order_by("server__slug", "name"))
    named = list(zip(rows, source.names(rows), strict=True))
    for server in McpServer.objects.order_by("slug"):
        single = [
            Offer(name, f"{row.title or row.name} ({name})")
            for row, name in named
            if row.server_id == server.pk
        ]
        groups.append((server.name, [Offer(server.source, _all_of(server)), *single]))
    known = [one for _group, offers in groups for one in offers]
    if others := _others(known, stored):
        groups.append((str(_("Not available")), others))
    return groups


def _all_of(server: McpServer) -> str:
    return _("All tools of %(server)s") % {"server": server.name}


def _others(found: Sequence[Offer], stored: Iterable[str]) -> list[Offer]:
    names = {one.name for one in found}
    words = _("%(name)s (not available)")
    return [Offer(one, words % {"name": one}) for one in stored if one not in names]
