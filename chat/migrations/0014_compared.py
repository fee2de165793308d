from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('chat', '0013_search'),
    ]

    operations = [
        migrations.AddField(
            model_name='conversation',
            name='compared',
            field=models.UUIDField(blank=True, editable=False, help_text='The message whose replies are compared, until one of them is chosen.', null=True),
        ),
    ]
