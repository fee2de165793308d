"""Temporary chats of the rounds: each is purged after its time, not before, and leaves only the ledger.

Pages close them between two rounds, so that they become due in the middle of a fault. Imported when Django is
set up.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import redis
from django.utils import timezone

from accounts.models import User
from billing.models import LedgerEntry, UsageRecord
from chat.conversations import temporary
from chat.models import Conversation, Message, MessageAttachment, Run
from tests.chaos.rounds.evidence import Evidence, Problem
from tests.chaos.rounds.stage import Stage, patiently

KEPT_CLOSED = timedelta(minutes=1)  # the promise
DUE_WITHIN = 8.0  # seconds: chats were closed nearly a minute before
STAYS_OPEN = 0.3  # the share of chats that a page shows for another round
POLL = 0.2  # seconds
TURN = 10.0  # seconds between the turns of retention
LONGEST_FAULTS = 45.0  # seconds in which several rounds may keep the clock from its work


@dataclass
class Chat:
    """A temporary chat, the usage of its runs, and times since the epoch: due and found purged."""

    conversation: UUID
    runs: list[UUID]
    entries: tuple[int, int]  # of usage records and of the ledger
    due: float | None = None  # None: a page is open
    purged_at: float | None = None


@dataclass
class Purges:
    """All temporary chats of the rounds so far."""

    stage: Stage
    chats: list[Chat] = field(default_factory=list)

    def take(self, found: Evidence, chance: random.Random) -> None:
        """Close the chats that are open, and those of a round that has ended, but for some of these."""
        self.close_all(chance)
        begun = {ask.client_id for ask in found.asks if ask.is_temporary}
        taken = {run for chat in self.chats for run in chat.runs}
        for run in found.runs:
            if run.client_id in begun and run.ended_at is not None and run.id not in taken:
                chat = Chat(UUID(run.conversation), [run.id], _entries([run.id]))
                self.chats.append(chat)
                if chance.random() > STAYS_OPEN:
                    _close(chat, chance)

    def close_all(self, chance: random.Random) -> None:
        for chat in self.chats:
            if chat.due is None and chat.purged_at is None:
                _close(chat, chance)

    async def watch(self) -> None:
        """Note when chats are purged, until cancelled."""
        while True:
            kept = [chat for chat in self.chats if chat.purged_at is None]
            ids = await patiently(_existing, [chat.conversation for chat in kept])
            for chat in kept:
                if chat.conversation not in ids:
                    chat.purged_at = time.time()
            await asyncio.sleep(POLL)

    def line(self) -> str:
        late = [chat.purged_at - chat.due for chat in self.chats if chat.purged_at and chat.due]
        latest = max(late, default=0.0)
        return (
            f"{len(late)} of {len(self.chats)} temporary chats were purged, at most {latest:.1f} s"
            " after their time"
        )

    def too_early(self) -> Iterator[Problem]:
        """Chats that were purged while a page was open, or before they were due."""
        for chat in self.chats:
            if chat.purged_at is not None and (chat.due is None or chat.purged_at < chat.due):
                yield Problem(f"the temporary chat {chat.conversation} was purged too early")

    async def finish(self, bound: float) -> list[Problem]:
        """Close the open chats and return the problems of all, when they had time to be purged."""
        await patiently(self.close_all, random.Random(0))
        latest = max((chat.due for chat in self.chats if chat.due is not None), default=0.0)
        await asyncio.sleep(max(0.0, latest - time.time()))
        give_up_at = time.monotonic() + TURN + bound
        while any(chat.purged_at is None for chat in self.chats) and time.monotonic() < give_up_at:
            await asyncio.sleep(POLL)
        return [*self.too_early(), *self.too_late(bound), *await patiently(self._left)]

    def too_late(self, bound: float) -> Iterator[Problem]:
        """Chats that were purged later than the last fault of a round excuses."""
        for chat in self.chats:
            if (
                chat.purged_at
                and chat.due
                and chat.purged_at - chat.due > LONGEST_FAULTS + TURN + bound
            ):
                yield Problem(f"the temporary chat {chat.conversation} was purged too late")

    def _left(self) -> list[Problem]:
        """Chats that were never purged, or not as a whole."""
        found = []
        with redis.Redis.from_url(self.stage.valkey.url) as client:
            for chat in self.chats:
                what = f"the temporary chat {chat.conversation}"
                rows = [
                    Message.objects.filter(conversation=chat.conversation),
                    Run.objects.filter(pk__in=chat.runs),
                    MessageAttachment.objects.filter(message__conversation=chat.conversation),
                ]
                if chat.purged_at is None:
                    found.append(Problem(f"{what} was not purged"))
                elif any(each.exists() for each in rows):
                    found.append(Problem(f"{what} left rows"))
                elif keys := [key for run in chat.runs for key in client.keys(f"run:{run}:*")]:
                    found.append(Problem(f"{what} left {keys}"))
                if _entries(chat.runs) != chat.entries:
                    found.append(Problem(f"the purge of {what} changed records of usage"))
        return found


def _close(chat: Chat, chance: random.Random) -> None:
    """Close the page of a chat nearly as long ago as chats are kept then."""
    row = Conversation.objects.get(pk=chat.conversation)
    owner = User.objects.get(pk=row.owner_id)
    temporary.close(user=owner, conversation_id=row.pk, opened_at=row.opened_at)
    due = timezone.now() + timedelta(seconds=chance.uniform(1, DUE_WITHIN))
    # Noted first: as soon as the row is stored it may be purged.
    chat.due = due.timestamp()
    Conversation.objects.filter(pk=row.pk).update(closed_at=due - KEPT_CLOSED)


def _existing(ids: list[UUID]) -> set[UUID]:
    return set(Conversation.objects.filter(pk__in=ids).values_list("pk", flat=True))


def _entries(runs: list[UUID]) -> tuple[int, int]:
    """The numbers of the usage records and ledger entries of runs."""
    used = UsageRecord.objects.filter(run_id__in=runs).count()
    return used, LedgerEntry.objects.filter(hold__in=runs).count()
