"""The pages of a user's webhooks: list, settings, secret, and the log of deliveries."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.reauthentication import raise_if_reauthentication_required
from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts.sso import confirmation
from chat import access
from chat.errors import ChatError
from chat.models import Webhook
from chat.web.forms import posted_id
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors
from chat.webhooks import addresses, editing
from chat.webhooks.retries import MAX_ATTEMPTS
from chatproject.lib.http import Request

# Where the session names the webhook whose secret its next page shows, once.
SHOWN_SECRET = "webhook_secret"  # noqa: S105 # a name


def offered_events() -> list[tuple[str, str]]:
    """Return the events that happen on this site: without billing no balance runs low."""
    return [
        (one.value, str(one.label))
        for one in Webhook.Event
        if settings.BILLING or one is not Webhook.Event.CREDITS_LOW
    ]


class WebhookForm(forms.Form):
    """The settings of a webhook."""

    name = forms.CharField(
        max_length=60,
        label=gettext_lazy("Name"),
        help_text=gettext_lazy("Such as the program that receives the messages."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "dir": "auto"}),
    )
    url = forms.CharField(
        max_length=addresses.MAX_CHARACTERS,
        label=gettext_lazy("Address"),
        widget=forms.URLInput(
            attrs={
                "autocomplete": "off",
                "spellcheck": "false",
                "dir": "ltr",
                "placeholder": "https://example.org/hook",
            }
        ),
    )
    events = forms.MultipleChoiceField(
        label=gettext_lazy("Events"),
        choices=offered_events,
        initial=[Webhook.Event.RUN_DONE.value],
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": gettext_lazy("Choose at least one.")},
    )
    includes_text = forms.BooleanField(
        required=False, label=gettext_lazy("Send the text of the reply, too")
    )
    active = forms.BooleanField(
        required=False, initial=True, label=gettext_lazy("On: events are sent")
    )

    def clean_url(self) -> str:
        """Return the address. Raises ValidationError for one that cannot be used."""
        url: str = self.cleaned_data["url"]
        try:
            addresses.check(url)
        except addresses.Refused as error:
            raise forms.ValidationError(str(error)) from None
        return url

    @property
    def terms(self) -> editing.Terms:
        """The settings that the form's valid values make."""
        return editing.Terms(**self.cleaned_data)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def webhooks(request: Request) -> HttpResponse:
    """Show the user's webhooks; create the one that a form describes, after the password."""
    if request.method != "POST":
        return _list(request, WebhookForm())
    form = WebhookForm(request.POST)
    if not form.is_valid():
        return _list(request, form, status=400)
    # A session may be borrowed, and a webhook outlives it.
    if refusal := confirmation.refusal(request, request.path):
        return refusal
    raise_if_reauthentication_required(request, app="allauth.account")
    try:
        made = editing.create(request.user, form.terms)
    except editing.TooManyWebhooks:
        sentence = _("You have %(most)s webhooks, the most that are possible. Delete one first.")
        form.add_error(None, sentence % {"most": settings.WEBHOOKS_PER_USER})
        return _list(request, form, status=400)
    request.session[SHOWN_SECRET] = made.pk.hex
    get_adapter(request).send_notification_mail(
        "chat/email/webhook_created", request.user, {"name": made.name, "host": made.host}
    )
    return redirect("chat:webhook", made.pk)


