from django.db import migrations


def add_environment_provider(apps, schema_editor):
    """Give the models of an earlier release to the environment's provider, which they were asked at."""
    models = apps.get_model('chat', 'LanguageModel').objects.filter(provider=None)
    if models.exists():
        provider, _ = apps.get_model('chat', 'Provider').objects.get_or_create(
            base_url='', defaults={'name': 'Environment'}
        )
        models.update(provider=provider)


class Migration(migrations.Migration):
    # Apart from the change of the tables: Postgres refuses that in a transaction that changed rows.

    dependencies = [
        ('chat', '0007_providers'),
    ]

    operations = [
        migrations.RunPython(add_environment_provider, migrations.RunPython.noop),
    ]
