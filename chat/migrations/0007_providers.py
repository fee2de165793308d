import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

import chat.models.catalogue


class Migration(migrations.Migration):

    dependencies = [
        ('chat', '0006_error_cause'),
    ]

    operations = [
        migrations.CreateModel(
            name='Provider',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(help_text='What staff see.', max_length=100, unique=True)),
                ('base_url', models.CharField(blank=True, default='', help_text='For example https://api.example.com/v1. Empty: OPENAI_BASE_URL and OPENAI_API_KEY of the environment.', max_length=500, validators=[chat.models.catalogue.validate_base_url], verbose_name='base URL')),
                ('key_variable', models.CharField(blank=True, default='', help_text='Instead of a stored key: the environment variable of the workers that has it, or with _FILE appended names its file. Its name must end in _API_KEY.', max_length=100, validators=[django.core.validators.RegexValidator('^[A-Z][A-Z0-9_]*_API_KEY\\Z', 'Write the name of a variable that ends in _API_KEY, for example MISTRAL_API_KEY.')], verbose_name='variable of the key')),
                ('encrypted_key', models.TextField(blank=True, default='', editable=False)),
                ('encrypted_headers', models.TextField(blank=True, default='', editable=False)),
                ('encrypted_proxy', models.TextField(blank=True, default='', editable=False)),
                ('first_byte_seconds', models.PositiveIntegerField(default=300, help_text='Seconds without a first byte of the reply after which a request is given up and tried again, within the time limit of a reply (RUN_SECONDS).', validators=[django.core.validators.MinValueValidator(1)], verbose_name='first byte limit')),
                ('silence_seconds', models.PositiveIntegerField(default=120, help_text='Seconds without a further byte after which a reply has failed.', validators=[django.core.validators.MinValueValidator(1)], verbose_name='silence limit')),
                ('concurrency', models.PositiveIntegerField(blank=True, help_text='Replies that all workers together request at the same time; further ones wait in the queue. Empty: no limit.', null=True, validators=[django.core.validators.MinValueValidator(1)], verbose_name='concurrency limit')),
                ('notes', models.TextField(blank=True, default='')),
                ('enabled', models.BooleanField(default=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('updated_at', models.DateTimeField(auto_now=True)),
            ],
            options={
                'ordering': ['name'],
                'constraints': [models.UniqueConstraint(condition=models.Q(('base_url', '')), fields=('base_url',), name='provider_one_of_the_environment', violation_error_message="Another provider already is the environment's: enter a base URL.")],
            },
        ),
        migrations.AddField(
            model_name='languagemodel',
            name='fallback',
            field=models.ForeignKey(blank=True, help_text="The model that is asked when this one's provider fails before the first word: best one of another provider.", null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to='chat.languagemodel'),
        ),
        migrations.AddField(
            model_name='languagemodel',
            name='provider',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.PROTECT, related_name='models', to='chat.provider'),
        ),
        migrations.AlterField(
            model_name='languagemodel',
            name='name',
            field=models.CharField(help_text='What people see.', max_length=100),
        ),
        migrations.AddConstraint(
            model_name='languagemodel',
            constraint=models.UniqueConstraint(fields=('provider', 'name'), name='model_name_once_per_provider', nulls_distinct=False, violation_error_message='This provider already has a model of that name.'),
        ),
        migrations.AddField(
            model_name='run',
            name='answered_by',
            field=models.ForeignKey(blank=True, db_index=False, help_text="The fallback that was asked last; empty: the run's own model.", null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to='chat.languagemodel'),
        ),
        migrations.AddField(
            model_name='run',
            name='provider',
            field=models.ForeignKey(blank=True, db_index=False, help_text='The provider that was asked last.', null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to='chat.provider'),
        ),
    ]
