"""Templates of prompts: plain text with a few placeholders, and keywords that choose passages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

MOST_CHARACTERS = 4_000
MOST_KEYWORDS = 200
LONGEST_KEYWORD = 60

PLACEHOLDERS = ("people", "messages", "first_day", "last_day", "language")
HELP = gettext_lazy(
    "What the model is asked. Placeholders: {people}, {messages}, {first_day}, {last_day} and {language}."
    " The passages of the document and the schema are added by us."
)
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def validate(template: str) -> None:
    """Raise ValidationError for an unknown placeholder, or a brace that belongs to none."""
    unknown = [name for name in PLACEHOLDER.findall(template) if name not in PLACEHOLDERS]
    if unknown:
        raise ValidationError(
            _("There is no placeholder {%(name)s}. Use one of: %(known)s.")
            % {
                "name": unknown[0][:40],
                "known": ", ".join(f"{{{name}}}" for name in PLACEHOLDERS),
            }
        )
    if re.search(r"[{}]", PLACEHOLDER.sub("", template)):
        raise ValidationError(_("A brace is left over. Braces are only for placeholders."))


def filled(template: str, values: Mapping[str, object]) -> str:
    """Return a template with its placeholders replaced, each once: a value is never read as a template."""
    return PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), template)


def validate_keywords(value: Any) -> None:
    """Raise ValidationError unless the value is a short list of short words."""
    if not isinstance(value, list) or not all(
        isinstance(one, str) and one.strip() for one in value
    ):
        raise ValidationError(_("Enter a list of words."))
    if len(value) > MOST_KEYWORDS or any(len(one) > LONGEST_KEYWORD for one in value):
        raise ValidationError(
            _("Enter at most %(most)d words, each of at most %(longest)d characters.")
            % {"most": MOST_KEYWORDS, "longest": LONGEST_KEYWORD}
        )
