"""Renders a message, with one template for pages, events and exports."""

from __future__ import annotations

from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

from django.template.loader import render_to_string
from django.utils.formats import localize
from django.utils.html import escape
from django.utils.safestring import SafeString
from django.utils.translation import get_language

from chat.models import Message, Run
from chat.rendering import citations
from chat.rendering.tools import shown_html
from chatproject.lib.skeletons import HOLES, Skeleton

TEMPLATE = "chat/_message.html"
BUTTONS = "chat/_buttons.html"
RATING = "chat/_rating.html"

PLACEHOLDER = str(UUID(int=0))  # of a message's id

UNUSUAL_ENDS = frozenset({"length", "content_filter"})  # a reply that ended so has a notice
MOST_PARTS = 4  # of a usual reply

PROSE, REASONING = '<div class="prose">', '<div class="reasoning-text" dir="auto">'


def streamed_spans(html: str, message: Message) -> list[tuple[int, int]]:
    """Return the places of a reply's reasoning and text in its rendered message, in characters."""
    spans: list[tuple[int, int]] = []
    if message.ordered_parts:
        begin = html.index(REASONING) + len(REASONING)
        spans.append((begin, html.index("</div>", begin)))
    begin = html.index(PROSE, spans[-1][1] if spans else 0) + len(PROSE)
    return [*spans, (begin, begin + len(message.html))]


def rating_html(message: Message) -> SafeString:
    """Render the buttons that rate a reply, by `message.rating`."""
    return render_to_string(RATING, {"rating": message.rating, "id": message.pk})


def message_html(message: Message, **context: Any) -> SafeString:
    """Render a message as HTML, without a request: a worker's events carry the same HTML.

    The template reads a reply's `message.run` for the model's name; set it beforehand to save a
    query. A page calls this for each message, too. Messages of the usual shapes are made from skeletons.
    """
    if not context.get("is_first_sent") and context.get("editing") != message:
        found = _own(message) if message.role == Message.Role.USER else _usual_reply(message)
        if found is not None:
            shape, values = found
            return _skeleton(shape, get_language() or "").fill(dict(enumerate(values)))
    return rendered(message, **context)


class _Shape(NamedTuple):
    """All that decides which parts the HTML of a usual message has; the values are its holes.

    `place` is that among its siblings. `thoughts` has for each part whether its reasoning has a time; None for
    another part, which is not shown.
    """

    role: str
    place: tuple[int, int] | None
    has_text: bool
    has_html: bool = False
    rating: str = ""
    thoughts: tuple[bool | None, ...] = ()
    has_run: bool = False
    is_answered_by_other: bool = False
    has_bill: bool = False
    has_origin: bool = False


def cites(message: Message | SimpleNamespace) -> bool:
    """Return whether a reply has citations: its text is shown with links, other than it was streamed."""
    return any(getattr(part, "kind", "") == citations.KIND for part in message.ordered_parts)


def _own(message: Message) -> tuple[_Shape, list[str]] | None:
    """Return shape and values of a message of the user; None if it has files."""
    if message.attached:
        return None
    place, ids = _place(message)
    return _Shape(message.role, place, bool(message.text)), [*ids, escape(message.text)]


def _place(message: Message) -> tuple[tuple[int, int] | None, list[str]]:
    """Return the place of a message among its siblings, and the ids of itself, the previous and the next one."""
    siblings = message.siblings
    if siblings is None:
        return None, [str(message.pk), "", ""]
    ids = [str(message.pk), str(siblings.previous), str(siblings.next)]
    return (siblings.position, siblings.count), ids


