"""The access log's wrapper: metrics by part of the site, and slow requests."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from chatproject import serve
from chatproject.lib import metrics


async def request(path: str, status: int | None = 200, kind: str = "http") -> None:
    """Let a request pass through; without a status its client hangs up first."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if status is not None:
            await send({"type": "http.response.start", "status": status})

    async def nothing(*_: Any) -> Any:
        return None

    scope = {"type": kind, "method": "GET", "raw_path": path.encode()}
    await serve.log_access(application)(scope, nothing, nothing)


@pytest.mark.parametrize(
    ("path", "area"),
    [
        ("/", "chat"),
        ("/c/new/", "chat"),
        ("/admin/", "admin"),
        ("/adminx/", "chat"),
        ("/static/js/a.js", "static"),
        ("/metrics", "metrics"),
        ("/health/ready", "health"),
        ("/nowhere/admin/", "chat"),
        ("*", "chat"),
    ],
)
async def test_requests_are_counted_by_area(path, area):
    counted = metrics.HTTP_REQUESTS.labels(area, 404)._value
    before = counted.get()
    await request(path, 404)
    assert counted.get() == before + 1


async def test_lost_client_has_no_status():
    counted = metrics.HTTP_REQUESTS.labels("chat", "-")._value
    before = counted.get()
    await request("/chats/", None)
    assert counted.get() == before + 1


async def test_slow_request_warns_without_access_log(caplog, monkeypatch):
    monkeypatch.setattr(serve.access, "disabled", True)
    caplog.set_level(logging.INFO)
    await request("/chats/")
    assert caplog.records == []
    monkeypatch.setattr(serve, "SLOW_REQUEST", 0.0)
    await request("/chats/")
    await request("/ws/v1/", kind="websocket")
    [record] = caplog.records
    assert (record.levelname, record.name) == ("WARNING", "chatproject.serve")
    assert record.getMessage().startswith("slow request: GET /chats/ 200")
