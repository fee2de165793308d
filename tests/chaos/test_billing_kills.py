from __future__ import annotations

import pytest

from tests.chaos.conftest import output_of


@pytest.mark.timeout(120)
def test_ledger_survives_kills_and_a_crash():
    output = output_of("tests.chaos.billing_kills", "--rounds", "5")
    assert "15 processes killed, Postgres shut down 1 times" in output
