from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.stack import PROJECT


@pytest.mark.timeout(120)
def test_killed_processes_and_a_killed_postgres_leave_the_books_right():
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.billing_kills", "--rounds", "5"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 processes killed, Postgres shut down 1 times" in done.stdout
