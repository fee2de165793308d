from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0006_language")]

    operations = [
        # Users of earlier releases know the site: their rows take the first default, new ones the second.
        migrations.AddField(
            model_name="user",
            name="hints_hidden",
            field=models.BooleanField(db_default=True, default=False),
        ),
        migrations.AlterField(
            model_name="user",
            name="hints_hidden",
            field=models.BooleanField(db_default=False, default=False),
        ),
    ]
