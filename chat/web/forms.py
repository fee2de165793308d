from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings

from chat.models import Conversation, new_id


class MessageForm(forms.Form):
    """What one writes. Whether it can be sent is for runs to say, with the same words everywhere."""

    text = forms.CharField(
        required=False,
        strip=False,
        widget=forms.Textarea(
            attrs={
                "class": "composer-text",
                "rows": 1,
                "placeholder": "Write a message",
                "autocomplete": "off",
                "enterkeyhint": "enter",
            }
        ),
    )
    # A form that is sent twice (a double click, a reload) has one effect.
    client_id = forms.CharField(required=False, widget=forms.HiddenInput)

    most = settings.TEXT_MAX_CHARACTERS

    def clean_text(self) -> str:
        # Browsers post line ends as CR LF, whatever was typed.
        text: str = self.cleaned_data["text"]
        return text.replace("\r\n", "\n")

    def clean_client_id(self) -> str:
        return self.cleaned_data["client_id"] or new_client_id()


class TitleForm(forms.ModelForm):  # type: ignore[type-arg] # not generic at run time
    class Meta:
        model = Conversation
        fields = ["title"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["title"].required = True

    def clean_title(self) -> str:
        return " ".join(self.cleaned_data["title"].split())


def new_client_id() -> str:
    """A name for what one form or program does, so that doing it again has one effect."""
    return str(new_id())