def _usual_reply(message: Message) -> tuple[_Shape, list[str]] | None:
    """Return shape and values of a reply that ended as usual, None for any other one."""
    if (
        message.status != Message.Status.DONE
        or not message.text
        or message.failed_sibling
        or message.is_compared
    ):
        return None
    run: Run | None = getattr(message, "run", None)
    if run and (not run.has_ended or run.compared or run.finish_reason in UNUSUAL_ENDS):
        return None
    if run is None and message.was_cut:
        return None
    place, ids = _place(message)
    if len(message.ordered_parts) > MOST_PARTS or cites(message) or "data-tool" in message.html:
        return None
    thoughts = [part.data if part.kind == "reasoning" else None for part in message.ordered_parts]
    names = run.model_snapshot if run else {}
    other, bill = names.get("answered_by") or {}, run.bill if run else ""
    origin = "" if run else message.origin_model
    shape = _Shape(
        message.role,
        place,
        has_text=True,
        has_html=bool(message.html),
        rating=message.rating,
        thoughts=tuple(one if one is None else bool(one.get("seconds")) for one in thoughts),
        has_run=run is not None,
        is_answered_by_other=bool(other),
        has_bill=bool(bill),
        has_origin=bool(origin),
    )
    values = [
        *ids,
        message.html,
        str(run.pk) if run else "",
        escape(names.get("name", "")),
        escape(other.get("name", "")),
        escape(bill),
        escape(origin),
    ]
    for one in thoughts:
        thought = one or {}
        values += escape(localize(thought.get("seconds", ""))), escape(thought.get("text", ""))
    return shape, values


@lru_cache(maxsize=512)
def _skeleton(shape: _Shape, language: str) -> Skeleton:
    """Render a message of a shape in a language, with holes: a hundredth of the time for each message of a page."""
    id, previous, next, *others = HOLES
    siblings = None
    if shape.place:
        position, count = shape.place
        siblings = {
            "position": position,
            "count": count,
            "previous": previous if position > 1 else None,
            "next": next if position < count else None,
        }
    message = SimpleNamespace(
        id=id,
        pk=id,
        role=shape.role,
        status=Message.Status.DONE,
        siblings=siblings,
        rating=shape.rating,
    )
    if shape.role == Message.Role.USER:
        message.text = others[0] if shape.has_text else ""
        return Skeleton(rendered(message))
    html, run_id, name, other, bill, origin, *parts = others
    message.text = "…"
    message.html = html if shape.has_html else ""
    message.origin_model = origin if shape.has_origin else ""
    message.ordered_parts = [
        {
            "kind": "other" if has_time is None else "reasoning",
            "data": {"seconds": parts[2 * n] if has_time else None, "text": parts[2 * n + 1]},
        }
        for n, has_time in enumerate(shape.thoughts)
    ]
    message.run = None
    if shape.has_run:
        snapshot = {
            "name": name,
            "answered_by": {"name": other} if shape.is_answered_by_other else None,
        }
        message.run = SimpleNamespace(
            id=run_id, status="done", model_snapshot=snapshot, bill=bill if shape.has_bill else ""
        )
    return Skeleton(rendered(message))


def rendered(message: Message | SimpleNamespace, **context: Any) -> SafeString:
    """Render a message by its template: for `message_html`, which returns the same HTML in less time."""
    if message.role == Message.Role.USER:
        kind = "own" if message.text else "files"
    else:
        kind = "done" if message.status == Message.Status.DONE else "ended"
    html = getattr(message, "html", "")
    if isinstance(message, Message) and message.role == Message.Role.ASSISTANT:
        # A pending reply has no HTML, and its parts are not read. Before the lines of calls come in, whose tables may
        # have such marks, too.
        if html and cites(message):
            found = citations.citations_of(message.ordered_parts, message.conversation_id)
            html, numbers = citations.linked(html, found)
            cited = [one for one in found if one["number"] in numbers]
            context |= {"sources": cited, "others": [] if cited else found}
        html = shown_html(message, html=html)
    buttons = _buttons(kind, message.rating, get_language() or "")
    buttons = SafeString(buttons.replace(PLACEHOLDER, str(message.pk)))
    return render_to_string(
        TEMPLATE, {**context, "message": message, "buttons": buttons, "html": html}
    )


@cache
def _buttons(kind: str, rating: str, language: str) -> str:
    """Render the buttons of all messages of a kind in a language, once: they take half of a message's time."""
    return render_to_string(BUTTONS, {"kind": kind, "rating": rating, "id": PLACEHOLDER})