def _list(request: Request, form: WebhookForm, *, status: int = 200) -> HttpResponse:
    found = list(Webhook.objects.filter(owner=request.user))
    context = {
        "page": "settings",
        "form": form,
        "webhooks": found,
        "most": settings.WEBHOOKS_PER_USER,
        "may_add": len(found) < settings.WEBHOOKS_PER_USER,
    }
    return render(request, "chat/webhooks.html", page_context(request) | context, status=status)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def webhook(request: Request, webhook_id: UUID) -> HttpResponse:
    """Show a webhook of the user with the log from ?before=ID on, and store the changes of its form."""
    found = access.webhook(request.user, webhook_id)
    if request.method != "POST":
        names = WebhookForm.base_fields
        return _page(
            request, found, WebhookForm(initial={name: getattr(found, name) for name in names})
        )
    form = WebhookForm(request.POST)
    if not form.is_valid():
        return _page(request, found, form, status=400)
    if form.terms.url != found.url or form.terms.includes_text > found.includes_text:
        if refusal := confirmation.refusal(request, request.path):
            return refusal
        raise_if_reauthentication_required(request, app="allauth.account")
    try:
        editing.change(found, form.terms)
    except ChatError as error:
        if error.code == "not_found":
            raise
        form.add_error("active", error.message)
        return _page(request, found, form, status=400)
    messages.success(request, _("The webhook is saved."))
    return redirect("chat:webhook", found.pk)


def _page(
    request: Request, found: Webhook, form: WebhookForm, *, status: int = 200
) -> HttpResponse:
    before = posted_id(request.GET.get("before", ""))
    secret = None
    if request.session.get(SHOWN_SECRET) == found.pk.hex:
        del request.session[SHOWN_SECRET]
        secret = editing.secret_of(found)
    context = {
        "page": "settings",
        "webhook": found,
        "form": form,
        "log": editing.log(found, before=before),
        "is_newest": before is None,
        "secret": secret,
        "most_attempts": MAX_ATTEMPTS,
    }
    return render(request, "chat/webhook.html", page_context(request) | context, status=status)


@require_POST
@handles_chat_errors
def webhook_secret(request: Request, webhook_id: UUID) -> HttpResponse:
    """Show the secret of a webhook on the next page, after the password; with `rotate` a new one."""
    found = access.webhook(request.user, webhook_id)
    if refusal := confirmation.refusal(request, reverse("chat:webhook", args=[found.pk])):
        return refusal
    raise_if_reauthentication_required(request, app="allauth.account")
    if "rotate" in request.POST:
        editing.rotate(found)
    request.session[SHOWN_SECRET] = found.pk.hex
    return redirect("chat:webhook", found.pk)


@require_POST
@handles_chat_errors
def test_webhook(request: Request, webhook_id: UUID) -> HttpResponse:
    """Send a message `ping` to a webhook, and show its entry of the log."""
    sent = editing.send_test(access.webhook(request.user, webhook_id))
    messages.success(request, _("The test is on its way. Reload this page for its answer."))
    return redirect("chat:delivery", sent.pk)


@require_POST
@handles_chat_errors
def delete_webhook(request: Request, webhook_id: UUID) -> HttpResponse:
    """Delete a webhook of the user with its log."""
    found = access.webhook(request.user, webhook_id)
    editing.delete(found)
    sentence = _("The webhook “%(name)s” is deleted.") % {"name": found.name}
    messages.success(request, sentence)
    return redirect("chat:webhooks")


@require_safe
@never_cache
@handles_chat_errors
def delivery(request: Request, delivery_id: UUID) -> HttpResponse:
    """Show an entry of the log: request, answer, and the next attempt."""
    found = access.webhook_delivery(request.user, delivery_id)
    context: dict[str, Any] = {
        "page": "settings",
        "delivery": found,
        "webhook": found.webhook,
        "body": json.dumps(json.loads(found.body), indent=2, ensure_ascii=False),
        "most_attempts": MAX_ATTEMPTS,
        "omits_text": found.webhook.includes_text and found.run is not None,
    }
    return render(request, "chat/delivery.html", page_context(request) | context)


@require_POST
@handles_chat_errors
def resend_delivery(request: Request, delivery_id: UUID) -> HttpResponse:
    """Send a message of the log once more."""
    found = access.webhook_delivery(request.user, delivery_id)
    editing.resend(found)
    messages.success(request, _("The message is on its way. Reload this page for its answer."))
    return redirect("chat:delivery", found.pk)
