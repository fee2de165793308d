# The plural of invoice addresses, for the admin.

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("billing", "0007_invoice")]

    operations = [
        migrations.AlterModelOptions(
            name="invoiceaddress",
            options={"ordering": ["id"], "verbose_name_plural": "invoice addresses"},
        )
    ]
