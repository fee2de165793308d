from __future__ import annotations

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

import chat.models.base


class Migration(migrations.Migration):
    dependencies = [
        ("chat", "0034_bytes_of_imports"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Webhook",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=chat.models.base.new_id,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("name", models.CharField(max_length=60)),
                ("url", models.CharField(max_length=1000)),
                ("host", models.CharField(max_length=260)),
                ("events", models.JSONField(default=list)),
                (
                    "includes_text",
                    models.BooleanField(
                        default=False, help_text="Whether `run.done` has the text of the reply."
                    ),
                ),
                ("active", models.BooleanField(default=True)),
                ("secret", models.TextField(help_text="Encrypted.")),
                (
                    "old_secret",
                    models.TextField(
                        blank=True,
                        default="",
                        help_text="The one before, encrypted, until old_secret_until.",
                    ),
                ),
                ("old_secret_until", models.DateTimeField(blank=True, null=True)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("failing_since", models.DateTimeField(blank=True, null=True)),
                (
                    "disabled",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("failing", "Its deliveries failed for days."),
                            ("gone", "It answered that it no longer exists (410)."),
                            ("staff", "The operators of this site switched it off."),
                        ],
                        default="",
                        max_length=8,
                    ),
                ),
                ("disabled_at", models.DateTimeField(blank=True, null=True)),
                (
                    "owner",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="webhooks",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "ordering": ["-id"],
                "default_permissions": ["view", "change"],
            },
        ),
        migrations.CreateModel(
            name="WebhookDelivery",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=chat.models.base.new_id,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("event", models.CharField(max_length=20)),
                ("run", models.UUIDField(null=True)),
                ("body", models.TextField()),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("waiting", "Waiting"),
                            ("queued", "Queued"),
                            ("sending", "Being sent"),
                            ("delivered", "Delivered"),
                            ("failed", "Failed"),
                        ],
                        default="waiting",
                        max_length=9,
                    ),
                ),
                ("attempts", models.PositiveSmallIntegerField(default=0)),
                ("due_at", models.DateTimeField()),
                ("created_at", models.DateTimeField()),
                ("attempted_at", models.DateTimeField(null=True)),
                ("response_status", models.PositiveSmallIntegerField(null=True)),
                ("response_body", models.TextField(default="")),
                ("error", models.CharField(default="", max_length=300)),
                (
                    "webhook",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="deliveries",
                        to="chat.webhook",
                    ),
                ),
            ],
            options={
                "ordering": ["-id"],
                "default_permissions": (),
                "indexes": [
                    models.Index(fields=["webhook", "-id"], name="webhook_log"),
                    models.Index(fields=["created_at"], name="webhook_delivery_age"),
                    models.Index(
                        condition=models.Q(("status__in", ["waiting", "queued", "sending"])),
                        fields=["due_at"],
                        name="webhook_delivery_open",
                    ),
                    models.Index(
                        condition=models.Q(("status", "waiting")),
                        fields=["webhook", "due_at"],
                        name="webhook_delivery_waiting",
                    ),
                ],
            },
        ),
    ]
