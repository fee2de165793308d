"""Forms of the chat pages, and the idempotency key that they carry."""

from __future__ import annotations

import re
from uuid import UUID

from django import forms
from django.conf import settings
from msgspec import UNSET

from chat.conversations.offers import Choice
from chat.errors import ChatError
from chat.models import Conversation, new_id
from chatproject.lib.http import Request


class MessageForm(forms.Form):
    """A message being written. `runs.start` validates it, with the same errors at every entry point."""

    text = forms.CharField(
        required=False,
        strip=False,
        widget=forms.Textarea(
            attrs={
                "class": "composer-text",
                "dir": "auto",
                "rows": 1,
                "placeholder": "Write a message",
                "autocomplete": "off",
                "enterkeyhint": "enter",
            }
        ),
    )
    # The idempotency key: a form that is posted twice (a double click, a reload) has one effect.
    client_id = forms.CharField(required=False, widget=forms.HiddenInput)

    # The picker's; a form without one of them leaves it as the conversation has it.
    model = forms.CharField(required=False)
    effort = forms.CharField(required=False)
    temperature = forms.CharField(required=False)
    assistant = forms.CharField(required=False)

    max_characters = settings.TEXT_MAX_CHARACTERS

    def clean_text(self) -> str:
        # Browsers post line ends as CR LF.
        text: str = self.cleaned_data["text"]
        return text.replace("\r\n", "\n")

    def clean_client_id(self) -> str:
        return self.cleaned_data["client_id"] or new_client_id()

    @property
    def choice(self) -> Choice:
        """The model and settings that were posted, each as `Choice` has it.

        An empty effort or temperature is the default. Raises ChatError `model_unavailable` or `bad_setting`.
        """
        posted = self.cleaned_data
        return Choice(
            model_id=row_id(posted["model"]) if posted["model"] else UNSET,
            effort=posted["effort"] if "effort" in self.data else UNSET,
            temperature=_temperature(posted["temperature"])
            if "temperature" in self.data
            else UNSET,
            assistant_id=row_id(posted["assistant"]) if posted["assistant"] else None,
        )


def row_id(text: str) -> int:
    """Return the key of a model or assistant from a form. Raises ChatError `model_unavailable`."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ChatError("model_unavailable")
    return int(text)


def posted_model(request: Request) -> int | None:
    """Return the key of the model that was posted, None without one. Raises ChatError `model_unavailable`."""
    text = request.POST.get("model", "")
    return row_id(text) if text else None


def posted_attachments(request: Request) -> list[UUID]:
    """Return the ids of attachments that were posted. Raises ChatError `file_missing` for other text."""
    try:
        return [UUID(one) for one in request.POST.getlist("attachments")]
    except ValueError as error:
        raise ChatError("file_missing") from error


def _temperature(text: str) -> float | None:
    try:
        return float(text) if text.strip() else None  # offers.apply_settings checks the range
    except ValueError as error:
        raise ChatError("bad_setting") from error


class TitleForm(forms.Form):
    """The new title of a conversation."""

    title = forms.CharField(max_length=Conversation._meta.get_field("title").max_length)

    def clean_title(self) -> str:
        title: str = self.cleaned_data["title"]
        return " ".join(title.split())


def new_client_id() -> str:
    """Return a new idempotency key for a form or a program."""
    return str(new_id())
