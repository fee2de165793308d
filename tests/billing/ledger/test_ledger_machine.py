"""The ledger against its model; LEDGER_EXAMPLES=10000 makes a long run."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.billing.ledger.ledger_machine import LedgerMachine

EXAMPLES = int(os.environ.get("LEDGER_EXAMPLES", "15"))


@pytest.mark.parametrize("examples", [EXAMPLES, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.timeout(60 + max(EXAMPLES, 200) * 5)
@pytest.mark.django_db(transaction=True)
def test_random_calls_agree_with_the_model(examples):
    run_state_machine_as_test(LedgerMachine, settings=machine_settings(examples))


def machine_settings(examples: int, **options: Any) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )
