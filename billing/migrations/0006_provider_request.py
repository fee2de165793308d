"""Requests with idempotency keys, stored before they are sent."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0005_reclaim")]

    operations = [
        migrations.CreateModel(
            "ProviderRequest",
            [
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("provider", models.CharField(max_length=20)),
                (
                    "subject",
                    models.CharField(
                        max_length=60, help_text="What it asks for: `refund:` and an id."
                    ),
                ),
                ("number", models.PositiveIntegerField(help_text="Counts the keys of a subject.")),
                (
                    "params",
                    models.TextField(
                        help_text="JSON as text: jsonb would forget the order, and bodies are compared."
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("closed_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=["provider", "subject", "number"],
                        name="provider_request_number_once",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(closed_at=None),
                        fields=["provider", "subject"],
                        name="provider_request_one_open",
                    ),
                ],
            },
        ),
    ]
