"""Money that went back beyond an order's price, and the number of postings of each claim."""

from __future__ import annotations

from django.db import migrations, models

POSTINGS = "How often credits were taken or returned for it."


class Migration(migrations.Migration):
    dependencies = [("billing", "0004_one_index_of_user")]

    operations = [
        migrations.AddField(
            "order",
            "lost_minor",
            models.PositiveBigIntegerField(
                "lost",
                db_default=0,
                default=0,
                help_text="Money that went back beyond the price, by refunds and disputes together.",
            ),
        ),
        migrations.AddField(
            "refund",
            "postings",
            models.PositiveIntegerField(db_default=0, default=0, help_text=POSTINGS),
        ),
        migrations.AddField(
            "dispute",
            "postings",
            models.PositiveIntegerField(db_default=0, default=0, help_text=POSTINGS),
        ),
    ]
