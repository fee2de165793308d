from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('chat', '0005_deleted_chats'),
    ]

    operations = [
        migrations.AddField(
            model_name='run',
            name='error_cause',
            field=models.CharField(blank=True, db_default='', default='', help_text="The kind of a provider's failure: key, quota, address, busy …", max_length=20),
        ),
    ]
