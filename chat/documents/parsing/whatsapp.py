"""Parser of WhatsApp's exports, from iOS and Android in any language: two passes over the lines of a text.

The first pass finds the layout of the headers ("[12.03.24, 10:15:33] ", "3/12/24, 10:15 PM - ") and the order of day,
month and year, which only the whole file tells. The second yields the messages. Lines with another layout are text.
Memory does not grow with the file.

WhatsApp puts an invisible left-to-right mark before most of what it writes by itself, in every language.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any

from chat.documents.parsing import whatsapp_layouts as layouts
from chat.documents.parsing import whatsapp_phrases as phrases
from chat.documents.parsing.errors import ParseError
from chat.documents.parsing.lines import Lines

Block = dict[str, Any]

LRM = "\u200e"
_ANY_MARK = re.compile(layouts.MARKS)
_NOT_IN_WORD = re.compile(r"[\s.,،'’/\u00a0\u202f\u200e\u200f]+")
COLON = re.compile(r":(?: |$)")
SENDER_LENGTH = 150  # a longer text before a colon is no name

ORDERS = ("dmy", "mdy", "ymd")
WRONG_DATES = 0.02  # of an order that is accepted: lines that only look like headers
GOES_BACK = timedelta(hours=3)  # more than the end of summer time does
QUOTED = 20  # headers in sequence that may be a pasted part of a chat
TEXT_LENGTH = 65_536  # of one block; WhatsApp's own limit of a message
LAYOUTS = 64
NAMES = 2_000  # whose beginnings are compared
SHARE_OF_LAYOUT = 0.1
REPEATED = 3  # messages of a name with a colon


# --- The first pass ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Order:
    """How well an order of day, month and year fits the dates of a layout."""

    wrong: int = 0
    backwards: int = 0
    first: date | None = None
    last: date | None = None
    previous: date | None = None

    def add(self, day: date | None) -> None:
        if day is None:
            self.wrong += 1
            return
        if self.previous is not None and day < self.previous:
            self.backwards += 1
        self.previous = day
        self.first = day if self.first is None or day < self.first else self.first
        self.last = day if self.last is None or day > self.last else self.last

    @property
    def days(self) -> int:
        return (self.last - self.first).days if self.first and self.last else 0


@dataclass(slots=True)
class _Layout:
    """The headers of one layout in a file."""

    count: int = 0
    orders: dict[str, _Order] = field(default_factory=lambda: {name: _Order() for name in ORDERS})
    padded: int = 0
    unpadded: int = 0
    year_first: int = 0
    korean: int = 0
    capital_periods: int = 0
    calendars: Counter[str] = field(default_factory=Counter)
    # The text before the first colon: how often, and the text before the second if it never differs.
    names: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, match: re.Match[str], line: str, today: date) -> None:
        self.count += 1
        a, b, c = match["a"], match["b"], match["c"]
        for part in (a, b):
            if len(part) == 1:
                self.unpadded += 1
            elif part[0] == "0":
                self.padded += 1
        if len(a) == 4:
            self.year_first += 1
        if name := layouts.calendar(a, c):
            self.calendars[name] += 1
        if "오" in match["between"]:
            self.korean += 1
        period = match["period"]
        if "AM" in period or "PM" in period:
            self.capital_periods += 1
        for name, order in self.orders.items():
            order.add(_day(name, a, b, c, today))
        first, found, rest = line[match.end() :].partition(": ")
        if not found or len(first) > SENDER_LENGTH:
            return
        second, found, _text = rest.partition(": ")
        second = second if found and len(second) <= SENDER_LENGTH else ""
        known = self.names.get(first)
        if known is not None:
            count, common = known
            self.names[first] = (count + 1, common if common == second else "")
        elif len(self.names) < NAMES:
            self.names[first] = (1, second)


@lru_cache(4096)
def _day(order: str, a: str, b: str, c: str, today: date) -> date | None:
    """Return the date in an order, None if it is none or lies in the future."""
    day, month, year = (a, b, c) if order == "dmy" else (b, a, c) if order == "mdy" else (c, b, a)
    if len(year) not in (2, 4) or len(day) > 2:
        return None
    number = int(year)
    if len(year) == 2:
        # Of this century, or of the Buddhist era: 67 is 2567.
        number += 2000 if number + 2000 <= today.year + 1 else 2500
    found = layouts.day(number, int(month), int(day))
    return found if found is not None and found <= today else None


@dataclass(frozen=True, slots=True)
class _Scan:
    """Findings of the first pass over a file."""

    keys: frozenset[tuple[Any, ...]]
    order: str
    is_sure: bool  # of the order
    calendar: str  # empty for the usual ones
    names: frozenset[str]  # with a colon in them
    omitted: frozenset[str]  # repeated lines in angle brackets
    today: date


def _key(match: re.Match[str]) -> tuple[Any, ...]:
    word = _word(match["between"])
    return (
        match["open"],
        match["close"].strip(),
        match["sep"],
        match["second"] is not None,
        "," in match["between"] or "،" in match["between"],
        match.re is layouts.TIME_FIRST,
        "" if word in phrases.AM or word in phrases.PM else word,
    )


@lru_cache(256)
def _word(text: str) -> str:
    return _NOT_IN_WORD.sub("", text).lower()


def _scan(lines: Lines, today: date, language: str) -> _Scan:
    found: dict[tuple[Any, ...], _Layout] = {}
    omitted: Counter[str] = Counter()
    for line, is_start in lines:
        match = layouts.header(line) if is_start else None
        if match is None:
            continue
        key = _key(match)
        layout = found.get(key)
        if layout is None:
            if len(found) >= LAYOUTS:
                continue
            layout = found[key] = _Layout()
        layout.add(match, line, today)
        if line.endswith(">") and (at := line.rfind(": <")) > 0 and len(line) - at < 60:
            text = line[at + 3 : -1].lower()
            if text in omitted or len(omitted) < NAMES:
                omitted[text] += 1
    valid = {
        key: layout
        for key, layout in found.items()
        if min(order.wrong for order in layout.orders.values()) <= layout.count / 2
    }
    if not valid:
        raise ParseError("not_a_chat")
    best = max(valid, key=lambda key: valid[key].count)
    # A word between date and time that differs, as in the morning and at night.
    keys = frozenset(
        key
        for key, layout in valid.items()
        if key[:-1] == best[:-1] and layout.count >= valid[best].count * SHARE_OF_LAYOUT
    )
    order, is_sure = _choose_order(valid[best], best[2], language)
    return _Scan(
        keys=keys,
        order=order,
        is_sure=is_sure,
        calendar=next((name for name, _count in valid[best].calendars.most_common(1)), ""),
        names=frozenset(
            f"{first}: {second}"
            for key in keys
            for first, (count, second) in valid[key].names.items()
            if second and count >= REPEATED
        ),
        omitted=frozenset(text for text, count in omitted.items() if count >= 5 and " " in text),
        today=today,
    )


def _choose_order(layout: _Layout, sep: str, language: str) -> tuple[str, bool]:
    """Return the order of day, month and year, and whether the dates leave no other."""
    if layout.year_first > layout.count / 2:
        return "ymd", True
    fits = {
        name: order
        for name, order in layout.orders.items()
        if order.wrong <= layout.count * WRONG_DATES
    }
    if not fits:
        fewest = min(order.wrong for order in layout.orders.values())
        fits = {name: order for name, order in layout.orders.items() if order.wrong == fewest}
    if len(fits) == 1:
        return next(iter(fits)), True
    # The messages are in order of time, so the wrong reading jumps back.
    fewest = min(order.backwards for order in fits.values())
    ordered = {name: order for name, order in fits.items() if order.backwards <= fewest}
    is_sure = not ordered.keys() >= {"dmy", "mdy"}
    # Days that follow each other are likelier than the same day of one month after the other.
    shortest = min(order.days for order in ordered.values())
    short = [name for name, order in ordered.items() if order.days == shortest]
    if len(short) == 1:
        return short[0], is_sure
    is_american = sep == "/" and (
        (layout.capital_periods > 0 and layout.unpadded >= layout.padded)
        or language.lower() == "en-us"
    )
    hint = "ymd" if layout.korean else "mdy" if is_american else "dmy"
    return (hint if hint in short else short[0]), is_sure


# --- The second pass --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Header:
    sent_at: datetime
    sender: str  # empty in a system line
    text: str


@dataclass(slots=True)
class _Draft:
    """A message whose lines are being read."""

    header: _Header | None
    lines: list[str]
    length: int = 0
    is_continued: bool = False  # the rest of a text that was too long for one block


def parse(path: str, options: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the messages and system lines of a WhatsApp export as blocks, in the order of the file.

    Options: `encoding`, `member` (of a zip), `language` (a hint where day and month cannot be told apart) and
    `today`. A block of kind `notes` at the end says what was guessed. Raises ParseError `not_a_chat`, `empty_chat`.
    """
    lines = Lines(path, options)
    today = date.fromisoformat(options["today"]) if options.get("today") else date.today()  # noqa: DTZ011 # a day of tolerance covers all zones
    scan = _scan(lines, today + timedelta(days=1), str(options.get("language") or ""))
    reading = _Reading(scan)
    for line, is_start in lines:
        yield from reading.add(line, is_start)
    yield from reading.end()
    if not reading.messages:
        raise ParseError("empty_chat")
    notes: dict[str, Any] = dict(reading.notes)
    if not scan.is_sure:
        notes["date_order_guessed"] = scan.order
    if scan.calendar:
        notes["calendar"] = scan.calendar
    yield {"kind": "notes", "notes": notes | lines.notes}


