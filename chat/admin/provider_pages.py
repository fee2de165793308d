"""Pages of staff that ask a provider: its test, and the discovery of its models.

They ask outside of transactions, without a database connection, within 8 s of the 9.5 s that a page
may take, and at most MOST_AT_ONCE at a time in each process: the other threads stay free for pages.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import ImproperlyConfigured, PermissionDenied, ValidationError
from django.db import connections
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_POST

from chat.llm.model_list import NOT_CHAT
from chat.llm.probe import Probe, diagnosis_of, probe
from chat.llm.quirks import NONE, Quirks
from chat.models import LanguageModel, Provider
from chat.models.catalogue import ModelKind
from chatproject.lib import encryption

MOST_AT_ONCE = 2
MODEL_CHARACTERS = 200
LOST = gettext_lazy(
    "The provider's secrets cannot be decrypted: ENCRYPTION_KEYS or SECRET_KEY has changed. Enter the "
    "key, the headers and the proxy again."
)
BUSY = gettext_lazy(
    "Other members of staff are asking providers just now. Try again in a few seconds."
)

_places = threading.BoundedSemaphore(MOST_AT_ONCE)


class Busy(Exception):
    """As many pages as allowed are asking providers."""


@contextmanager
def asking() -> Iterator[None]:
    """Return the page's database connection while a provider is asked. Raises Busy."""
    if not _places.acquire(blocking=False):
        raise Busy
    try:
        connections.close_all()
        yield
    finally:
        _places.release()


def provider_of(request: HttpRequest, pk: str) -> Provider:
    """Return the provider of a page that may change it. Raises PermissionDenied and Http404."""
    if not request.user.has_perm("chat.change_provider"):
        raise PermissionDenied
    try:
        return Provider.objects.get(pk=unquote(pk))
    except (Provider.DoesNotExist, ValueError):
        raise Http404(_("There is no such provider.")) from None


def models_of(provider: Provider) -> QuerySet[LanguageModel]:
    """Return a provider's models; those without a provider belong to the environment's."""
    is_of_it = Q(provider=provider)
    if provider.is_environment:
        is_of_it |= Q(provider=None)
    return LanguageModel.objects.filter(is_of_it)


def context_of(request: HttpRequest, provider: Provider, title: str) -> dict[str, Any]:
    """Return the context that the pages of a provider share."""
    return {
        **admin.site.each_context(request),
        "title": f"{title} {provider}",
        "opts": Provider._meta,
        "provider": provider,
    }


def test(request: HttpRequest, pk: str) -> HttpResponse:
    """Ask for one token and show the answer; a GET shows the form alone."""
    provider = provider_of(request, pk)
    return test_page(request, provider)


def test_page(request: HttpRequest, provider: Provider) -> HttpResponse:
    """Return the page of a provider's test, after a POST with the result."""
    rows = [*models_of(provider).filter(kind=ModelKind.CHAT).order_by("-enabled", "pk")]
    context = context_of(request, provider, _("Test"))
    context["models"] = sorted({row.provider_model for row in rows})
    context["model"] = request.POST.get("model", "").strip()[:MODEL_CHARACTERS]
    if request.method == "POST":
        try:
            found = tested(provider, rows, context["model"])
        except Busy:
            messages.warning(request, BUSY)
        else:
            context["result"] = found
            context["model"] = found.model
            log(request, provider, in_words(found))
    return TemplateResponse(request, "admin/chat/provider/test.html", context)


def tested(provider: Provider, rows: list[LanguageModel], model: str) -> Probe:
    """Return the result of the test of a model, by default the provider's first. Raises Busy."""
    if not model and rows:
        model = rows[0].provider_model
    known = {row.provider_model: Quirks.of(row.quirks) for row in reversed(rows)}
    with asking():
        try:
            if not model:
                diagnosis = diagnosis_of(provider)
                if not diagnosis.is_fine:
                    return Probe(
                        cause=diagnosis.cause,
                        sentence=diagnosis.sentence,
                        suggestion=diagnosis.suggestion,
                        whole=diagnosis.milliseconds,
                    )
                names = [name for name in diagnosis.models if not NOT_CHAT.search(name)]
                if not names:
                    sentence = f"{diagnosis.sentence} Enter the name of a model below to test one."
                    return Probe(cause="model", sentence=sentence, whole=diagnosis.milliseconds)
                model = names[0]
            return probe(provider, model, known.get(model, NONE))
        except encryption.Undecryptable:
            return Probe(model=model, cause="key", sentence=str(LOST))
        except ImproperlyConfigured as error:  # of the variable that has the key
            return Probe(model=model, cause="key", sentence=f"{error}")


def in_words(found: Probe) -> str:
    """Return the result of a test for the admin's log."""
    model = (_(" with the model %(model)s") % {"model": found.model}) if found.model else ""
    if found.is_fine:
        return _("Tested%(model)s: answered in %(whole)s ms.") % {
            "model": model,
            "whole": found.whole,
        }
    return _("Tested%(model)s: failed, cause %(cause)s.") % {"model": model, "cause": found.cause}


def log(request: HttpRequest, provider: Provider, message: str) -> None:
    """Store an action on a provider in the admin's log."""
    admin.site.get_model_admin(Provider).log_change(request, provider, message)


@require_POST
def take_base_url(request: HttpRequest, pk: str) -> HttpResponse:
    """Replace the base URL by the one that the test suggested, and test again."""
    provider = provider_of(request, pk)
    provider_page = reverse("admin:chat_provider_change", args=[provider.pk])
    base_url = request.POST.get("base_url", "")
    before, provider.base_url = provider.base_url, base_url
    try:
        if not before or not base_url:
            raise ValidationError(
                _("The environment's provider has its base URL in OPENAI_BASE_URL.")
            )
        provider.full_clean()
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
        return HttpResponseRedirect(provider_page)
    provider.save(update_fields=["base_url", "updated_at"])
    log(request, provider, f"Changed base URL from {before} to {provider.base_url}, as suggested.")
    messages.success(
        request, (_("The base URL is now %(base_url)s.") % {"base_url": provider.base_url})
    )
    return test_page(request, provider)
