"""Static files of a served web process."""

from __future__ import annotations

import http.client
from contextlib import closing

import pytest

from tests.support.programs import PATIENCE
from tests.support.stack import Stack

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def test_files_are_served_without_being_collected(tmp_path):
    variables = {"STATIC_MANIFEST": "0", "STATIC_ROOT": str(tmp_path / "nothing")}
    with Stack(tmp_path, provider_url="http://127.0.0.1:9/v1", environment=variables) as stack:
        stack.start("web")
        client = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=PATIENCE)
        with closing(client):
            client.request("GET", "/static/css/base.css")
            assert client.getresponse().status == 200
