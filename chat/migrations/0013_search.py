import logging

import django.contrib.postgres.indexes
import django.contrib.postgres.search
import django.db.models.deletion
from django.conf import settings
from django.db import DatabaseError, migrations, models, transaction

logger = logging.getLogger(__name__)

# Parts of words are found by trigrams. They need an extension, which the owner of a database may create unless
# the server lacks it, and a locale whose letters are not those of ASCII alone. `manage.py doctor` reports both.
TRIGRAMS = "CREATE INDEX chat_search_trigrams ON chat_searchentry USING gin (text gin_trgm_ops)"


def add_trigrams(apps, schema_editor):
    connection = schema_editor.connection
    try:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            cursor.execute("SELECT show_trgm('é') <> '{}'")
            if cursor.fetchone() == (True,):
                cursor.execute(TRIGRAMS)
    except DatabaseError as error:
        logger.warning("the search has no index of trigrams: %s", error)


class Migration(migrations.Migration):
    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
        ('chat', '0012_choice_of_models'),
    ]

    operations = [
        migrations.CreateModel(
            name='SearchPosition',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('message_id', models.UUIDField()),
            ],
        ),
        migrations.CreateModel(
            name='SearchEntry',
            fields=[
                ('message', models.OneToOneField(db_constraint=False, on_delete=django.db.models.deletion.DO_NOTHING, primary_key=True, related_name='+', serialize=False, to='chat.message')),
                ('text', models.TextField(help_text='The beginning of the message, as far as it is searched.')),
                ('vector', django.contrib.postgres.search.SearchVectorField()),
                ('conversation', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='chat.conversation')),
                ('owner', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'indexes': [
                    django.contrib.postgres.indexes.GinIndex(fastupdate=False, fields=['vector'], name='chat_search_words'),
                    models.Index(fields=['owner', '-message'], name='chat_search_newest'),
                ],
            },
        ),
        migrations.RunSQL(
            "ALTER TABLE chat_searchentry ADD CONSTRAINT chat_searchentry_of_message"
            " FOREIGN KEY (message_id) REFERENCES chat_message (id) ON DELETE CASCADE",
            migrations.RunSQL.noop,
        ),
        migrations.RunPython(add_trigrams, migrations.RunPython.noop),
    ]
