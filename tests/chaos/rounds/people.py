"""The users of the rounds and their tabs, which record events. Imported when Django is set up."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from django.utils import timezone

from accounts.models import User
from chat.attachments import uploads
from chat.models import Assistant, Conversation, LanguageModel
from tests.chaos.rounds import rows
from tests.chaos.rounds.asks import Ask
from tests.chaos.rounds.evidence import Seen
from tests.chaos.rounds.stage import WEBS, Stage, patiently
from tests.support.people import session_key
from tests.support.reconnecting_client import LiveTab

CONTINUING = "continuing"  # the slug of the assistant whose model can continue a partial text


@dataclass
class Person:
    """A user with a session and mostly with a conversation to continue."""

    user: int
    session: str
    continues: bool
    models: list[int]
    conversation: str | None = None

    def attach(self, ask: Ask) -> str:
        """Upload the file of a message and return its id."""
        content = io.BytesIO(ask.file.encode())
        user = User.objects.get(pk=self.user)
        size = len(content.getvalue())
        return str(uploads.add(user=user, name=ask.file_name, size=size, file=content).pk)

    def begin_anew(self) -> None:
        """Leave the conversation. The next one has the model of this person."""
        self.conversation = None
        if self.continues:
            begun = Conversation.objects.create(
                owner_id=self.user,
                assistant=Assistant.objects.get(slug=CONTINUING),
                updated_at=timezone.now(),
            )
            self.conversation = str(begun.pk)


def invite(count: int) -> list[Person]:
    """So many users; every fifth talks to a model that can continue."""
    default = LanguageModel.objects.get()
    sizes = {name: getattr(default, name) for name in ("context_tokens", "max_output_tokens")}
    model = LanguageModel.objects.create(
        name=CONTINUING, provider_model=default.provider_model, continuation="prefill", **sizes
    )
    Assistant.objects.create(slug=CONTINUING, name="Goes on", model=model, position=1)
    people = []
    for number in range(count):
        user = User.objects.create_user(f"person-{number}@example.org")
        person = Person(
            user.pk, session_key(user), continues=number % 5 == 0, models=[default.pk, model.pk]
        )
        person.begin_anew()
        people.append(person)
    return people


class ChaosTab(LiveTab):
    """A tab that records contradictions instead of failing."""

    def __init__(self, stage: Stage, person: Person, ask: Ask, chance: random.Random) -> None:
        webs = chance.sample(WEBS, len(WEBS))
        super().__init__(stage.stack, person.session, webs=webs, chance=chance)
        self.asked = ask
        self.end: dict[str, Any] = {}
        self.ended_at = 0.0
        self.received_at = 0.0  # the same time, since the epoch
        self._person = person
        self.came_later = False
        self.files: list[str] = []
        self.waited = False  # as a next message
        self.paused = ""
        self.is_asked = True  # whether the message was sent, or the reply asked for
        self._contradictions: list[tuple[str, str]] = []

    def wrong(self, kind: str, detail: str) -> None:
        self._contradictions.append((kind, detail))

    async def ask(self) -> None:
        """Send the message and follow its reply to the end."""
        await asyncio.sleep(self.asked.sent_after)
        conversation = self._person.conversation
        fields: dict[str, Any] = {"conversation": conversation} if conversation else {}
        if self.asked.is_temporary:
            fields = {"temporary": True}
        if self.files:
            fields["attachments"] = self.files
        if self.asked.further == "compare":
            fields |= {"type": "chat.compare", "models": self._person.models}
        end = await self.chat(self.asked.text, client_id=self.asked.client_id, **fields)
        self._ended(end)
        self._person.conversation = end["conversation"]

    async def compared(self, first: ChaosTab) -> None:
        """Follow the second run of a comparison that another tab has begun."""
        await first.until("run.queued", client_id=first.asked.client_id)
        self.came_later = True
        self._ended(await self.watch(await patiently(rows.run_id, self.asked.client_id)))

    async def ask_again(self, first: asyncio.Task[None], tab: ChaosTab) -> None:
        """Regenerate or continue the reply of another tab; not after one that has no whole reply."""
        self.is_asked = False
        await first
        if tab.end.get("type") != "run.done":
            return
        if self.asked.way == "continue" and tab.end["finish_reason"] != "length":
            tab.wrong("finish", f"{tab.end['finish_reason']} instead of length")
            return
        self.is_asked = True
        self._ended(
            await self.chat(
                client_id=self.asked.client_id,
                type=f"run.{self.asked.way}",
                message=tab.end["reply"],
            )
        )

    async def follow_up(self, first: ChaosTab) -> None:
        """Write the next message during the reply of another tab, and follow its reply.

        A message that was paused is sent by its user; removed, if the reply before has no text.
        """
        queued = await first.until("run.queued", client_id=self.asked.first)
        await asyncio.sleep(self.asked.further_after)
        fields: dict[str, Any] = {"conversation": queued["conversation"]}
        if self.files:
            fields["attachments"] = self.files
        answer = await self.queue_next(self.asked.text, client_id=self.asked.client_id, **fields)
        if answer["type"] != "next.updated":
            self._ended(answer)
            return
        self.waited = bool(answer.get("text"))
        if self.asked.leaves:
            first.leave()
        try:
            run = await self._sent_next(queued["conversation"])
        finally:
            first.come_back()
            first.came_later = self.asked.leaves
        if run:
            self.came_later = True
            self._ended(await self.watch(run))

    async def _sent_next(self, conversation: str) -> str:
        """Return the run of the next message when it was sent, or has ended if no tab is open; empty if none is."""
        while True:
            run, state = await patiently(rows.next_of, self.asked.client_id, conversation)
            if run is not None and (run.has_ended or not self.asked.leaves):
                return str(run.pk)
            if run is None and state is None and self.paused:
                self.is_asked = False
                return ""
            if run is None and state is not None and state.state == state.State.PAUSED:
                self.paused = state.code
                with suppress(redis.RedisError):
                    await patiently(rows.decide, self._person.user, conversation)
            await asyncio.sleep(0.3)

    async def look(self, first: ChaosTab, after: float) -> None:
        """Follow the run of another tab, some time after it was queued."""
        queued = await first.until("run.queued", client_id=self.asked.client_id)
        await asyncio.sleep(after)
        self.came_later = True
        self._ended(await self.watch(queued["run"]))

    async def stop_later(self, after: float) -> None:
        """Stop the reply, so many seconds after the message was queued."""
        await self.until("run.queued", client_id=self.asked.client_id)
        await asyncio.sleep(after)
        await self.stop()

    def _ended(self, end: dict[str, Any]) -> None:
        self.end = end
        self.ended_at, self.received_at = time.monotonic(), time.time()

    def kinds(self) -> Iterator[str]:
        """Words for what is special about the run, for the table at the end."""
        if self.asked.way:
            yield self.asked.way
        if self.waited:
            yield "queued while no tab was open" if self.asked.leaves else "queued during a reply"
        if self.paused:
            yield "paused"
        if self.asked.file:
            yield "with a file"
        if self.asked.is_temporary:
            yield "temporary"

    def seen(self) -> Seen:
        return Seen(
            client_id=self.asked.client_id,
            run=self.run,
            text=self.text,
            end=self.end.get("type", "").removeprefix("run."),
            received_at=0.0 if self.came_later else self.received_at,
            delivered=self.delivered,
            restarts=self.restarts,
            refusals=self.refusals,
            wrong=self._contradictions,
            waited=self.waited,
            paused=self.paused,
        )


def upload(people: list[Person], asked: list[Ask]) -> dict[str, list[str]]:
    """Upload the files of messages and return their ids by client_id."""
    found = {}
    for person, ask in zip(people, asked, strict=True):
        for one in (ask, ask.further_ask) if ask.further else (ask,):
            if one.file:
                found[one.client_id] = [person.attach(one)]
    return found


def open_tabs(
    stage: Stage,
    people: list[Person],
    asked: list[Ask],
    seed: str,
    files: Mapping[str, list[str]],
) -> tuple[list[ChaosTab], list[asyncio.Task[None]], list[asyncio.Task[None]]]:
    """Let all people ask; return the tabs and the tasks of replies and stops."""
    tabs: list[ChaosTab] = []
    replies: list[asyncio.Task[None]] = []
    stops: list[asyncio.Task[None]] = []
    for person, ask in zip(people, asked, strict=True):
        tab = ChaosTab(stage, person, ask, random.Random(f"{seed}:{ask.client_id}"))
        tab.files = files.get(ask.client_id, [])
        tabs.append(tab)
        replies.append(asyncio.create_task(tab.ask()))
        if ask.stop_after is not None:
            stops.append(asyncio.create_task(tab.stop_later(ask.stop_after)))
        if ask.further:
            other = ChaosTab(
                stage, person, ask.further_ask, random.Random(f"{seed}:{ask.client_id}:3")
            )
            other.files = files.get(other.asked.client_id, [])
            tabs.append(other)
            match ask.further:
                case "compare":
                    follow = other.compared(tab)
                case "next":
                    follow = other.follow_up(tab)
                case _:
                    follow = other.ask_again(replies[-1], tab)
            replies.append(asyncio.create_task(follow))
        if ask.watch_after is not None:
            other = ChaosTab(stage, person, ask, random.Random(f"{seed}:{ask.client_id}:2"))
            tabs.append(other)
            replies.append(asyncio.create_task(other.look(tab, ask.watch_after)))
    return tabs, replies, stops
