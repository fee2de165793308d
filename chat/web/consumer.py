"""The socket of a browser tab: /ws/v1/. docs/protocol.md is the reference of its frames.

The consumer reads frames, calls the domain and follows runs (run_follower.py); outgoing.py sends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import msgspec
import redis
from channels.consumer import get_handler_name
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.utils import translation
from msgspec import UNSET

from accounts import sockets
from chat import access, protocol
from chat.conversations import branches, drafts, lifecycle
from chat.conversations.offers import Choice
from chat.errors import ChatError, sentence
from chat.moderation import rules
from chat.runs import approve, describe, next_message, start, wait_estimate
from chat.runs.stop import stop_run
from chat.streaming import groups
from chat.streaming.user_channel import ACCESS_CHANGED
from chat.web import socket_limits
from chat.web.outgoing import UNREACHABLE, Outgoing
from chat.web.run_follower import ATTACH_WITHIN, Follower, replay_reader
from chat.web.socket_limits import Allowance
from chatproject.lib import db, languages, metrics
from chatproject.lib.db import limits
from chatproject.lib.pubsub.layer import get_layer
from chatproject.lib.pubsub.raw import Attachment
from chatproject.lib.server.asgi_types import TEXT_FRAMES

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

MAX_FOLLOWED = 100  # runs that one socket resumes at a time; its own new ones come on top
MAX_ANNOUNCED = 1_000  # runs whose `run.queued` one socket remembers

# Seconds after which a follower that received nothing reads the row again, up to twice as long: the
# last resort for an event that was published while a host of the channel layer was unreachable.
RECHECK = 5.0

SHORT_ENDS = b"ends=short"  # in the query of the socket's address: see docs/protocol.md

MODERATED = protocol.ChatSend | protocol.ChatCompare | protocol.MessageEdit

DELAYED_AFTER = 2.5  # seconds without an answer to a frame, after which `delayed` is sent

T = TypeVar("T")


class ChatConsumer(AsyncWebsocketConsumer):  # type: ignore[misc, unused-ignore] # Channels is untyped
    # No layer of Channels' own: each consumer would get a Redis channel that nothing here uses.
    channel_layer_alias = "none"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._session: sockets.SocketSession | None = None
        self._outgoing: Outgoing
        self._followed: dict[UUID, Follower] = {}
        self._announced: dict[UUID, None] = {}  # the oldest first
        self._recheck: asyncio.TimerHandle | None = None
        self._attachments: list[Attachment] = []
        self._allowance: Allowance | None = None
        self._ending: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the socket; nothing of it stays behind, however it ends."""
        self._session = scope["socket_session"]
        self._language = languages.known(self._session.user.language if self._session else "")
        translation.activate(self._language)
        self._wait: float = scope.get("socket_wait", 0.0)
        self._outgoing = Outgoing(
            send,
            (scope.get("extensions") or {}).get(TEXT_FRAMES),
            short_ends=SHORT_ENDS in scope.get("query_string", b"").split(b"&"),
        )
        metrics.OPEN_SOCKETS.inc()
        try:
            await super().__call__(scope, receive, send)
        finally:
            metrics.OPEN_SOCKETS.dec()
            # Nothing here suspends: the task may be cancelled a second time.
            if self._ending is not None:
                self._ending.cancel()
            self._outgoing.stop()
            await self._leave()

    async def dispatch(self, message: Any) -> None:
        # Channels' own goes through a thread first, for each frame, to close that thread's database
        # connections. Here lib.db alone uses the database.
        await getattr(self, get_handler_name(message))(message)

    async def websocket_disconnect(self, message: Any) -> None:
        # For the same reason.
        raise StopConsumer

    # --- Connection ---------------------------------------------------------------------------

    async def connect(self) -> None:
        await self.accept()
        session = self._session
        if self._wait:
            refusal = socket_limits.refuse_handshake(self._wait)
            await self._outgoing.close(protocol.TOO_MANY, refusal)
            return
        if session is None:
            await self._outgoing.close(protocol.NOT_SIGNED_IN, ChatError("not_signed_in"))
            return
        sockets.session_watch().add(session, self._session_ended)
        try:
            self._allowance = Allowance(session.user.pk)
        except ChatError as refusal:
            await self._outgoing.close(protocol.TOO_MANY, refusal)
            return
        try:
            async with asyncio.timeout(ATTACH_WITHIN):
                for group in (groups.user_group(session.user.pk), groups.EVERYONE):
                    self._attachments.append(
                        await get_layer().attach(group, self._receive_for_user)
                    )
        except (redis.RedisError, TimeoutError) as error:
            logger.warning("a socket was refused: %r", error)
            await self._outgoing.close(protocol.TRY_AGAIN_LATER, ChatError("unavailable"))
            return
        metrics.SOCKETS_OPENED.inc()
        self._outgoing.open(protocol.Ready(user=session.user.pk).encode())

    def _session_ended(self) -> None:
        # A task, since the answer to a close waits for a client that reads slowly.
        self._ending = asyncio.create_task(self._end())

    async def _end(self, ref: str | None = None) -> None:
        """Close the socket, whose session has ended; `ref` names the frame that was refused for it."""
        translation.activate(self._language)  # also in a task of its own
        await self._leave()
        await self._outgoing.close(protocol.NOT_SIGNED_IN, ChatError("not_signed_in"), ref)

    async def _leave(self) -> None:
        """Receive nothing any longer: no events of the user or of runs."""
        if self._allowance is not None:
            self._allowance.end()
        if self._session is not None:
            sockets.session_watch().remove(self._session)
        if self._recheck is not None:
            self._recheck.cancel()
        for follower in tuple(self._followed.values()):
            await follower.leave()
        for attachment in self._attachments:
            await attachment.detach()

    # --- From the client ----------------------------------------------------------------------

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        outgoing = self._outgoing
        if not outgoing.is_open or self._allowance is None:
            return  # it is being closed
        if not await self._allowance.count_frame(outgoing):
            return
        if text_data is None:
            await outgoing.close(protocol.UNSUPPORTED_DATA)
            return
        if len(text_data) > protocol.MAX_FRAME_BYTES or (
            len(text_data.encode(errors="surrogatepass")) > protocol.MAX_FRAME_BYTES
        ):
            await outgoing.close(protocol.TOO_BIG)
            return
        try:
            event = protocol.decode(text_data)
        except protocol.NotJSON:
            await outgoing.close(protocol.UNSUPPORTED_DATA, ChatError("bad_json"))
            return
        except ChatError as error:
            outgoing.put(protocol.Error.of(error, protocol.ref_of(text_data)).encode())
            return
        try:
            await self._handle(event)
            return
        except sockets.SessionEnded:
            await self._end(event.ref)
            return
        except ChatError as error:
            refusal = error
        except UNREACHABLE as error:
            kind, tag = type(error).__name__, event.__struct_config__.tag
            logger.warning("%s was refused: %s: %s", tag, kind, error)
            refusal = ChatError("unavailable", retry_after=wait_estimate.RETRY_AFTER)
        except Exception:
            # The socket outlives a bug: the user receives an error, and the log has the trace.
            logger.exception("%s failed", event.__struct_config__.tag)
            refusal = ChatError("internal")
        outgoing.put(protocol.Error.of(refusal, event.ref).encode())

    async def _handle(self, event: protocol.ClientEvent) -> None:
        if settings.MODERATION and isinstance(event, MODERATED):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(rules.reviewers(), rules.review_in_thread, event.text)
        match event:
            case protocol.ChatSend():
                started = await self._call(
                    event,
                    start.send,
                    text=event.text,
                    client_id=event.client_id,
                    conversation_id=event.conversation,
                    parent_id=event.parent,
                    choice=choice_of(event),
                    attachment_ids=event.attachments,
                    clears_draft=event.draft,
                )
            case protocol.ChatCompare():
                compared = await self._call(
                    event,
                    start.compare,
                    text=event.text,
                    client_id=event.client_id,
                    model_ids=event.models,
                    conversation_id=event.conversation,
                    parent_id=event.parent,
                    choice=choice_of(event),
                    attachment_ids=event.attachments,
                    clears_draft=event.draft,
                )
                for one in compared:
                    self._answer(one)
                return
            case protocol.NextQueue():
                answer = await self._call(
                    event,
                    next_message.queue,
                    text=event.text,
                    client_id=event.client_id,
                    conversation_id=event.conversation,
                    choice=choice_of(event),
                    attachment_ids=event.attachments,
                    clears_draft=event.draft,
                )
                self._answer_next(answer)
                return
            case protocol.NextEdit():
                taken = await self._call(
                    event, next_message.edit, conversation_id=event.conversation
                )
                self._outgoing.put(taken.encode())
                return
            case protocol.NextRemove():
                await self._call(event, next_message.remove, conversation_id=event.conversation)
                return
            case protocol.NextSend():
                sent = await self._call(
                    event, next_message.send, conversation_id=event.conversation
                )
                self._answer_next(sent)
                return
            case protocol.RunRegenerate():
                started = await self._call(
                    event,
                    start.regenerate,
                    message_id=event.message,
                    client_id=event.client_id,
                    model_id=event.model,
                )
            case protocol.RunContinue():
                started = await self._call(
                    event,
                    start.continue_reply,
                    message_id=event.message,
                    client_id=event.client_id,
                )
            case protocol.MessageEdit():
                started = await self._call(
                    event,
                    start.edit,
                    message_id=event.message,
                    text=event.text,
                    client_id=event.client_id,
                    choice=choice_of(event),
                    attachment_ids=None if event.attachments is UNSET else event.attachments,
                )
            case protocol.BranchSelect():
                selected = await self._call(event, branches.select, message_id=event.message)
                self._outgoing.put(selected.encode())
                return
            case protocol.RunStop():
                await self._call(event, stop_run, run_id=event.run)
                return
            case protocol.ToolDecide():
                await self._call(
                    event, approve.decide, run_id=event.run, call=event.call, allow=event.allow
                )
                return
            case protocol.Resume():
                assert self._allowance is not None
                self._allowance.count_resume()
                if event.run not in self._followed and len(self._followed) >= MAX_FOLLOWED:
                    raise ChatError("busy")
                async with asyncio.timeout(limits.ANSWER):
                    first, shared = await replay_reader().call(
                        next_message.first_events,
                        user=self._user,
                        run_id=event.run,
                        after=event.after,
                    )
                for before in first:
                    self._outgoing.put(before.encode())
                self._follow(
                    event.run,
                    event.after,
                    report=partial(self._report_delay, event),
                    shared=shared,
                )
                return
            case protocol.ConversationRead():
                await self._call(event, lifecycle.mark_read, conversation_id=event.conversation)
                return
            case protocol.DraftSave():
                draft = await self._call(
                    event,
                    drafts.save,
                    conversation_id=event.conversation,
                    text=event.text,
                    age_ms=event.age,
                )
                self._outgoing.put(draft.encode())
                return
            case protocol.Ping():
                self._outgoing.put(protocol.Pong().encode())
                return
        self._answer(started)

    def _answer_next(self, answer: describe.Started | protocol.NextUpdated) -> None:
        if isinstance(answer, protocol.NextUpdated):
            self._outgoing.put(answer.encode())
        else:
            self._answer(answer)

    def _answer(self, started: describe.Started) -> None:
        """Announce and follow a run. It is stored: no error may refer to its frame any longer."""
        self._announce(started.run.id, started.event.encode(), is_repeated=not started.is_new)
        self._follow(started.run.id, 0, is_new=started.is_new)

    @property
    def _user(self) -> User:
        assert self._session is not None  # a socket without a session handles no frame
        return self._session.user

    async def _call(
        self, event: protocol.ClientEvent, fn: Callable[..., T], **arguments: object
    ) -> T:
        """Call a function that stores something for the user, and report a delay once.

        Raises SessionEnded, and what the function raises.
        """
        assert self._session is not None
        call = partial(fn, user=self._user, **arguments)
        timer = asyncio.get_running_loop().call_later(DELAYED_AFTER, self._report_delay, event)
        try:
            return await db.run_within(limits.ANSWER, sockets.while_signed_in, self._session, call)
        finally:
            timer.cancel()

    def _report_delay(self, event: protocol.ClientEvent) -> None:
        code = "still_trying"
        delayed = protocol.Delayed(code=code, message=sentence(code), ref=event.ref)
        self._outgoing.put(delayed.encode())

    def _follow(
        self,
        run_id: UUID,
        after: int,
        *,
        is_new: bool = False,
        report: Callable[[], None] | None = None,
        shared: UUID | None = None,
    ) -> None:
        if not self._outgoing.is_open:
            return  # the session ended, or the client left, while the frame was handled
        follower = self._followed.get(run_id)
        if follower is not None:
            follower.rewind(after, report)
            return
        Follower(
            run_id,
            after,
            followed=self._followed,
            outgoing=self._outgoing,
            is_new=is_new,
            report=report,
            shared=shared,
            may_read=partial(access.run, self._user, run_id) if shared else None,
        ).join()
        self._recheck_later()

    def _recheck_later(self) -> None:
        if self._recheck is None and self._followed:
            # Spread, as after a restart all sockets begin to follow at the same time.
            delay = RECHECK * random.uniform(0.75, 1.25)  # noqa: S311  not a secret
            self._recheck = asyncio.get_running_loop().call_later(delay, self._recheck_all)

    def _recheck_all(self) -> None:
        self._recheck = None
        for follower in self._followed.values():
            follower.recheck()
        self._recheck_later()

    # --- To the client ------------------------------------------------------------------------

    def _receive_for_user(self, data: bytes) -> None:
        if data == ACCESS_CHANGED:
            assert self._session is not None
            sockets.session_watch().check_soon(self._session)
            return
        header = protocol.header(data)
        if header.type == "run.queued" and header.run is not None:
            self._announce(header.run, data)
        elif header.type == "share.ended":
            task = asyncio.create_task(self._end_share(data))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._outgoing.put(data)

    async def _end_share(self, data: bytes) -> None:
        """Follow no run of a conversation that is no longer shared with the user."""
        ended = UUID(msgspec.json.decode(data)["conversation"])
        for follower in tuple(self._followed.values()):
            if follower.shared == ended:
                await follower.leave()
        self._outgoing.put(data)

    def _announce(self, run_id: UUID, queued: bytes, *, is_repeated: bool = False) -> None:
        """Send `run.queued` once per run, and again in answer to a repeated frame.

        The socket that asked for a run also receives it from the user's group.
        """
        if run_id in self._announced and not is_repeated:
            return
        self._announced[run_id] = None
        if len(self._announced) > MAX_ANNOUNCED:
            del self._announced[next(iter(self._announced))]
        self._outgoing.put(queued)


def choice_of(event: protocol.Choosing) -> Choice:
    """Return what a frame names of `Choice`."""
    chosen = Choice(event.model, event.effort, event.temperature)
    if isinstance(event, protocol.ChatSend | protocol.ChatCompare):
        return replace(
            chosen,
            assistant_id=event.assistant,
            project_id=event.project,
            temporary=event.temporary,
        )
    return chosen


class UnknownPathConsumer(AsyncWebsocketConsumer):  # type: ignore[misc, unused-ignore] # Channels is untyped
    """Answers every other path, also those of a later version of the protocol."""

    channel_layer_alias = "none"

    async def connect(self) -> None:
        await self.accept()
        await self.close(protocol.UNKNOWN_PATH)
