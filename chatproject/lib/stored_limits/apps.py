from __future__ import annotations

from django.apps import AppConfig


class StoredLimitsConfig(AppConfig):
    name = "chatproject.lib.stored_limits"
    label = "stored_limits"
    verbose_name = "Stored limits"
