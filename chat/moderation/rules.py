"""Moderation of messages before their run, by the rules of the staff.

Off unless MODERATION is set, and then without any cost. Rules are kept in memory for REFRESH seconds, verdicts
for KEPT: a socket obtains the verdict in a thread of `reviewers`, before a thread of the database begins to
store the message, so a slow endpoint occupies none of these.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

from django.conf import settings
from django.db import connections
from django.utils.translation import gettext as _

from chat.errors import ChatError
from chat.llm import moderation
from chat.models import ModerationRule
from chat.moderation.words import compiled, tokens
from chatproject.lib import encryption

logger = logging.getLogger(__name__)

REFRESH = 10.0  # seconds until a change of a rule holds in every process
KEPT = 30.0  # seconds
MOST_KEPT = 1_000
MOST_RULES = 20
THREADS = 16
RETRY_AFTER = 5.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a review: the `rule` that a text breaks, or the one that could not be checked (`is_failure`)."""

    rule: str = ""
    categories: tuple[str, ...] = ()
    is_failure: bool = False

    def refusal(self) -> ChatError | None:
        """Return the error for the user, in the active language; None for an allowed text."""
        if not self.rule:
            return None
        if self.is_failure:
            return ChatError(
                "unavailable",
                _(
                    "Your message could not be checked just now. It was not sent, and nothing was charged."
                    " Try again in a moment."
                ),
                retry_after=RETRY_AFTER,
            )
        rule = f"{self.rule} ({', '.join(self.categories)})" if self.categories else self.rule
        return ChatError(
            "moderated",
            _(
                "Your message breaks a rule of this site: “%(rule)s”. It was not sent, and nothing was"
                " charged. Change it, then send it again."
            )
            % {"rule": rule},
        )


ALLOWED = Verdict()


class Memory:
    """The enabled rules and the recent verdicts of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[bytes, tuple[float, Verdict]] = OrderedDict()
        self._rules: list[ModerationRule] = []
        self._due = 0.0

    def rules(self) -> list[ModerationRule]:
        """Return the enabled rules, lists of words first. Raises what the database raises."""
        if time.monotonic() >= self._due:
            found = ModerationRule.objects.filter(is_enabled=True).select_related("provider")
            rules = list(found.order_by("-kind", "pk")[:MOST_RULES])
            with self._lock:
                if _contents(rules) != _contents(self._rules):
                    self._verdicts.clear()
                self._rules, self._due = rules, time.monotonic() + REFRESH
        return self._rules

    def verdict(self, key: bytes) -> Verdict | None:
        with self._lock:
            until, verdict = self._verdicts.get(key, (0.0, ALLOWED))
            return verdict if time.monotonic() < until else None

    def keep(self, key: bytes, verdict: Verdict) -> None:
        with self._lock:
            self._verdicts[key] = (time.monotonic() + KEPT, verdict)
            self._verdicts.move_to_end(key)
            if len(self._verdicts) > MOST_KEPT:
                self._verdicts.popitem(last=False)


def _contents(rules: list[ModerationRule]) -> list[tuple[object, ...]]:
    return [
        (one.pk, one.name, one.kind, one.words, one.provider_id, one.provider_model, one.on_failure)
        for one in rules
    ]


memory = Memory()


def review(text: str) -> Verdict:
    """Return the verdict on a text of a user. Blocks for at most about MODERATION_SECONDS."""
    text = text.strip()
    if not settings.MODERATION or not 0 < len(text) <= settings.TEXT_MAX_CHARACTERS:
        return ALLOWED
    rules = memory.rules()
    if not rules:
        return ALLOWED
    key = hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()
    verdict = memory.verdict(key)
    if verdict is None:
        verdict = _review(text, rules)
        memory.keep(key, verdict)
    return verdict


def _review(text: str, rules: list[ModerationRule]) -> Verdict:
    deadline = time.monotonic() + settings.MODERATION_SECONDS
    found = tokens(text)
    for rule in rules:
        if rule.kind == ModerationRule.Kind.WORDS:
            verdict = Verdict(rule.name) if compiled(rule.words).matches(found) else ALLOWED
        else:
            verdict = _ask(rule, text, deadline - time.monotonic())
        if verdict.rule:
            logger.info("a message was refused by moderation rule %d", rule.pk)
            return verdict
    return ALLOWED


def _ask(rule: ModerationRule, text: str, seconds: float) -> Verdict:
    """Return the verdict of a provider's endpoint, or that of the rule for a failure."""
    try:
        if rule.provider is None:
            raise moderation.Unanswered("the rule has no provider")
        if seconds < 0.1:
            raise moderation.Unanswered("other endpoints took all of the time")
        categories = moderation.flagged(rule.provider, rule.provider_model, text, seconds)
    except (moderation.Unanswered, encryption.Undecryptable) as error:
        logger.warning("moderation rule %d was not checked: %s", rule.pk, error)
        is_refused = rule.on_failure == ModerationRule.OnFailure.REFUSE
        return Verdict(rule.name, is_failure=True) if is_refused else ALLOWED
    return ALLOWED if categories is None else Verdict(rule.name, tuple(categories))


@cache
def reviewers() -> ThreadPoolExecutor:
    """Return the threads of `review_in_thread`; the database has others."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="moderation")


def review_in_thread(text: str) -> None:
    """Obtain a verdict and keep it, in a thread of `reviewers`; `review` has it then."""
    try:
        review(text)
    finally:
        connections.close_all()
