"""Problems of the installation in the logs of starting processes."""

from __future__ import annotations

from functools import partial

import pytest

from chatproject.ops import doctor, start_report
from tests.support.programs import wait_until
from tests.support.stack import Stack

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

NO_MODEL = (
    "catalogue: there is no enabled model, so no user can chat. Run manage.py create_catalogue"
)


def has_reported(stack: Stack, name: str) -> bool:
    return NO_MODEL in stack.log(name)


def test_each_process_reports_problems_at_its_start(tmp_path):
    with Stack(tmp_path, provider_url="http://127.0.0.1:9/v1") as stack:
        stack.start("web", "worker", "clock")
        for name in ("web", "worker", "clock"):
            wait_until(partial(has_reported, stack, name), f"{name} reports it")
            assert stack.log(name).count("chatproject.ops.start_report: catalogue: ") == 1
            assert "migrations" not in stack.log(name)
        assert "listening on http" in stack.log("web").partition(NO_MODEL)[0]


def test_report_outlives_an_unreachable_postgres(settings, caplog, monkeypatch):
    """A start is neither delayed nor stopped."""
    monkeypatch.setitem(settings.DATABASES["default"], "PORT", "9")
    started = start_report.start([doctor.Check("x", lambda: 1 / 0), doctor.AT_START[0]])  # type: ignore[arg-type,return-value]
    assert started.daemon
    started.join(30)
    assert not started.is_alive()
    assert "x: the check failed: ZeroDivisionError" in caplog.text
