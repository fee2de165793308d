"""Staff read and edit what a model's server refuses, as lines."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from chat.models import LanguageModel, Provider
from tests.support.html_forms import posted_form
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

    def fields(self) -> dict[str, str]:
        return posted_form(self._client.get(self._url))

    def post(self, lines: str, opened: dict[str, str] | None = None) -> str:
        """Return the page that is shown again, or "" when the model was saved."""
        page = self._client.post(self._url, (opened or self.fields()) | {"quirks": lines})
        self._model.refresh_from_db()
        return "" if page.status_code == 302 else page.content.decode()


@pytest.fixture
def form(admin_client, model) -> Form:
    return Form(admin_client, model)


def test_quirks_are_shown_with_their_time(form):
    assert form.fields()["quirks"] == LINES.replace("\n", "\r\n")


def test_unchanged_form_keeps_quirks(form, model):
    assert form.post(LINES.replace("\n", "\r\n")) == ""
    assert model.quirks == LEARNED


def test_lines_are_removed_and_added(form, model):
    assert form.post("\n  longest reply: 4096 \n\ntemperature: left out (2026-11-29 23:00)") == ""

    assert [*model.quirks] == ["temperature", "longest reply"]  # as Postgres orders them
    assert model.quirks["longest reply"]["value"] == "4096"
    age = timezone.now() - datetime.fromisoformat(model.quirks["longest reply"]["learned"])
    assert timedelta(seconds=-1) <= age < timedelta(minutes=1)


def test_empty_field_forgets_all(form, model):
    assert form.post("") == ""
    assert model.quirks == {}


def test_old_form_keeps_what_was_learned_meanwhile(form, model):
    opened = form.fields()
    learned = {"top_p": {"value": "left out", "learned": "2026-11-30T04:00:00+00:00"}}
    LanguageModel.objects.update(quirks=LEARNED | learned)

    assert form.post(LINES, opened | {"name": "Renamed"}) == ""
    assert (model.name, model.quirks) == ("Renamed", LEARNED | learned)
    # A line that was removed in the old form is removed, and no other.
    assert form.post(LINES.splitlines()[0], opened | {"name": "Renamed"}) == ""
    assert [*model.quirks] == ["cap", "top_p"]


def test_line_changed_by_both_is_refused_once(form, model):
    LanguageModel.objects.update(quirks={"longest reply": {"value": "4096", "learned": ""}})
    opened = form.fields()
    LanguageModel.objects.update(quirks={"longest reply": {"value": "2048", "learned": ""}})

    page = form.post("longest reply: 8192", opened)

    assert "Changed meanwhile by others, to: longest reply: 2048" in page
    assert "longest reply: 8192" in page
    assert 'name="initial-quirks" value="longest reply: 2048"' in page
    assert form.post("longest reply: 8192", form.fields()) == ""
    assert model.quirks["longest reply"]["value"] == "8192"


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

    assert form.fields()["quirks"] == "top_k: left out\r\ntemperature: left out (2026-11-29 23:00)"
