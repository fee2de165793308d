from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='Leadership',
            fields=[
                ('name', models.CharField(max_length=40, primary_key=True, serialize=False)),
                ('holder', models.CharField(max_length=300)),
                ('renewed_at', models.DateTimeField()),
                ('expires_at', models.DateTimeField()),
            ],
            options={
                'verbose_name': 'leader',
                'verbose_name_plural': 'leaders',
                'db_table': 'leadership',
                'default_permissions': (),
            },
        ),
    ]