class _Reading:
    """Turns lines into blocks; at most one message and the headers that may be quotes are in memory."""

    def __init__(self, scan: _Scan) -> None:
        self.messages = 0
        self.notes: Counter[str] = Counter()
        self._scan = scan
        self._draft: _Draft | None = None
        self._latest: datetime | None = None
        self._held: list[_Draft] = []
        self._held_lines: list[str] = []  # as the file has them
        self._held_length = 0

    def add(self, line: str, is_start: bool) -> Iterator[Block]:
        header = self._header(line) if is_start else None
        if header is None:
            yield from self._continue(line, is_start)
            return
        if self._latest is not None and header.sent_at < self._latest - GOES_BACK:
            # Either a part of a chat that was pasted into a message, or the clock was set back.
            self._held.append(_Draft(header, [header.text]))
            self._held_lines.append(line)
            self._held_length += len(line)
            if len(self._held) > QUOTED or self._held_length > TEXT_LENGTH:
                yield from self._accept_held()
            return
        if self._held:
            self.notes["quoted_headers"] += len(self._held)
            quoted, self._held, self._held_lines, self._held_length = self._held_lines, [], [], 0
            for one in quoted:
                yield from self._append(one, True)
        yield from self._finish()
        self._begin(header)

    def end(self) -> Iterator[Block]:
        yield from self._accept_held()
        yield from self._finish()

    def _accept_held(self) -> Iterator[Block]:
        held, self._held, self._held_lines, self._held_length = self._held, [], [], 0
        for draft in held:
            yield from self._finish()
            self._draft = draft
            draft.length = sum(map(len, draft.lines))
            self._latest = draft.header.sent_at if draft.header else None

    def _begin(self, header: _Header) -> None:
        self._draft = _Draft(header, [header.text], len(header.text))
        if self._latest is None or header.sent_at > self._latest:
            self._latest = header.sent_at

    def _continue(self, line: str, is_start: bool) -> Iterator[Block]:
        if self._held:
            self._held[-1].lines.append(line)
            self._held_lines.append(line)
            self._held_length += len(line)
            if self._held_length > TEXT_LENGTH:
                yield from self._accept_held()
            return
        yield from self._append(line, is_start)

    def _append(self, line: str, is_start: bool) -> Iterator[Block]:
        if self._draft is None:
            if not line.strip():
                return
            self._draft = _Draft(None, [])
        draft = self._draft
        if draft.length + len(line) > TEXT_LENGTH and draft.lines:
            yield from self._finish()
            self.notes["long_texts_split"] += 1
            self._draft = draft = _Draft(draft.header, [], is_continued=True)
        if is_start or not draft.lines:
            draft.lines.append(line)
        else:
            draft.lines[-1] += line
        draft.length += len(line)

    def _finish(self) -> Iterator[Block]:
        draft, self._draft = self._draft, None
        if draft is None:
            return
        text = "\n".join(draft.lines).rstrip("\n")
        header = draft.header
        if header is None:
            self.notes["lines_before_first_message"] += 1
            yield {"kind": "system", "sender": "", "sent_at": None, "text": text}
            return
        block: Block = {
            "kind": "system",
            "sender": header.sender,
            "sent_at": f"{header.sent_at.isoformat()}+00:00",
            "text": text,
        }
        if draft.is_continued:
            block |= {"kind": "message", "extra": {"continued": True}}
        elif header.sender:
            _classify(block, self._scan.omitted)
        if block["kind"] == "system":
            block["sender"] = ""
            block["text"] = _ANY_MARK.sub("", block["text"])
        else:
            self.messages += 1
        yield block

    def _header(self, line: str) -> _Header | None:
        match = layouts.header(line)
        if match is None or _key(match) not in self._scan.keys:
            return None
        day = _day(self._scan.order, match["a"], match["b"], match["c"], self._scan.today)
        hour, minute = int(match["hour"]), int(match["minute"])
        second = int(match["second"] or 0)
        if day is None or hour > 23 or minute > 59 or second > 59:
            return None
        hour = self._hour(hour, match)
        sender, text = self._sender(line[match.end() :], bool(match["open"]))
        sent_at = datetime(day.year, day.month, day.day, hour, minute, second)  # noqa: DTZ001 # of no zone
        return _Header(sent_at, sender, text)

    def _hour(self, hour: int, match: re.Match[str]) -> int:
        word = _word(match["period"]) or _word(match["between"])
        if word in phrases.AM:
            return 0 if hour == 12 else hour
        if word in phrases.PM:
            # "At noon", in Chinese, begins before twelve.
            return hour if hour >= 12 or (word == "中午" and hour == 11) else hour + 12
        if word and _word(match["period"]) and word not in phrases.CLOCK:
            self.notes["unknown_times_of_day"] += 1
        return hour

    def _sender(self, rest: str, is_bracketed: bool) -> tuple[str, str]:
        found = COLON.search(rest)
        if found is None or found.start() > SENDER_LENGTH:
            return "", rest
        name, text = rest[: found.start()], rest[found.end() :]
        second = COLON.search(text)
        if second is not None and f"{name}: {text[: second.start()]}" in self._scan.names:
            name, text = f"{name}: {text[: second.start()]}", text[second.end() :]
        elif not is_bracketed and (
            phrases.SUBJECT_CHANGED.search(name) or (name and name[0] in "\"“„«'")
        ):
            return "", rest
        return clean_name(name), text


