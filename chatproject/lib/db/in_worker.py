"""Limits the statements of a worker's plain jobs; workers import it before their first job."""

from __future__ import annotations

from chatproject.lib.db import limits

limits.default = limits.JOB_STATEMENT
