from __future__ import annotations

from tests.support.people import owner

__all__ = ["owner"]
