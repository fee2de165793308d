"""Lets an active hold grow: a run with tools holds more before each further request of its model."""

from __future__ import annotations

from django.db import migrations

GUARD = """
CREATE OR REPLACE FUNCTION billing_guard_hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    RAISE EXCEPTION 'holds are never deleted' USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  IF OLD.status <> 'active' THEN
    RAISE EXCEPTION 'hold %% was resolved already', OLD.id
      USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  IF (NEW.id, NEW.account_id, NEW.key, NEW.price_id, NEW.created_at)
     IS DISTINCT FROM (OLD.id, OLD.account_id, OLD.key, OLD.price_id, OLD.created_at)
     OR {amount} THEN
    RAISE EXCEPTION 'what hold %% is for is never changed', OLD.id
      USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  RETURN NEW;
END $$;
""".replace("%%", "%")

# Its amount grows while it is active, and is final with the update that resolves it.
GROWS = "NEW.amount < OLD.amount OR (NEW.amount <> OLD.amount AND NEW.status <> 'active')"
NEVER_CHANGES = "NEW.amount <> OLD.amount"


class Migration(migrations.Migration):
    dependencies = [("billing", "0013_plans_by_order")]

    operations = [
        migrations.RunSQL(
            GUARD.replace("{amount}", GROWS), GUARD.replace("{amount}", NEVER_CHANGES)
        ),
    ]
