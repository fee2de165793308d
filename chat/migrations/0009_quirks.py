from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('chat', '0008_environment_provider'),
    ]

    operations = [
        migrations.AddField(
            model_name='languagemodel',
            name='quirks',
            field=models.JSONField(blank=True, db_default={}, default=dict, help_text='What its server refuses, one for each line, such as temperature: left out. Replies add what they meet; remove a line, and the next reply tries again.'),
        ),
    ]
