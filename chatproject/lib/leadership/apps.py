from __future__ import annotations

from django.apps import AppConfig


class LeadershipConfig(AppConfig):
    name = "chatproject.lib.leadership"
    label = "leadership"
    verbose_name = "Leadership"
