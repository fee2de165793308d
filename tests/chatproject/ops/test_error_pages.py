"""The error pages of a site whose templates cannot be rendered."""

from __future__ import annotations

from django.test import Client


def test_site_before_collectstatic_has_an_error_page(settings, tmp_path, caplog):
    settings.STATIC_ROOT = tmp_path
    settings.STORAGES = settings.STORAGES | {
        "staticfiles": {"BACKEND": "chatproject.lib.staticfiles.ManifestStorage"}
    }
    response = Client(raise_request_exception=False).get("/accounts/login/")
    assert response.status_code == 500
    assert "Something went wrong on our side" in response.content.decode()
    assert "the error page cannot be rendered" in caplog.text
