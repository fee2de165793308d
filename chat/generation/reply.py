"""Accumulates the reply of a run in memory, from the provider's events to the run's outcome."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime

from django.utils import timezone

from billing.metering.pricing import Tokens
from chat import errors, protocol
from chat.llm.decoder import Event, Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from chat.llm.thoughts import Piece, ThoughtScanner
from chat.models import Run
from chat.runs import finish
from chat.streaming.writer import RunWriter

# A provider that ignores the cap must not fill our memory. No cap of today's models reaches this.
REPLY_MAX_CHARACTERS = 1_000_000


class ReplyTooLong(Exception):
    """The provider sent more than any cap allows."""


@dataclass(slots=True)
class ToolCall:
    """A tool call so far."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Reply:
    """The output of an attempt so far, and the tokens of its prompt as estimated here.

    The attempt continues `prefix` and `prefix_reasoning`, the output of earlier ones, of which the
    first `continued` characters are another reply's. `is_accepted`
    while the provider works on its request (llm.provider.Provider.stream). `learned` are quirks of the
    server that its requests have shown, by the id of the model (llm/quirks.py).
    """

    prompt_tokens: int
    prefix: str = ""
    prefix_reasoning: str = ""
    continued: int = 0
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    characters: int = 0
    finish_reason: str = ""
    usage: Usage | None = None
    reported: tuple[int, int] = (0, 0)  # items of text and reasoning that the usage includes
    is_accepted: bool = False
    first_token_at: datetime | None = None
    learned: dict[int, dict[str, str]] = field(default_factory=dict)
    is_whole: bool = False  # the provider has finished
    scanner: ThoughtScanner | None = field(init=False)  # None when no thoughts can come any longer
    thoughts: tuple[float, float] | None = (
        None  # when the reasoning of this attempt began and ended
    )
    has_tags: bool = False  # the reasoning came in tags, with white space around it
    is_of_api: bool = False  # its caller offers tools, and may ask for a reply without text
    tool_calls: dict[int, ToolCall] = field(default_factory=dict)
    # Of a run with tools: its calls are made here; it has finished steps, whose text is in `prefix`; and no
    # request is under way.
    collects_calls: bool = False
    has_steps: bool = False
    is_between_steps: bool = False

    def __post_init__(self) -> None:
        self.scanner = self._new_scanner()

    def _new_scanner(self) -> ThoughtScanner:
        # A model that continues another reply may think first.
        return ThoughtScanner(is_continued=len(self.prefix) > self.continued)

    def add(self, event: Event, writer: RunWriter) -> None:
        """Add an event of the provider, and pass text on to the writer. Raises ReplyTooLong."""
        if isinstance(event, TextDelta):
            text, scanner = event.text, self.scanner
            if scanner is not None and (
                # As thoughts.FIRST_CHARACTERS, without the cost of a loop.
                "<" in text or "[" in text or "◁" in text or not scanner.is_plain
            ):
                self._add_pieces(scanner, scanner.feed(text, self.whole_text), writer)
                return
            # As in `_storable`, whose calls would cost more than the work: this is done per token.
            if self.first_token_at is None or "\x00" in text:
                text = self._cleaned(text)
            self.characters += len(text)
            if self.characters > REPLY_MAX_CHARACTERS:
                raise ReplyTooLong
            self.text.append(text)
            writer.text(text)
        elif isinstance(event, ReasoningDelta):
            self._add_reasoning(event.text, writer)
        elif isinstance(event, Finish):
            self.finish_reason = event.reason
        elif isinstance(event, Usage):
            self.usage = event
            self.reported = len(self.text), len(self.reasoning)
        elif self.is_of_api or self.collects_calls:
            self._add_tool_call(event, writer)

    def _add_tool_call(self, event: ToolCallDelta, writer: RunWriter) -> None:
        self.release(writer)
        id, name, arguments = (
            self._storable(text) for text in (event.id, event.name, event.arguments)
        )
        call = self.tool_calls.setdefault(event.index, ToolCall())
        call.id, call.name = call.id or id, call.name or name
        call.arguments.append(arguments)
        if self.is_of_api:
            writer.tool_call(event.index, id, name, arguments)

    def called(self) -> list[ToolCall]:
        """Return the calls of the request, in order."""
        return [one for _, one in sorted(self.tool_calls.items())]

    def own_text(self) -> str:
        """Return the text since the last finished step."""
        return self.whole_text()[self.continued :]

    def end_step(self, writer: RunWriter) -> None:
        """End a request that asks for tools: further text begins a paragraph of its own."""
        text = self.whole_text()
        if text.strip() and not text.endswith("\n\n"):
            end = "\n\n" if not text.endswith("\n") else "\n"
            self.text.append(end)
            writer.text(end)
        if self.reasoning and not self.reasoning[-1].endswith("\n\n"):
            self.reasoning.append("\n\n")
            writer.reasoning("\n\n")
        writer.mark_accepted(False)

    def begin_step(self) -> None:
        """Go on after a finished step, with all so far as the beginning of the reply."""
        self.prefix, self.prefix_reasoning = (
            self.whole_text(),
            self.prefix_reasoning + "".join(self.reasoning),
        )
        self.continued = len(self.prefix)
        self.text, self.reasoning, self.tool_calls = [], [], {}
        self.is_accepted, self.is_whole = False, False
        self.has_steps = self.is_between_steps = True
        self.begin_again()

    def written_tool_calls(self) -> str:
        """Return the texts of all tool calls, which are counted as output."""
        return "".join(
            one.name + "".join(one.arguments) for _, one in sorted(self.tool_calls.items())
        )

    def release(self, writer: RunWriter) -> None:
        """Add the text that was held back as the possible beginning of a tag, at the end of the stream."""
        if self.scanner is not None:
            self._add_pieces(self.scanner, self.scanner.release(), writer)

    def _add_reasoning(self, text: str, writer: RunWriter) -> None:
        text = self._storable(text)
        now = time.monotonic()
        self.thoughts = (self.thoughts[0] if self.thoughts else now, now)
        self.reasoning.append(text)
        writer.reasoning(text)

    def _cleaned(self, text: str) -> str:
        if self.first_token_at is None:
            self.first_token_at = timezone.now()
        return text.replace("\x00", "")  # Postgres stores none, and a small model may produce one

    def _storable(self, text: str) -> str:
        text = self._cleaned(text)
        self.characters += len(text)
        if self.characters > REPLY_MAX_CHARACTERS:
            raise ReplyTooLong
        return text

    def drop_prefix(self, writer: RunWriter) -> None:
        """Begin anew: the provider does not continue the output of earlier attempts."""
        self.prefix = self.prefix_reasoning = ""
        self.begin_again()
        writer.replace("", "")

    def _add_pieces(self, scanner: ThoughtScanner, pieces: list[Piece], writer: RunWriter) -> None:
        for piece in pieces:
            if isinstance(piece, TextDelta):
                text = self._storable(piece.text)
                self.text.append(text)
                writer.text(text)
            elif isinstance(piece, ReasoningDelta):
                self._add_reasoning(piece.text, writer)
            else:
                self._move_text(writer)
        self.has_tags = scanner.has_tags
        if scanner.has_ended:
            self.scanner = None

    def _move_text(self, writer: RunWriter) -> None:
        """Make all text so far a part of the reasoning."""
        if not self.whole_text():
            return
        kept, own = self.prefix[: self.continued], self.prefix[self.continued :]
        self.prefix_reasoning, self.prefix = self.prefix_reasoning + own, kept
        self.reasoning, self.text = self.reasoning + self.text, []
        self.reported = 0, sum(self.reported)
        self.has_tags = True
        writer.replace(kept, self.whole_reasoning())

    def begin_again(self) -> None:
        """Forget what a provider reported before its first token: another model is asked."""
        self.usage, self.reported, self.finish_reason = None, (0, 0), ""
        self.scanner = self._new_scanner()

    def finished(self) -> finish.Outcome:
        """Return the run's end after the provider has finished: a reply of a chat needs a text, or a reason.

        One of the API may be empty: a caller's `stop`, `logit_bias` or cap can end it before its first word.
        """
        self.is_whole = True
        has_output = self.whole_text()[self.continued :].strip() or self.tool_calls
        if has_output or self.has_steps or self.finish_reason == "length":
            return self.outcome(Run.Status.DONE)
        if self.is_of_api and self.finish_reason == "stop":
            return self.outcome(Run.Status.DONE)
        if self.finish_reason == "content_filter":
            return self.outcome(
                Run.Status.FAILED, code="provider_error", message=errors.FILTERED, cause="content"
            )
        message = errors.ONLY_THOUGHTS if self.whole_reasoning() else ""
        if self.continued:
            message = errors.NOTHING_ADDED
        return self.outcome(Run.Status.FAILED, code="empty_reply", message=message)

    def outcome(
        self, status: Run.Status, *, code: str = "", message: str = "", cause: str = ""
    ) -> finish.Outcome:
        """Return the run's end as it stands."""
        text = self.whole_text()
        return finish.Outcome(
            status=status,
            text=text if text.strip() else "",
            reasoning=self.whole_reasoning(),
            reasoning_seconds=self.thoughts[1] - self.thoughts[0] if self.thoughts else None,
            finish_reason=self.finish_reason,
            code=code,
            message=message or (errors.ERRORS[code] if code else ""),
            cause=cause,
            usage=self.present_usage(),
            first_token_at=self.first_token_at,
            tool_calls=[
                {"id": one.id, "name": one.name, "arguments": "".join(one.arguments)}
                for one in self.called()
            ]
            if self.is_of_api
            else [],
        )

    def whole_text(self) -> str:
        """Return the reply with its prefix."""
        return self.prefix + "".join(self.text)

    def whole_reasoning(self) -> str:
        """Return the reasoning with its prefix."""
        reasoning = self.prefix_reasoning + "".join(self.reasoning)
        return reasoning.strip() if self.has_tags or self.continued else reasoning

    def present_usage(self) -> protocol.Usage | None:
        """Return the usage of this attempt so far; None if the provider accepted no request.

        Without a report it is estimated, as is output that arrived after the last report of a stream
        that is not whole.
        """
        if self.is_between_steps:
            return None
        if self.usage is not None:
            reported = Tokens.reported(
                input=self.usage.prompt_tokens,
                cached=self.usage.cached_tokens,
                output=self.usage.completion_tokens,
                reasoning=self.usage.reasoning_tokens,
            )
            # Some gateways send zeros for tokens that they did not count.
            if reported.input and (reported.output or self.first_token_at is None):
                texts, reasonings = self.reported
                later = finish.counted_usage(
                    0,
                    "" if self.is_whole else "".join(self.text[texts:]),
                    "" if self.is_whole else "".join(self.reasoning[reasonings:]),
                )
                return protocol.Usage(
                    prompt_tokens=reported.input,
                    completion_tokens=reported.output + later.completion_tokens,
                    cached_tokens=reported.cached,
                    reasoning_tokens=reported.reasoning + later.reasoning_tokens,
                    estimated=later.completion_tokens > 0,
                )
        if self.first_token_at is None and not self.is_accepted:
            return None
        written = "".join(self.text) + self.written_tool_calls()
        return finish.counted_usage(self.prompt_tokens, written, "".join(self.reasoning))
