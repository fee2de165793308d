"""Invoices and credit notes as they were issued, and buyers' names and addresses."""

from __future__ import annotations

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

ID = models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0006_provider_request"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField(
            "order",
            "buyer_name",
            models.CharField(blank=True, db_default="", default="", max_length=200),
        ),
        migrations.AddField(
            "order", "buyer_address", models.TextField(blank=True, db_default="", default="")
        ),
        migrations.AddField(
            "order",
            "buyer_tax_id",
            models.CharField(blank=True, db_default="", default="", max_length=100),
        ),
        migrations.AddField(
            "order",
            "tax_rate",
            models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="As printed: 19 %.",
                max_length=100,
            ),
        ),
        migrations.CreateModel(
            "InvoiceAddress",
            [
                ("id", ID),
                (
                    "name",
                    models.CharField(
                        blank=True, max_length=200, verbose_name="name or company"
                    ),
                ),
                ("address", models.TextField(blank=True, max_length=1000)),
                (
                    "tax_id",
                    models.CharField(blank=True, max_length=100, verbose_name="tax number"),
                ),
                (
                    "user",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="invoice_address",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={"ordering": ["id"]},
        ),
        migrations.CreateModel(
            "Invoice",
            [
                ("id", ID.clone()),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("invoice", "Invoice"),
                            ("credit_note", "Credit Note"),
                            ("cancellation", "Cancellation"),
                        ],
                        max_length=12,
                    ),
                ),
                (
                    "position",
                    models.PositiveIntegerField(help_text="Within the order; 0 is the invoice."),
                ),
                ("number", models.CharField(max_length=40, unique=True)),
                ("issued_on", models.DateField()),
                ("amount_minor", models.PositiveBigIntegerField()),
                ("tax_minor", models.PositiveBigIntegerField()),
                ("tax_rate", models.CharField(blank=True, max_length=100)),
                ("currency", models.CharField(max_length=3)),
                ("content", models.JSONField()),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "order",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="invoices",
                        to="billing.order",
                    ),
                ),
                (
                    "refund",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="invoices",
                        to="billing.refund",
                    ),
                ),
            ],
            options={
                "ordering": ["order", "position"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=["order", "position"], name="invoice_position_once"
                    ),
                    models.UniqueConstraint(
                        fields=["refund", "kind"], name="invoice_once_per_refund"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            kind__in=["invoice", "credit_note", "cancellation"]
                        ),
                        name="invoice_kind_known",
                    ),
                ],
            },
        ),
        migrations.RunSQL(
            "CREATE TRIGGER billing_invoice_append_only BEFORE UPDATE OR DELETE ON billing_invoice"
            " FOR EACH ROW EXECUTE FUNCTION billing_refuse_change()",
            "DROP TRIGGER billing_invoice_append_only ON billing_invoice",
        ),
    ]
