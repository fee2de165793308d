"""Accumulates the reply of a run in memory, from the provider's events to the run's outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from django.utils import timezone

from billing.metering.pricing import Tokens
from chat import errors, protocol
from chat.llm.decoder import Event, Finish, ReasoningDelta, TextDelta, Usage
from chat.models import Run
from chat.runs import finish
from chat.streaming.writer import RunWriter

# A provider that ignores the cap must not fill our memory. No cap of today's models reaches this.
REPLY_MAX_CHARACTERS = 1_000_000


class ReplyTooLong(Exception):
    """The provider sent more than any cap allows."""


@dataclass(slots=True)
class Reply:
    """The output of an attempt so far, and the tokens of its prompt as estimated here.

    The attempt continues `prefix` and `prefix_reasoning`, the output of earlier ones. `is_accepted`
    while the provider works on its request (llm.provider.Provider.stream).
    """

    prompt_tokens: int
    prefix: str = ""
    prefix_reasoning: str = ""
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    characters: int = 0
    finish_reason: str = ""
    usage: Usage | None = None
    reported: tuple[int, int] = (0, 0)  # items of text and reasoning that the usage includes
    is_accepted: bool = False
    first_token_at: datetime | None = None

    def add(self, event: Event, writer: RunWriter) -> None:
        """Add an event of the provider, and pass text on to the writer. Raises ReplyTooLong."""
        if isinstance(event, TextDelta):
            text = self._storable(event.text)
            self.text.append(text)
            writer.text(text)
        elif isinstance(event, ReasoningDelta):
            text = self._storable(event.text)
            self.reasoning.append(text)
            writer.reasoning(text)
        elif isinstance(event, Finish):
            self.finish_reason = event.reason
        elif isinstance(event, Usage):
            self.usage = event
            self.reported = len(self.text), len(self.reasoning)

    def _storable(self, text: str) -> str:
        if self.first_token_at is None:
            self.first_token_at = timezone.now()
        self.characters += len(text)
        if self.characters > REPLY_MAX_CHARACTERS:
            raise ReplyTooLong
        # Postgres stores no NUL in text, and a small model may well produce one.
        return text.replace("\x00", "") if "\x00" in text else text

    def begin_again(self) -> None:
        """Forget what a provider reported before its first token: another model is asked."""
        self.usage, self.reported, self.finish_reason = None, (0, 0), ""

    def outcome(
        self, status: Run.Status, *, code: str = "", message: str = "", cause: str = ""
    ) -> finish.Outcome:
        """Return the run's end as it stands."""
        return finish.Outcome(
            status=status,
            text=self.whole_text(),
            reasoning=self.whole_reasoning(),
            finish_reason=self.finish_reason,
            code=code,
            message=message or (errors.ERRORS[code] if code else ""),
            cause=cause,
            usage=self.present_usage(is_whole=status == Run.Status.DONE),
            first_token_at=self.first_token_at,
        )

    def whole_text(self) -> str:
        """Return the reply with its prefix."""
        return self.prefix + "".join(self.text)

    def whole_reasoning(self) -> str:
        """Return the reasoning with its prefix."""
        return self.prefix_reasoning + "".join(self.reasoning)

    def present_usage(self, *, is_whole: bool = False) -> protocol.Usage | None:
        """Return the usage of this attempt so far; None if the provider accepted no request.

        Without a report it is estimated, as is output that arrived after the last report of a stream
        that was interrupted (not `is_whole`).
        """
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
                    "" if is_whole else "".join(self.text[texts:]),
                    "" if is_whole else "".join(self.reasoning[reasonings:]),
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
        return finish.counted_usage(self.prompt_tokens, "".join(self.text), "".join(self.reasoning))
