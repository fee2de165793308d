"""The users of the rounds and their tabs, which record events. Imported when Django is set up."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from django.utils import timezone

from accounts.models import User
from chat.models import Assistant, Conversation, LanguageModel
from tests.chaos.rounds.asks import Ask
from tests.chaos.rounds.evidence import Seen
from tests.chaos.rounds.rows import run_id
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
        self._came_later = False
        self.is_asked = True  # whether the message was sent, or the reply asked for
        self._contradictions: list[tuple[str, str]] = []

    def wrong(self, kind: str, detail: str) -> None:
        self._contradictions.append((kind, detail))

    async def ask(self) -> None:
        """Send the message and follow its reply to the end."""
        await asyncio.sleep(self.asked.sent_after)
        conversation = self._person.conversation
        fields: dict[str, Any] = {"conversation": conversation} if conversation else {}
        if self.asked.further == "compare":
            fields |= {"type": "chat.compare", "models": self._person.models}
        end = await self.chat(self.asked.text, client_id=self.asked.client_id, **fields)
        self._ended(end)
        self._person.conversation = end["conversation"]

    async def compared(self, first: ChaosTab) -> None:
        """Follow the second run of a comparison that another tab has begun."""
        await first.until("run.queued", client_id=first.asked.client_id)
        self._came_later = True
        self._ended(await self.watch(await patiently(run_id, self.asked.client_id)))

    async def regenerate(self, first: asyncio.Task[None], tab: ChaosTab) -> None:
        """Ask for another reply after that of another tab; not after one that has no whole reply."""
        self.is_asked = False
        await first
        if tab.end.get("type") != "run.done":
            return
        self.is_asked = True
        self._ended(
            await self.chat(
                client_id=self.asked.client_id, type="run.regenerate", message=tab.end["reply"]
            )
        )

    async def look(self, first: ChaosTab, after: float) -> None:
        """Follow the run of another tab, some time after it was queued."""
        queued = await first.until("run.queued", client_id=self.asked.client_id)
        await asyncio.sleep(after)
        self._came_later = True
        self._ended(await self.watch(queued["run"]))

    async def stop_later(self, after: float) -> None:
        """Stop the reply, so many seconds after the message was queued."""
        await self.until("run.queued", client_id=self.asked.client_id)
        await asyncio.sleep(after)
        await self.stop()

    def _ended(self, end: dict[str, Any]) -> None:
        self.end = end
        self.ended_at, self.received_at = time.monotonic(), time.time()

    def seen(self) -> Seen:
        return Seen(
            client_id=self.asked.client_id,
            run=self.run,
            text=self.text,
            end=self.end.get("type", "").removeprefix("run."),
            received_at=0.0 if self._came_later else self.received_at,
            delivered=self.delivered,
            restarts=self.restarts,
            refusals=self.refusals,
            wrong=self._contradictions,
        )


def open_tabs(
    stage: Stage, people: list[Person], asked: list[Ask], seed: str
) -> tuple[list[ChaosTab], list[asyncio.Task[None]], list[asyncio.Task[None]]]:
    """Let all people ask; return the tabs and the tasks of replies and stops."""
    tabs: list[ChaosTab] = []
    replies: list[asyncio.Task[None]] = []
    stops: list[asyncio.Task[None]] = []
    for person, ask in zip(people, asked, strict=True):
        tab = ChaosTab(stage, person, ask, random.Random(f"{seed}:{ask.client_id}"))
        tabs.append(tab)
        replies.append(asyncio.create_task(tab.ask()))
        if ask.stop_after is not None:
            stops.append(asyncio.create_task(tab.stop_later(ask.stop_after)))
        if ask.further:
            other = ChaosTab(
                stage, person, ask.further_ask, random.Random(f"{seed}:{ask.client_id}:3")
            )
            tabs.append(other)
            follow = (
                other.compared(tab)
                if ask.further == "compare"
                else other.regenerate(replies[-1], tab)
            )
            replies.append(asyncio.create_task(follow))
        if ask.watch_after is not None:
            other = ChaosTab(stage, person, ask, random.Random(f"{seed}:{ask.client_id}:2"))
            tabs.append(other)
            replies.append(asyncio.create_task(other.look(tab, ask.watch_after)))
    return tabs, replies, stops
