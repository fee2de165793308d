"""The category that every site begins with; a migration stores it, and staff may change or remove it.

Its texts are in English, and shown in each user's language as long as staff have not changed them.
"""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_noop as _


def text(title: str, most: int = 600) -> dict[str, Any]:
    """Return the schema of a text."""
    return {"type": "string", "title": title, "minLength": 1, "maxLength": most}


def listed(title: str, items: dict[str, Any], most: int, least: int = 0) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "title": title, "minItems": least, "maxItems": most, "items": items}


def form(**properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has all of its properties."""
    return {"type": "object", "properties": properties, "required": [*properties]}


# An object with a quote and its line is checked against the document, and linked to it.
QUOTE = {
    "quote": {"type": "string", "title": _("Quote"), "minLength": 1, "maxLength": 300},
    "line": {"type": "integer", "title": _("Line"), "minimum": 0},
}
SCORE = {"type": "integer", "title": _("Share in percent"), "minimum": 0, "maximum": 100}
PERSON = {"type": "string", "title": _("Person"), "minLength": 1, "maxLength": 80}

CATEGORY: dict[str, Any] = {
    "slug": "portrait",
    "name": _("Portrait of a chat"),
    "description": _(
        "Six short readings of your chat: how you write, what about, what you planned and what stayed open."
    ),
    "kind": "chat",
    "price": 30_000_000,
    "position": 0,
}

TYPES: list[dict[str, Any]] = [
    {
        "key": "style",
        "name": _("How each of you writes"),
        "prompt": "Describe how each of {people} writes in this chat: tone, length, humour, directness, how they"
        " begin and end. Be kind and concrete, and judge nobody. Give at most one short quote for each person.",
        "keywords": [
            "haha",
            "lol",
            "😂",
            "please",
            "bitte",
            "por favor",
            "thanks",
            "danke",
            "gracias",
        ],
        "schema": form(
            summary=text(_("In short")),
            people=listed(
                _("People"), form(person=PERSON, style=text(_("Style"), 400), **QUOTE), 12, 1
            ),
        ),
        "example": {
            "summary": "Two friends who answer fast and rarely finish a sentence without a joke.",
            "people": [
                {
                    "person": "Anna",
                    "style": "Short messages in a row, many questions, dry humour.",
                    "quote": "so. pizza or thinking?",
                    "line": 0,
                }
            ],
        },
    },
    {
        "key": "topics",
        "name": _("What you talk about"),
        "prompt": "Name the main topics of this chat, from the most to the least frequent, each with an estimate of"
        " its share of the messages and one sentence on what is said about it.",
        "keywords": [],
        "schema": form(
            topics=listed(
                _("Topics"),
                form(
                    topic={"type": "string", "title": _("Topic"), "minLength": 1, "maxLength": 80},
                    share=SCORE,
                    about=text(_("About"), 300),
                ),
                8,
                1,
            ),
        ),
        "example": {
            "topics": [
                {
                    "topic": "Weekend plans",
                    "share": 40,
                    "about": "Where to meet, and who brings the food.",
                },
                {"topic": "Work", "share": 25, "about": "Deadlines, and a new colleague."},
            ]
        },
    },
    {
        "key": "moods",
        "name": _("Moods over time"),
        "prompt": "Describe how the mood of this chat changed between {first_day} and {last_day}. Describe what the"
        " texts show, with care: make no diagnosis, and no claim about the health or the feelings of a person that"
        " nobody wrote. Say so when the messages say little about moods.",
        "keywords": [
            "happy",
            "sad",
            "angry",
            "sorry",
            "glücklich",
            "traurig",
            "wütend",
            "leid",
            "feliz",
            "triste",
        ],
        "schema": form(
            summary=text(_("In short")),
            periods=listed(
                _("Periods"),
                form(
                    period={
                        "type": "string",
                        "title": _("Period"),
                        "minLength": 1,
                        "maxLength": 60,
                    },
                    mood=text(_("Mood"), 300),
                    **QUOTE,
                ),
                8,
            ),
        ),
        "example": None,
    },
    {
        "key": "plans",
        "name": _("Plans you made"),
        "prompt": "List the plans and agreements of this chat: meetings, trips, purchases, promises. Say of each"
        " whether the chat shows that it happened. List none that is only your guess.",
        "keywords": [
            "tomorrow",
            "weekend",
            "meet",
            "book",
            "morgen",
            "treffen",
            "mañana",
            "quedamos",
            "غدا",
        ],
        "schema": form(
            plans=listed(
                _("Plans"),
                form(
                    plan=text(_("Plan"), 200),
                    outcome={
                        "type": "string",
                        "title": _("Outcome"),
                        "enum": [_("happened"), _("cancelled"), _("unknown")],
                    },
                    **QUOTE,
                ),
                12,
            ),
        ),
        "example": None,
    },
    {
        "key": "questions",
        "name": _("Questions that stayed open"),
        "prompt": "List questions in this chat that nobody answered, as far as the passages show, with who asked."
        " Leave out greetings and rhetorical questions.",
        "keywords": ["?", "؟", "when", "why", "wann", "warum", "cuándo", "por qué"],
        "schema": form(
            questions=listed(
                _("Questions"),
                form(person=PERSON, question=text(_("Question"), 200), **QUOTE),
                12,
            ),
        ),
        "example": None,
    },
    {
        "key": "moments",
        "name": _("Moments to remember"),
        "prompt": "Choose moments of this chat that its people may like to remember: funny, kind or important ones."
        " Quote the message that shows each best. Choose nothing that would shame somebody.",
        "keywords": [
            "😂",
            "❤️",
            "love",
            "congratulations",
            "Glückwunsch",
            "felicidades",
            "remember",
            "weißt du noch",
        ],
        "schema": form(
            moments=listed(_("Moments"), form(moment=text(_("Moment"), 300), **QUOTE), 8),
        ),
        "example": {
            "moments": [
                {
                    "moment": "The cat joins the video call and is voted chair of the meeting.",
                    "quote": "the motion is carried. she is asleep on it",
                    "line": 0,
                }
            ]
        },
    },
]
