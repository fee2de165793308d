"""Forms of the chat pages, and the idempotency key that they carry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _
from msgspec import UNSET

from chat.conversations import assistants
from chat.conversations.offers import Choice, ProviderOffers
from chat.conversations.projects import Fields
from chat.errors import ChatError
from chat.models import ICONS, Assistant, Conversation, Project, new_id
from chat.models.catalogue import texts_in
from chat.tools.offers import Offer
from chat.web.choices import ICON_WORDS, effort_choices, temperature_choices
from chatproject.lib.http import Request


class MessageForm(forms.Form):
    """A message being written. `runs.start` validates it, with the same errors at every entry point.

    `attached` are the files that it has already, as in `Message.attached`.
    """

    attached: Sequence[dict[str, Any]] = ()

    text = forms.CharField(
        required=False,
        strip=False,
        widget=forms.Textarea(
            attrs={
                "class": "composer-text",
                "dir": "auto",
                "rows": 1,
                "placeholder": _("Write a message"),
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
    project = forms.CharField(required=False)
    temporary = forms.BooleanField(required=False)

    # Whether the text is a stored draft, which the message then empties.
    draft = forms.BooleanField(required=False, widget=forms.HiddenInput)

    max_characters = settings.TEXT_MAX_CHARACTERS
    max_files = settings.ATTACHMENTS_PER_MESSAGE
    max_file_bytes = settings.ATTACHMENT_MAX_BYTES
    paste_characters = settings.PASTE_CHARACTERS

    def clean_text(self) -> str:
        # Browsers post line ends as CR LF.
        text: str = self.cleaned_data["text"]
        return text.replace("\r\n", "\n")

    def clean_client_id(self) -> str:
        return self.cleaned_data["client_id"] or new_client_id()

    @property
    def choice(self) -> Choice:
        """The model and settings that were posted, each as `Choice` has it.

        An empty effort or temperature is the default. Raises ChatError `model_unavailable`,
        `bad_setting` or `not_found`.
        """
        posted = self.cleaned_data
        return Choice(
            model_id=row_id(posted["model"]) if posted["model"] else UNSET,
            effort=posted["effort"] if "effort" in self.data else UNSET,
            temperature=_temperature(posted["temperature"])
            if "temperature" in self.data
            else UNSET,
            assistant_id=row_id(posted["assistant"]) if posted["assistant"] else None,
            project_id=posted_id(posted["project"]),
            temporary=posted["temporary"],
        )


def row_id(text: str) -> int:
    """Return the key of a model or assistant from a form. Raises ChatError `model_unavailable`."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ChatError("model_unavailable")
    return int(text)


def posted_id(text: str) -> UUID | None:
    """Return the id in a form's field, None for an empty one. Raises ChatError `not_found`."""
    try:
        return UUID(text) if text else None
    except ValueError as error:
        raise ChatError("not_found") from error


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


class AssistantForm(forms.Form):
    """A user's own assistant. `values` are the columns for chat.conversations.assistants."""

    name = forms.CharField(label=_("Name"), max_length=60)
    icon = forms.ChoiceField(
        label=_("Icon"),
        choices=list(ICON_WORDS.items()),
        initial=ICONS[0],
        widget=forms.RadioSelect,
    )
    description = forms.CharField(
        label=_("Description"),
        required=False,
        max_length=200,
        help_text=_("What it is for, in one sentence."),
    )
    system_prompt = forms.CharField(
        label=_("Instructions"),
        required=False,
        max_length=assistants.LONGEST_PROMPT,
        widget=forms.Textarea(attrs={"rows": 8, "dir": "auto"}),
        help_text=_(
            "How it should answer, what it should know. The model reads this before every message."
        ),
    )
    suggestions = forms.CharField(
        label=_("Suggestions"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "dir": "auto"}),
        help_text=_("First questions that a new chat offers, one a line. Three of them are shown."),
    )
    model = forms.ChoiceField(label=_("Model"))
    effort = forms.ChoiceField(label=_("Reasoning effort"), required=False)
    temperature = forms.ChoiceField(label=_("Temperature"), required=False)
    tools = forms.MultipleChoiceField(
        label=_("Tools"),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text=_("What the model may do while it answers. Only some models can use tools."),
    )
    shared = forms.BooleanField(
        label=_("Everyone on this site may use it"),
        required=False,
        help_text=_(
            "Others do not see your instructions, but a model may reveal them when it is asked."
        ),
    )

    def __init__(
        self,
        data: Any = None,
        *,
        providers: list[ProviderOffers],
        tools: Sequence[Offer],
        assistant: Assistant | None = None,
    ) -> None:
        super().__init__(data, initial=_initial(assistant) if assistant else None)
        models = [one.model for group in providers for one in group.offers]
        choices: list[Any] = [
            (group.name, [(one.model.pk, one.model.name) for one in group.offers])
            for group in providers
        ]
        if len(choices) == 1:
            choices = choices[0][1]  # the name of the only provider says nothing
        if assistant and assistant.model not in models:
            text = _("%(name)s (not available)") % {"name": assistant.model.name}
            choices.insert(0, (assistant.model_id, text))
            models.append(assistant.model)
        efforts = {effort for model in models for effort in model.offered_efforts}
        stored = "" if assistant is None else self.initial["temperature"]
        for name, values in (
            ("model", choices),
            ("effort", [("", _("Default")), *effort_choices(efforts)]),
            ("temperature", [("", _("Default")), *temperature_choices(stored)]),
            ("tools", [(one.name, one.title) for one in tools]),
        ):
            field = self.fields[name]
            assert isinstance(field, forms.ChoiceField)
            field.choices = values
        if not tools or not (self.initial.get("tools") or any(model.tools for model in models)):
            del self.fields["tools"]
        if not efforts:
            del self.fields["effort"]
        if not settings.ASSISTANT_SHARING:
            del self.fields["shared"]

    def clean_name(self) -> str:
        return " ".join(self.cleaned_data["name"].split())

    def clean_suggestions(self) -> list[str]:
        """Return the lines. Raises ValidationError for too many or too long ones."""
        lines = texts_in(self.cleaned_data["suggestions"].splitlines())
        if len(lines) > assistants.MOST_SUGGESTIONS:
            text = _("These are %(count)s lines. Keep %(most)s or less.")
            raise ValidationError(text % {"count": len(lines), "most": assistants.MOST_SUGGESTIONS})
        for line in lines:
            if len(line) > assistants.LONGEST_SUGGESTION:
                text = _("“%(line)s…” has %(count)s characters. Shorten it to %(most)s.")
                words = {
                    "line": line[:30],
                    "count": len(line),
                    "most": assistants.LONGEST_SUGGESTION,
                }
                raise ValidationError(text % words)
        return lines

    @property
    def values(self) -> dict[str, Any]:
        """The columns of a valid form."""
        cleaned = dict(self.cleaned_data)
        temperature = cleaned.pop("temperature")
        return {
            "reasoning_effort": cleaned.pop("effort", ""),
            "temperature": float(temperature) if temperature else None,
            "model_id": int(cleaned.pop("model")),
            **cleaned,
        }