def clean_name(name: str) -> str:
    """Return a sender's name without invisible marks and the tilde of people who are no contacts."""
    name = _ANY_MARK.sub("", name).replace("\u00a0", " ").replace("\u202f", " ").strip()
    return (name.lstrip("~").strip() or name)[:SENDER_LENGTH] or "?"


ATTACHED = re.compile(r"\u200e?<[^<>:\n]{2,30}[:：] ?(?P<file>[^<>\n/\\]{1,255}\.\w{1,8})>$")
# Without the spaces before it: to search for any number of them takes quadratic time.
EDITED = re.compile(r"\u200e<[^<>:\n]{5,80}>$")
IN_BRACKETS = re.compile(r"\u200e?<(?P<text>[^<>\n]{3,60})>\.?$")


def _classify(block: Block, omitted: frozenset[str]) -> None:
    """Tell the kinds of what a sender's message holds apart; take away the mark of an edited one."""
    text: str = block["text"]
    extra: dict[str, Any] = {}
    block["kind"] = "message"
    first, _newline, rest = text.partition("\n")
    attached = ATTACHED.search(text) or phrases.ATTACHED.match(first)
    if attached is None and first.startswith(LRM):
        attached = re.match(r"\u200e(?P<file>[^\n/\\]{1,250}\.\w{2,5}) \([^()\n]{3,40}\)$", first)
    if attached:
        caption = text[: attached.start()] if attached.re is ATTACHED else rest
        block["kind"] = "media"
        extra = {"file": attached["file"], "caption": caption.strip(f"{LRM} \n")}
    elif (found := EDITED.search(text) or phrases.EDITED.search(text)) and (
        before := text[: found.start()].rstrip()
    ):
        block["text"] = text = before
        extra["edited"] = True
    plain = _ANY_MARK.sub("", text).strip()
    lowered = plain.lower().rstrip(".。")
    brackets = IN_BRACKETS.match(text)
    if block["kind"] == "media":
        pass
    elif lowered in phrases.DELETED:
        block["kind"] = "deleted"
    elif brackets and (
        brackets["text"].lower() in phrases.MEDIA_OMITTED
        or brackets["text"].lower() in omitted
        or text.startswith(LRM)
    ):
        block["kind"] = "media"
        extra["caption"] = ""
    elif phrases.POLL.match(text):
        block["kind"] = "poll"
    elif LRM in text:
        _classify_marked(block, text, extra)
    elif lowered in phrases.MEDIA_OMITTED:
        block["kind"] = "media"
        extra["caption"] = ""
    if block["kind"] != "message":
        block["text"] = _ANY_MARK.sub("", text).strip()
    if extra:
        block["extra"] = extra


def _classify_marked(block: Block, text: str, extra: dict[str, Any]) -> None:
    """Classify a text that has WhatsApp's mark: a file that was left out, a place, or a system line."""
    before, _mark, after = text.rpartition(LRM)
    if phrases.OMITTED_ENDS.search(after.strip()) and len(after) < 60:
        block["kind"] = "media"
        extra["caption"] = before.replace(LRM, "").strip(" \n•")
    elif text.startswith(LRM) and "https://maps.google.com/" in text:
        block["kind"] = "media"
        extra["caption"] = ""
    elif text.startswith(LRM) and "\n" not in text:
        block["kind"] = "system"
