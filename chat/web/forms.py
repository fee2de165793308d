"""Forms of the chat pages, and the idempotency key that they carry."""

from __future__ import annotations

from django import forms
from django.conf import settings

from chat.models import Conversation, new_id


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

    max_characters = settings.TEXT_MAX_CHARACTERS

    def clean_text(self) -> str:
        # Browsers post line ends as CR LF.
        text: str = self.cleaned_data["text"]
        return text.replace("\r\n", "\n")

    def clean_client_id(self) -> str:
        return self.cleaned_data["client_id"] or new_client_id()


class TitleForm(forms.Form):
    """The new title of a conversation."""

    title = forms.CharField(max_length=Conversation._meta.get_field("title").max_length)

    def clean_title(self) -> str:
        title: str = self.cleaned_data["title"]
        return " ".join(title.split())


def new_client_id() -> str:
    """Return a new idempotency key for a form or a program."""
    return str(new_id())
