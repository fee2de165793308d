"""The category that every site begins with."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from chat.insights import seeds


def store(apps: Any, schema_editor: Any) -> None:
    category = apps.get_model("insights", "Category").objects.create(**seeds.CATEGORY)
    kind = apps.get_model("insights", "InsightType")
    for position, fields in enumerate(seeds.TYPES):
        kind.objects.create(category=category, position=position, **fields)


class Migration(migrations.Migration):
    dependencies = [("insights", "0001_insights")]

    operations = [migrations.RunPython(store, migrations.RunPython.noop)]
