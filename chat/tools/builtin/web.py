"""The tools `web_fetch` and `web_search`: off until the settings permit hosts, or name a search engine."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Annotated, Any

from django.conf import settings
from django.utils.translation import gettext_lazy, ngettext
from msgspec import Meta

from chat.tools import web_search as search
from chat.tools.registry import Display, ToolContext, ToolError, ToolResult, tool
from chatproject.lib import db, rate_limits
from chatproject.lib.sandbox import Limits, SandboxError, call

TEXT_TYPES = (
    *("text/", "application/json", "application/xml", "application/xhtml+xml", "application/rss"),
    *("application/atom", "application/ld+json", "application/yaml", "application/javascript"),
)
SHOWN_CHARACTERS = 20_000  # of a page, in one call
MAX_RESULTS = 8
PARSING = Limits(seconds=10, cpu=10, memory=512_000_000)

TOO_OFTEN = gettext_lazy("You have used the web too often. Try again in %(minutes)d minutes.")
NOT_TEXT = gettext_lazy("The page could not be read.")
NO_ANSWER = gettext_lazy("The search engine did not answer as expected.")


def _can_fetch(_context: ToolContext) -> bool:
    return bool(settings.WEB_FETCH_HOSTS)


def _can_search(_context: ToolContext) -> bool:
    return search.is_configured()


async def _count(name: str, context: ToolContext) -> None:
    try:
        await db.run(rate_limits.hit, name, context.user_id)
    except rate_limits.RateLimited as error:
        raise ToolError(TOO_OFTEN, minutes=-(-error.retry_after // 60)) from None


def _seconds(context: ToolContext) -> float:
    """Return the time that a request may take: a second is left for its text."""
    return max(1.0, min(settings.WEB_FETCH_SECONDS, context.deadline - time.monotonic() - 1))


@tool(
    name="web_fetch",
    title=gettext_lazy("Web page"),
    progress=gettext_lazy("Reading a web page…"),
    seconds=45,
    available=_can_fetch,
)
async def web_fetch(
    context: ToolContext,
    url: Annotated[str, Meta(max_length=2_000, description="The whole address, with https://")],
    start: Annotated[
        int, Meta(ge=0, description="Of a long page: the character from which on it is returned")
    ] = 0,
) -> ToolResult:
    """Read a page of the web and return its text, with its links. Long pages come in parts."""
    # aiohttp: web processes import this module for the names of its tools.
    from chat.guarded import client

    await _count("web_fetches", context)
    policy = client.Policy(
        hosts=settings.WEB_FETCH_HOSTS,
        networks=settings.TOOL_NETWORKS,
        types=TEXT_TYPES,
        seconds=_seconds(context),
        max_bytes=settings.WEB_FETCH_MAX_KB * 1_000,
    )
    try:
        answer = await client.fetch(url, policy)
    except client.FetchError as error:
        raise ToolError(client.SENTENCES[error.code]) from error
    if not 200 <= answer.status < 300:
        raise ToolError(
            gettext_lazy("The page answered with status %(status)d."), status=answer.status
        )
    page = await _text_of(answer)
    text = page["text"]
    lines = [f"Address: {answer.url}", f"Title: {page['title']}" if page["title"] else "", ""]
    shown = text[start : start + SHOWN_CHARACTERS]
    lines.append(shown if shown.strip() else "(no text)")
    if len(text) > start + SHOWN_CHARACTERS:
        lines.append(f"\n(The page goes on: call again with start={start + SHOWN_CHARACTERS}.)")
    elif answer.is_cut:
        lines.append("\n(The rest of the page is too large to be read.)")
    if page["links"] and start == 0:
        lines += ["\nLinks:", *(f"- {words}: {to}" for words, to in page["links"])]
    title = page["title"] or answer.url
    return ToolResult(
        text="\n".join(line for at, line in enumerate(lines) if line or at == 2),
        summary=title[:80],
        parts=(_links([(title, answer.url, "")]),),
        untrusted=True,
    )


async def _text_of(answer: Any) -> dict[str, Any]:
    """Return title, text and links of a page; it is parsed in a process of its own."""
    argument = {
        "body": base64.b64encode(answer.body).decode(),
        "type": answer.type,
        "charset": answer.charset,
        "url": answer.url,
    }
    try:
        found = await asyncio.to_thread(call, "chat.tools.web_text:extract", argument, PARSING)
    except SandboxError as error:
        raise ToolError(NOT_TEXT, detail=f"Parsing it ended: {error.code}.") from error
    assert isinstance(found, dict)
    return found


@tool(
    name="web_search",
    title=gettext_lazy("Web search"),
    progress=gettext_lazy("Searching the web…"),
    seconds=30,
    available=_can_search,
)
async def web_search(
    context: ToolContext,
    query: Annotated[str, Meta(min_length=1, max_length=300, description="A few words")],
) -> ToolResult:
    """Search the web: return titles, addresses and excerpts of pages. Cite the addresses that you use."""
    from chat.guarded import client

    await _count("web_searches", context)
    request = search.request_of(query, context.language)
    policy = client.Policy(
        hosts=(request.host,),
        exempt=(request.host,),  # the operator's own choice
        networks=settings.TOOL_NETWORKS,
        seconds=_seconds(context),
        max_bytes=search.MAX_BYTES,
    )
    method = "POST" if request.body else "GET"
    try:
        answer = await client.fetch(
            request.url, policy, method=method, headers=request.headers, body=request.body
        )
    except client.FetchError as error:
        raise ToolError(client.SENTENCES[error.code]) from error
    if answer.status != 200 or answer.is_cut:
        raise ToolError(NO_ANSWER, detail=f"Its status is {answer.status}.")
    try:
        results = search.results_of(answer.body, MAX_RESULTS)
    except search.NotUnderstood:
        raise ToolError(NO_ANSWER, detail="It has no list of results.") from None
    summary = ngettext("%(count)d result", "%(count)d results", len(results)) % {
        "count": len(results)
    }
    if not results:
        return ToolResult(text="There are no results.", summary=summary, untrusted=True)
    text = "\n\n".join(
        f"{number}. {one.title}\n{one.url}\n{one.text}" for number, one in enumerate(results, 1)
    )
    links = _links([(one.title, one.url, one.text) for one in results])
    return ToolResult(text=text, summary=summary, parts=(links,), untrusted=True)


def _links(found: list[tuple[str, str, str]]) -> Display:
    """Return the part of the message that links to pages."""
    rows = [{"title": title, "url": url, "text": text} for title, url, text in found]
    return Display("links", {"links": rows})
