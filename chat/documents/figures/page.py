"""The figures of a chat for a page: chosen sections, with names as they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, timedelta
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from chat.documents.figures import charts, names
from chatproject.lib import languages

SECTIONS = ("totals", "time", "hours", "people", "words", "emojis", "links", "records")
BY_DAY = 62  # days of a chat whose chart has a bar for each
BY_MONTH = 72
RANKED = 20
PEOPLE = 50


def of_chat(
    statistics: Mapping[str, Any], *, mode: str = "names", sections: Collection[str] = SECTIONS
) -> dict[str, Any]:
    """Return the chosen sections of a chat's statistics, ready for `chat/_figures.html`."""
    shown = names.shown((one["name"] for one in statistics["people"]), mode)
    made: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "totals": _totals,
        "time": _time,
        "hours": lambda found: charts.heat_map(found["hours"]),
        "people": lambda found: _people(found, shown),
        "words": lambda found: _ranking(found["words"][:RANKED]),
        "emojis": lambda found: _ranking(found["emojis"][:RANKED]),
        "links": lambda found: _ranking(found["links"][:RANKED]),
        "records": lambda found: _records(found, shown),
    }
    return {name: made[name](statistics) for name in SECTIONS if name in sections}


def _totals(statistics: Mapping[str, Any]) -> list[tuple[str, str]]:
    totals = statistics["totals"]
    rows = [
        (_("Messages"), totals["messages"]),
        (_("People"), statistics["people_count"]),
        (_("Words"), totals["words"]),
        (_("Media"), totals["media"]),
        (_("Questions"), totals["questions"]),
        (_("Links"), totals["links"]),
        (_("Emojis"), totals["emojis"]),
        (_("Deleted"), totals["deleted"]),
        (_("Edited"), totals["edited"]),
        (_("Polls"), totals["polls"]),
    ]
    return [(label, languages.number(count)) for label, count in rows if count]


def _time(statistics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the chart by day, month or year, whichever has few enough bars."""
    if not statistics["first"]:
        return None
    first = datetime.fromisoformat(statistics["first"]).date()
    last = datetime.fromisoformat(statistics["last"]).date()
    per_day, per_month = statistics["per_day"], statistics["per_month"]
    months = (last.year - first.year) * 12 + last.month - first.month + 1
    if per_day is not None and statistics["days"] <= BY_DAY:
        days = [first + timedelta(days=index) for index in range(statistics["days"])]
        unit = _("Day")
        values = [
            (languages.day(day, "j F Y"), languages.day(day, "j M"), per_day.get(str(day), 0))
            for day in days
        ]
    elif months <= BY_MONTH:
        unit = _("Month")
        values = []
        for index in range(months):
            year, month = divmod(first.year * 12 + first.month - 1 + index, 12)
            day = date(year, month + 1, 1)
            count = per_month.get(f"{year:04}-{month + 1:02}", 0)
            values.append((languages.day(day, "F Y"), languages.day(day, "M Y"), count))
    else:
        unit = _("Year")
        by_year: dict[str, int] = {}
        for month_name, count in per_month.items():
            by_year[month_name[:4]] = by_year.get(month_name[:4], 0) + count
        values = [(year, year, by_year[year]) for year in sorted(by_year)]
    return {"unit": unit, "chart": charts.bars(values)}


def _people(statistics: Mapping[str, Any], shown: Mapping[str, str]) -> dict[str, Any]:
    total = statistics["totals"]["messages"] or 1
    people = statistics["people"][:PEOPLE]
    rows = [
        {
            "name": shown[one["name"]],
            "messages": languages.number(one["messages"]),
            "percent": round(one["messages"] / total * 100, 1),
            "share": f"{round(one['messages'] / total * 100)} %",
            "words": languages.number(one["words"]),
            "mean_words": languages.written(f"{one['mean_words']:.1f}"),
            "questions": languages.number(one["questions"]),
            "media": languages.number(one["media"]),
            "reply": duration(one["reply_median"]) if one["reply_median"] is not None else "-",
            "starts": languages.number(one["starts"]),
            "double_texts": languages.number(one["double_texts"]),
            "emojis": " ".join(emoji for emoji, _count in one["top_emojis"]),
        }
        for one in people
    ]
    return {"rows": rows, "more": max(0, statistics["people_count"] - len(rows))}


def _ranking(ranked: list[list[Any]]) -> list[dict[str, Any]]:
    top = ranked[0][1] if ranked else 1
    return [
        {"name": name, "count": languages.number(count), "percent": round(count / top * 100, 1)}
        for name, count in ranked
    ]


def _records(statistics: Mapping[str, Any], shown: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (label, value, explanation)."""
    rows = []
    if statistics["first"]:
        first = statistics["first_message"]
        day = languages.day(date.fromisoformat(first["at"][:10]), "j F Y")
        rows.append((_("First message"), day, shown.get(first["sender"], "")))
    if streak := statistics["streak"]:
        days = streak["days"]
        text = ngettext("%(days)s day", "%(days)s days", days) % {"days": languages.number(days)}
        rows.append((_("Longest streak"), text, _span(streak["from"], streak["to"])))
    if pause := statistics["pause"]:
        span = _span(pause["from"][:10], pause["to"][:10])
        rows.append((_("Longest pause"), duration(pause["seconds"]), span))
    if statistics["per_day"]:
        busiest = max(statistics["per_day"], key=lambda day: (statistics["per_day"][day], day))
        count = statistics["per_day"][busiest]
        text = ngettext("%(count)s message", "%(count)s messages", count)
        day = languages.day(date.fromisoformat(busiest), "j F Y")
        rows.append((_("Busiest day"), day, text % {"count": languages.number(count)}))
    return rows


def _span(first: str, last: str) -> str:
    days = [languages.day(date.fromisoformat(day), "j M Y") for day in (first, last)]
    return " – ".join(dict.fromkeys(days))  # noqa: RUF001 # a dash of a span


def duration(seconds: int) -> str:
    """Return a length of time in one unit, as people say it."""
    if seconds < 60:
        text = ngettext("%(count)s second", "%(count)s seconds", seconds)
        return text % {"count": languages.number(seconds)}
    if seconds < 3600:
        count = round(seconds / 60)
        return ngettext("%(count)s minute", "%(count)s minutes", count) % {"count": count}
    if seconds < 48 * 3600:
        count = round(seconds / 3600)
        return ngettext("%(count)s hour", "%(count)s hours", count) % {"count": count}
    count = round(seconds / 86400)
    text = ngettext("%(days)s day", "%(days)s days", count)
    return text % {"days": languages.number(count)}
