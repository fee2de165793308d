from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False  # a concurrent index locks no writer out

    dependencies = [
        ('chat', '0010_branches'),
    ]

    operations = [
        migrations.AddField(
            model_name='conversation',
            name='pinned_at',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='conversation',
            name='archived_at',
            field=models.DateTimeField(blank=True, help_text='Archived chats are left out of the lists but that of the archive.', null=True),
        ),
        migrations.AddField(
            model_name='conversation',
            name='unread',
            field=models.BooleanField(db_default=False, default=False, help_text='A reply has ended that the owner has not seen on any device.'),
        ),
        migrations.AddField(
            model_name='conversation',
            name='titled_by',
            field=models.CharField(blank=True, choices=[('person', 'Person'), ('model', 'Model')], db_default='', default='', help_text='Empty: the title is the first line of the first message.', max_length=6),
        ),
        AddIndexConcurrently(
            model_name='conversation',
            index=models.Index(condition=models.Q(('archived_at', None), ('deleted_at', None)), fields=['owner', '-updated_at', '-id'], name='conversation_shown'),
        ),
        AddIndexConcurrently(
            model_name='conversation',
            index=models.Index(condition=models.Q(('archived_at', None), ('deleted_at', None), ('pinned_at__isnull', False)), fields=['owner', '-pinned_at'], name='conversation_pinned'),
        ),
        AddIndexConcurrently(
            model_name='conversation',
            index=models.Index(condition=models.Q(('archived_at__isnull', False), ('deleted_at', None)), fields=['owner', '-archived_at', '-id'], name='conversation_archived'),
        ),
        RemoveIndexConcurrently(
            model_name='conversation',
            name='conversation_list',
        ),
    ]
