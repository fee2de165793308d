"""Reports problems at the start of a worker, which imports it before its first job."""

from __future__ import annotations

from chatproject.ops import start_report

start_report.start()
