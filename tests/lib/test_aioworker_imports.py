"""What a worker imports before its first job."""

from __future__ import annotations

import sys

import pytest
import redis
from rq.queue import Queue
from rq.serializers import JSONSerializer

from tests.lib.aioworker_guest import GuestWorker


def test_a_worker_imports_what_its_jobs_need_before_the_first_one(
    valkey_url, settings, tmp_path, monkeypatch
):
    (tmp_path / "needed_by_jobs.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    settings.WORKER_IMPORTS = ["needed_by_jobs"]
    with redis.Redis.from_url(valkey_url) as connection:
        queue = Queue("empty", connection=connection, serializer=JSONSerializer)
        GuestWorker([queue], connection=connection, serializer=JSONSerializer).work(burst=True)
    assert sys.modules.pop("needed_by_jobs", None) is not None


def test_a_module_that_is_not_there_ends_the_worker_at_once(valkey_url, settings):
    settings.WORKER_IMPORTS = ["no_such_module"]
    with redis.Redis.from_url(valkey_url) as connection:
        queue = Queue("empty", connection=connection, serializer=JSONSerializer)
        worker = GuestWorker([queue], connection=connection, serializer=JSONSerializer)
        with pytest.raises(ModuleNotFoundError):
            worker.work(burst=True)