def _initial(assistant: Assistant) -> dict[str, Any]:
    temperature = assistant.temperature
    return {
        "name": assistant.name,
        "icon": assistant.icon or ICONS[0],
        "description": assistant.description,
        "system_prompt": assistant.system_prompt,
        "suggestions": "\n".join(assistant.first_questions),
        "model": assistant.model_id,
        "effort": assistant.reasoning_effort,
        "temperature": "" if temperature is None else f"{temperature:g}",
        "tools": texts_in(assistant.tools),
        "shared": assistant.shared,
    }


class PromptForm(forms.Form):
    """A prompt of the library. conversations.prompts validates its text further."""

    title = forms.CharField(
        label=_("Title"),
        max_length=80,
        widget=forms.TextInput(attrs={"class": "input", "dir": "auto", "autocomplete": "off"}),
    )
    text = forms.CharField(
        label=_("Text"),
        max_length=settings.TEXT_MAX_CHARACTERS,
        widget=forms.Textarea(attrs={"class": "input", "rows": 5, "dir": "auto"}),
        help_text=_("{{name}} is a variable: it is asked for when the prompt is used."),
    )
    shared = forms.BooleanField(label=_("Share with all users of this site"), required=False)

    def clean_text(self) -> str:
        text: str = self.cleaned_data["text"]
        return text.replace("\r\n", "\n")


class TitleForm(forms.Form):
    """The new title of a conversation."""

    title = forms.CharField(max_length=Conversation._meta.get_field("title").max_length)

    def clean_title(self) -> str:
        title: str = self.cleaned_data["title"]
        return " ".join(title.split())


class ProjectForm(forms.Form):
    """A project's fields. The chosen model and assistant are validated by conversations.projects."""

    name = forms.CharField(
        max_length=Project.NAME_CHARACTERS,
        label=_("Name"),
        widget=forms.TextInput(attrs={"class": "input", "dir": "auto", "autocomplete": "off"}),
        error_messages={"required": _("A project needs a name.")},
    )
    instructions = forms.CharField(
        max_length=Project.INSTRUCTIONS_CHARACTERS,
        required=False,
        label=_("Instructions"),
        help_text=_("The model gets them with each message of the project's chats."),
        widget=forms.Textarea(attrs={"class": "input", "dir": "auto", "rows": 6}),
    )
    model = forms.CharField(required=False)
    assistant = forms.CharField(required=False)

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        return " ".join(name.split())

    def clean_instructions(self) -> str:
        text: str = self.cleaned_data["instructions"]
        return text.replace("\r\n", "\n")

    @property
    def fields_of_project(self) -> Fields:
        """The fields of a valid form. Raises ChatError `model_unavailable`."""
        posted = self.cleaned_data
        return Fields(
            name=posted["name"],
            instructions=posted["instructions"],
            model_id=row_id(posted["model"]) if posted["model"] else None,
            assistant_id=row_id(posted["assistant"]) if posted["assistant"] else None,
        )


def new_client_id() -> str:
    """Return a new idempotency key for a form or a program."""
    return str(new_id())
