"""The manifest, the service worker and the offline page."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.robotparser import RobotFileParser

import pytest
from django.contrib.staticfiles import finders
from django.test import Client

from accounts.models import User

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey_url")]


def config(client: Client) -> dict[str, Any]:
    """The configuration at the head of the service worker's script."""
    response = client.get("/service-worker.js")
    assert response["Content-Type"] == "text/javascript"
    assert "no-store" in response["Cache-Control"]
    found: dict[str, Any] = json.loads(
        response.content.decode().split(";\n")[0].removeprefix("const CONFIG = ")
    )
    return found


def test_manifest_describes_an_installable_app(client: Client, settings):
    settings.SITE_NAME = "School chat"
    manifest = client.get("/manifest.webmanifest").json()
    assert (manifest["name"], manifest["display"], manifest["lang"]) == (
        "School chat",
        "standalone",
        "en",
    )
    kinds = {(icon["sizes"], icon["purpose"]) for icon in manifest["icons"]}
    assert kinds >= {("192x192", "any"), ("512x512", "any"), ("512x512", "maskable")}
    for icon in manifest["icons"]:
        assert finders.find(icon["src"].removeprefix("/static/")), icon
    client.force_login(User.objects.create_user("reader@example.org", "x"))
    for shortcut in manifest["shortcuts"]:
        assert client.get(shortcut["url"]).status_code == 200, shortcut


def test_service_worker_stores_the_offline_page_alone(client: Client, settings):
    found = config(client)
    page = client.get(found["page"])
    assert "no-store" in page["Cache-Control"]
    assert set(found["files"]) == set(
        re.findall(r'(?:href|src)="(/static/[^"]+)"', page.content.decode())
    )
    for file in (*found["files"], found["icon"], found["badge"]):
        assert finders.find(file.removeprefix("/static/")), file
    assert found["isOn"] is True
    settings.SERVICE_WORKER = False
    assert config(client)["isOn"] is False
    assert "service-worker" not in client.get("/accounts/login/").content.decode()


def test_files_of_the_root_are_served(client: Client):
    icon = client.get("/favicon.ico")
    assert (icon.status_code, icon["Content-Type"]) == (200, "image/x-icon")
    assert icon.getvalue().startswith(b"\0\0\1\0")
    crawler = RobotFileParser()
    crawler.parse(client.get("/robots.txt").getvalue().decode().splitlines())
    for path in ("/s/token/", "/terms/", "/accounts/login/", "/static/css/base.css"):
        assert crawler.can_fetch("*", path), path
    for path in (
        "/",
        "/c/1/",
        "/chats/",
        "/settings/",
        "/accounts/keys/",
        "/admin/",
        "/api/v1/",
        "/billing/",
    ):
        assert not crawler.can_fetch("*", path), path
