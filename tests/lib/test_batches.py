from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest
import redis
from django.db import OperationalError

from chatproject.lib.batches import MAX_PAUSE, SetAside, apart
from chatproject.lib.db import MoneyBusy

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROW_ERRORS = (ValueError("x"), redis.ResponseError("WRONGTYPE"), MoneyBusy("locked"))
OUTAGES = (redis.ConnectionError("x"), redis.OutOfMemoryError("x"), OperationalError("x"))


@pytest.mark.parametrize("error", ROW_ERRORS, ids=repr)
def test_error_of_a_row_is_logged(caplog, error):
    with apart("row 7"):
        raise error
    [record] = caplog.records
    assert "row 7" in record.getMessage()
    assert bool(record.exc_info) is not isinstance(error, MoneyBusy)


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_outage_of_a_server_is_raised(error):
    set_aside = SetAside()
    for context in (apart("row"), set_aside.apart(1, "row", NOW)):
        with pytest.raises(type(error)), context:
            raise error
    assert set_aside.is_due(1, NOW)


def test_row_set_aside_is_logged_once(caplog):
    caplog.set_level(logging.WARNING)
    set_aside, now = SetAside(), NOW
    pauses: list[timedelta] = []
    for _ in range(12):
        with set_aside.apart(7, "row 7", now):
            raise ValueError("x")
        before = now
        while not set_aside.is_due(7, now):
            now += timedelta(seconds=1)
        pauses.append(now - before)
    assert len(caplog.records) == 1
    assert pauses[:3] == [timedelta(seconds=10), timedelta(seconds=20), timedelta(seconds=40)]
    assert pauses[-1] == MAX_PAUSE
    with set_aside.apart(7, "row 7", now):
        pass
    with set_aside.apart(7, "row 7", now):
        raise ValueError("x")
    assert len(caplog.records) == 2
    set_aside.forget_others(set())
    assert set_aside.is_due(7, now)
