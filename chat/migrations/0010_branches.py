from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models

ACTIVE = models.Q(('status__in', ['queued', 'running']))


class Migration(migrations.Migration):
    atomic = False  # a concurrent index locks no writer out

    dependencies = [
        ('chat', '0009_quirks'),
    ]

    operations = [
        migrations.AddField(
            model_name='run',
            name='lane',
            field=models.PositiveSmallIntegerField(db_default=0, default=0, help_text='Tells apart the active runs of one comparison, from 0.'),
        ),
        migrations.AddField(
            model_name='run',
            name='moves_leaf',
            field=models.BooleanField(db_default=True, default=False, help_text='The conversation will end with its reply, unless it fails or has no text.'),
        ),
        migrations.AddField(
            model_name='run',
            name='continued',
            field=models.PositiveIntegerField(db_default=0, default=0, help_text='Characters of another reply that it continues; 0 for a reply of its own.'),
        ),
        AddIndexConcurrently(
            model_name='message',
            index=models.Index(condition=models.Q(('parent', None)), fields=['conversation'], name='message_root'),
        ),
        # Django adds a constraint without CONCURRENTLY, and would lock writers out.
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    """CREATE UNIQUE INDEX CONCURRENTLY run_one_active_per_lane
                    ON chat_run (conversation_id, lane) WHERE status IN ('queued', 'running')""",
                    "DROP INDEX run_one_active_per_lane",
                ),
            ],
            state_operations=[
                migrations.AddConstraint(
                    model_name='run',
                    constraint=models.UniqueConstraint(condition=ACTIVE, fields=('conversation', 'lane'), name='run_one_active_per_lane'),
                ),
            ],
        ),
        migrations.RemoveConstraint(
            model_name='run',
            name='run_one_active_per_conversation',
        ),
    ]
