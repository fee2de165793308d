"""The form field of a model's quirks: one line for each, with the time at which it was learned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.translation import gettext as _

from chat.llm import quirks

TIME = "%Y-%m-%d %H:%M"
LEARNED = re.compile(r"\s*\(([^()]*)\)\s*$")  # at a line's end


class QuirksFormField(forms.CharField):
    """Lines such as "temperature: left out (2026-11-30 03:12)"; a new line needs no time."""

    widget = forms.Textarea(attrs={"rows": 4, "cols": 80})

    def prepare_value(self, value: Any) -> Any:
        """Return the lines of the stored object; what was typed is shown again as it is."""
        if not isinstance(value, Mapping):
            return value
        known = [(subject, one) for subject, one in value.items() if quirks.is_known(subject, one)]
        return "\n".join(f"{subject}: {one['value']}{learned_at(one)}" for subject, one in known)

    def to_python(self, value: Any) -> Any:
        """Return the object to store. Raises ValidationError for a line outside the vocabulary."""
        stored: dict[str, dict[str, str]] = {}
        for line in str(value or "").splitlines():
            if not line.strip():
                continue
            learned = timezone.now()
            if found := LEARNED.search(line):
                learned = parsed_time(found[1])
                line = line[: found.start()]
            try:
                subject, setting = quirks.parse_line(line)
            except ValueError as error:
                raise ValidationError(str(error)) from error
            if subject in stored:
                raise ValidationError(f"“{subject}” stands in two lines. Remove one.")
            stored[subject] = quirks.entry(setting, learned.isoformat(timespec="seconds"))
        if len(stored) > quirks.MOST:
            raise ValidationError(
                _("These are more than %(most)s lines. Remove some.") % {"most": quirks.MOST}
            )
        return stored

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return values_in(initial) != values_in(self.to_python(data))
        except ValidationError:
            return True

    def merge(
        self, opened: Any, sent: Mapping[str, Any], present: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Return the present entries with the lines that staff changed; None for one changed by both."""
        before, after, now = values_in(opened), values_in(sent), values_in(present)
        changed = {one for one in before | after if before.get(one) != after.get(one)}
        if any(now.get(one) not in (before.get(one), after.get(one)) for one in changed):
            return None
        merged = {one: entry for one, entry in present.items() if one not in changed}
        return merged | {one: sent[one] for one in changed if one in sent}


def values_in(stored: Any) -> dict[str, str]:
    """Return subjects and values of a stored object, without entries outside the vocabulary."""
    known = stored.items() if isinstance(stored, Mapping) else ()
    return {subject: one["value"] for subject, one in known if quirks.is_known(subject, one)}


def learned_at(entry: Mapping[str, Any]) -> str:
    """Return the time at which an entry was learned as lines show it; "" if it has none."""
    try:
        learned = datetime.fromisoformat(str(entry.get("learned")))
    except ValueError:
        return ""
    return f" ({timezone.localtime(learned):{TIME}})" if timezone.is_aware(learned) else ""


def parsed_time(text: str) -> datetime:
    """Return the time at a line's end. Raises ValidationError."""
    try:
        return timezone.make_aware(datetime.strptime(text, TIME))  # noqa: DTZ007 # made aware
    except ValueError as error:
        example = timezone.localtime().strftime(TIME)
        raise ValidationError(
            f"“{text[:30]}” is not a time such as {example}. Correct it, or leave it out."
        ) from error
