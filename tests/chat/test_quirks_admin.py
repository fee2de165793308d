"""Staff read and edit what a model's server refuses, as lines."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from chat.models import LanguageModel, Provider
from tests.support.people import assistant

__all__ = ["assistant"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

LEARNED = {
    "cap": {"value": "max_completion_tokens", "learned": "2026-11-30T03:12:45+00:00"},
    "temperature": {"value": "left out", "learned": "2026-11-29T23:00:00+00:00"},
}
LINES = "cap: max_completion_tokens (2026-11-30 03:12)\ntemperature: left out (2026-11-29 23:00)"


@pytest.fixture
def model(assistant) -> LanguageModel:
    provider = Provider.objects.create(name="Environment")
    LanguageModel.objects.update(quirks=LEARNED, provider=provider)
    return LanguageModel.objects.get()


class Form:
    """The page of a model, posted as a browser would."""

    def __init__(self, client, model: LanguageModel) -> None:
        self._client, self._model = client, model
        self._url = reverse("admin:chat_languagemodel_change", args=[model.pk])

    def fields(self) -> dict[str, object]:
        form = self._client.get(self._url).context["adminform"].form
        return {name: form[name].value() or "" for name in form.fields}

    def post(self, lines: str) -> str:
        """Return the page that is shown again, or "" when the model was saved."""
        page = self._client.post(self._url, self.fields() | {"quirks": lines})
        self._model.refresh_from_db()
        return "" if page.status_code == 302 else page.content.decode()


@pytest.fixture
def form(admin_client, model) -> Form:
    return Form(admin_client, model)


def test_quirks_are_shown_with_their_time(form):
    assert form.fields()["quirks"] == LINES


def test_unchanged_form_keeps_quirks(form, model):
    assert form.post(LINES.replace("\n", "\r\n")) == ""
    assert {subject: one["value"] for subject, one in model.quirks.items()} == {
        "cap": "max_completion_tokens",
        "temperature": "left out",
    }
    assert form.fields()["quirks"] == LINES


def test_lines_are_removed_and_added(form, model):
    assert form.post("\n  longest reply: 4096 \n\ntemperature: left out (2026-11-29 23:00)") == ""

    assert [*model.quirks] == ["temperature", "longest reply"]  # as Postgres orders them
    assert model.quirks["longest reply"]["value"] == "4096"
    age = timezone.now() - datetime.fromisoformat(model.quirks["longest reply"]["learned"])
    assert timedelta(seconds=-1) <= age < timedelta(minutes=1)


def test_empty_field_forgets_all(form, model):
    assert form.post("") == ""
    assert model.quirks == {}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("temperature", "is not a quirk"),
        ("temperature: 0.5", "is not a quirk"),
        ("model: left out", "is not a quirk"),
        ("<b>: left out", "is not a quirk"),
        ("temperature: left out (yesterday)", "is not a time such as"),
        ("top_p: left out\ntop_p: left out", "two lines"),
        ("\n".join(f"field_{number}: left out" for number in range(51)), "more than 50"),
    ],
)
def test_wrong_line_is_refused_and_kept(form, model, lines, words):
    page = form.post(lines)

    assert words in page
    assert lines.splitlines()[0].replace("<", "&lt;").replace(">", "&gt;") in page
    assert model.quirks == LEARNED


def test_entries_of_other_releases_do_no_harm(form, model):
    LanguageModel.objects.update(
        quirks=LEARNED | {"cap": 7, "x": {"value": "y"}, "top_k": {"value": "left out"}}
    )

    assert form.fields()["quirks"] == "top_k: left out\ntemperature: left out (2026-11-29 23:00)"
