"""The statistics of a chat: `ChatStatistics` takes its blocks one by one and returns a JSON object.

Times are of the clock that the export shows. Memory is bounded: rare words, people and days beyond the limits are left
out of lists, and the totals stay right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from chat.documents.statistics import words

VERSION = 1
REPLY = timedelta(hours=4)  # the longest time to an answer that counts as a reply
PAUSE = timedelta(hours=6)  # of silence, after which a message starts a conversation
DOUBLE = timedelta(minutes=10)  # without an answer, after which another message is a double text
MINUTE = 60

MOST_PEOPLE = 5_000  # that are counted one by one
LISTED_PEOPLE = 200
MOST_DAYS = 20_000
MOST_MONTHS = 2_400
MOST_WORDS = 100_000  # before the rarer half is forgotten
MOST_EMOJIS_OF_A_PERSON = 500
LISTED_WORDS = 100
LISTED_EMOJIS = 30
LISTED_LINKS = 20
EMOJIS_OF_A_PERSON = 5
FIRST_TEXT = 300  # characters of the first message
COUNTED = frozenset({"message", "media", "deleted", "poll"})

TOTALS = (
    *("messages", "words", "characters", "questions", "media"),
    *("deleted", "edited", "polls", "links", "emojis"),
)
(MESSAGES, WORDS, CHARACTERS, QUESTIONS, MEDIA, DELETED, EDITED, POLLS, LINKS, EMOJIS) = range(
    len(TOTALS)
)
OF_KIND = {"media": MEDIA, "deleted": DELETED, "poll": POLLS}


@dataclass(slots=True)
class Person:
    """The figures of one sender."""

    counts: list[int] = field(default_factory=lambda: [0] * len(TOTALS))
    starts: int = 0
    double_texts: int = 0
    replies: Counter[int] = field(default_factory=Counter)  # seconds, see `_bucket`
    emojis: Counter[str] = field(default_factory=Counter)
    longest: int = 0  # words of a message
    hours: list[int] = field(default_factory=lambda: [0] * 24)


class ChatStatistics:
    """Adds up the blocks of a chat in the order of the document."""

    def __init__(self) -> None:
        self._people: dict[str, Person] = {}
        self._others = Person()  # beyond MOST_PEOPLE
        self._totals = [0] * len(TOTALS)
        self._system = 0
        self._days: Counter[date] | None = Counter()
        self._months: Counter[str] = Counter()
        self._hours = [[0] * 24 for _day in range(7)]
        self._words: Counter[str] = Counter()
        self._emojis: Counter[str] = Counter()
        self._links: Counter[str] = Counter()
        self._span: tuple[datetime, datetime] | None = None
        self._pause: tuple[timedelta, datetime, datetime] | None = None
        self._first: dict[str, Any] | None = None
        self._previous: tuple[str, datetime] | None = None

    def add(self, block: Mapping[str, Any]) -> None:
        """Count a block; one without a sender or time counts as far as it can."""
        kind = block["kind"]
        if kind not in COUNTED:
            self._system += kind == "system"
            return
        sender = block.get("sender") or ""
        extra = block.get("extra") or {}
        person = self._person(sender)
        counts = self._text_counts(person, kind, block["text"], extra)
        if not extra.get("continued"):
            counts[MESSAGES] = 1
            self._time(sender, person, block)
        person.longest = max(person.longest, counts[WORDS])
        for index, count in enumerate(counts):
            if count:
                person.counts[index] += count
                self._totals[index] += count

    def _person(self, sender: str) -> Person:
        person = self._people.get(sender)
        if person is None:
            if len(self._people) >= MOST_PEOPLE:
                return self._others
            person = self._people[sender] = Person()
        return person

    def _text_counts(
        self, person: Person, kind: str, text: str, extra: Mapping[str, Any]
    ) -> list[int]:
        counts = [0] * len(TOTALS)
        if kind != "message":
            counts[OF_KIND[kind]] = 1
            text = (extra.get("caption") or "") if kind == "media" else ""
        if extra.get("edited"):
            counts[EDITED] = 1
        if not text:
            return counts
        counts[CHARACTERS] = len(text)
        text, hosts = words.without_links(text)
        if hosts:
            counts[LINKS] = len(hosts)
            self._links.update(hosts)
        counts[QUESTIONS] = int("?" in text or "？" in text or "؟" in text)
        counts[WORDS], listed = words.words(text)
        self._words.update(listed)
        emojis = words.emojis(text)
        if emojis:
            counts[EMOJIS] = len(emojis)
            self._emojis.update(emojis)
            person.emojis.update(emojis)
            if len(person.emojis) > MOST_EMOJIS_OF_A_PERSON:
                _forget(person.emojis, MOST_EMOJIS_OF_A_PERSON // 2)
        for counter in (self._words, self._links):
            if len(counter) > MOST_WORDS:
                _forget(counter, MOST_WORDS // 2)
        return counts

    def _time(self, sender: str, person: Person, block: Mapping[str, Any]) -> None:
        if block.get("sent_at") is None:
            return
        at = datetime.fromisoformat(block["sent_at"])
        self._hours[at.weekday()][at.hour] += 1
        person.hours[at.hour] += 1
        self._months[f"{at.year:04}-{at.month:02}"] += 1
        if len(self._months) > MOST_MONTHS:
            _forget(self._months, MOST_MONTHS // 2)
        if self._days is not None:
            self._days[at.date()] += 1
            if len(self._days) > MOST_DAYS:
                self._days = None
        first, last = self._span or (at, at)
        self._span = (min(first, at), max(last, at))
        if self._first is None:
            self._first = {
                "sender": sender,
                "at": at.isoformat(),
                "kind": block["kind"],
                "text": block["text"][:FIRST_TEXT],
            }
        self._turn(sender, person, at)

    def _turn(self, sender: str, person: Person, at: datetime) -> None:
        if self._previous is None:
            person.starts += 1
        else:
            previous, before = self._previous
            # Messages can be out of order by seconds.
            gap = max(at - before, timedelta())
            if gap >= PAUSE:
                person.starts += 1
            elif previous != sender and gap <= REPLY:
                person.replies[_bucket(gap)] += 1
            elif previous == sender and gap >= DOUBLE:
                person.double_texts += 1
            if self._pause is None or gap > self._pause[0]:
                self._pause = (gap, before, at)
        self._previous = (sender, at)

    def result(self) -> dict[str, Any]:
        """Return the statistics as a JSON object."""
        people = sorted(self._people.items(), key=lambda item: (-item[1].counts[MESSAGES], item[0]))
        listed = [_person(name, person) for name, person in people[:LISTED_PEOPLE]]
        return {
            "version": VERSION,
            "totals": {**dict(zip(TOTALS, self._totals, strict=True)), "system": self._system},
            "first": self._span[0].isoformat() if self._span else None,
            "last": self._span[1].isoformat() if self._span else None,
            "days": (self._span[1].date() - self._span[0].date()).days + 1 if self._span else 0,
            "active_days": len(self._days) if self._days is not None else None,
            "per_day": (
                {day.isoformat(): self._days[day] for day in sorted(self._days)}
                if self._days is not None
                else None
            ),
            "per_month": {month: self._months[month] for month in sorted(self._months)},
            "hours": self._hours,
            "people": listed,
            "people_count": len(self._people),
            "words": _ranked(self._words, LISTED_WORDS, least=2),
            "emojis": _ranked(self._emojis, LISTED_EMOJIS),
            "links": _ranked(self._links, LISTED_LINKS),
            "streak": _streak(self._days or ()),
            "pause": (
                {
                    "seconds": int(self._pause[0].total_seconds()),
                    "from": self._pause[1].isoformat(),
                    "to": self._pause[2].isoformat(),
                }
                if self._pause
                else None
            ),
            "first_message": self._first,
        }


def of_chat(blocks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the statistics of the blocks of a chat."""
    statistics = ChatStatistics()
    for block in blocks:
        statistics.add(block)
    return statistics.result()


