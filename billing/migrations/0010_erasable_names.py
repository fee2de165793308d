"""Names of a user that the purge of the account may remove from rows that are otherwise never changed."""

from __future__ import annotations

from django.db import migrations

# The table, and its only column that may change.
TABLES = {"billing_auditrecord": "target", "billing_usagerecord": "assistant"}

GUARD = """
CREATE FUNCTION billing_guard_all_but() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' THEN
    IF to_jsonb(NEW) - TG_ARGV[0] = to_jsonb(OLD) - TG_ARGV[0] THEN
      RETURN NEW;
    END IF;
  END IF;
  RAISE EXCEPTION 'rows of % are never changed or deleted', TG_TABLE_NAME
    USING ERRCODE = 'integrity_constraint_violation';
END $$;
"""
TRIGGER = """
DROP TRIGGER {table}_append_only ON {table};
CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table}
  FOR EACH ROW EXECUTE FUNCTION {function};
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0009_api_key")]

    operations = [
        migrations.RunSQL(GUARD, "DROP FUNCTION billing_guard_all_but()"),
        *(
            migrations.RunSQL(
                TRIGGER.format(table=table, function=f"billing_guard_all_but('{column}')"),
                TRIGGER.format(table=table, function="billing_refuse_change()"),
            )
            for table, column in TABLES.items()
        ),
    ]