def _bucket(gap: timedelta) -> int:
    """Return a time in seconds, in steps of which there are few: seconds of the first minute, then minutes."""
    seconds = int(gap.total_seconds())
    return seconds if seconds < MINUTE else seconds // MINUTE * MINUTE


def _forget(counter: Counter[str], kept: int) -> None:
    for name, _count in counter.most_common()[kept:]:
        del counter[name]


def _person(name: str, person: Person) -> dict[str, Any]:
    counts = person.counts
    texts = counts[MESSAGES] - counts[MEDIA] - counts[DELETED] - counts[POLLS]
    return {
        "name": name,
        **dict(zip(TOTALS, counts, strict=True)),
        "mean_words": round(counts[WORDS] / texts, 1) if texts > 0 else 0,
        "longest": person.longest,
        "starts": person.starts,
        "double_texts": person.double_texts,
        "replies": person.replies.total(),
        "reply_median": _median(person.replies),
        "top_emojis": _ranked(person.emojis, EMOJIS_OF_A_PERSON),
        "hours": person.hours,
    }


def _median(seconds: Counter[int]) -> int | None:
    """Return the lower median of counted values, None of none."""
    middle = (seconds.total() + 1) // 2
    for value in sorted(seconds):
        middle -= seconds[value]
        if middle <= 0:
            return value
    return None


def _ranked(counter: Counter[str], most: int, *, least: int = 1) -> list[list[Any]]:
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return [[name, count] for name, count in ranked[:most] if count >= least]


def _streak(days: Iterable[date]) -> dict[str, Any] | None:
    """Return the longest sequence of days that each have a message; the earliest of equals."""
    best: tuple[int, date] | None = None
    start = previous = None
    for day in sorted(days):
        if previous is None or start is None or day != previous + timedelta(days=1):
            start = day
        previous = day
        length = (day - start).days + 1
        if best is None or length > best[0]:
            best = (length, start)
    if best is None:
        return None
    return {
        "days": best[0],
        "from": best[1].isoformat(),
        "to": (best[1] + timedelta(days=best[0] - 1)).isoformat(),
    }
