"""The copy of an account's plan in the user's row, and the memberships of accounts that have a plan.

The account is the truth. Triggers keep the copy equal, whatever writes: a process of the previous release, or
one that saves a user whom it read before the plan was changed.
"""

from __future__ import annotations

from django.db import migrations

TRIGGERS = """
CREATE FUNCTION billing_copy_plan() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE accounts_user SET plan_id = NEW.plan_id
  WHERE id = NEW.user_id AND plan_id IS DISTINCT FROM NEW.plan_id;
  RETURN NULL;
END $$;

CREATE TRIGGER billing_account_plan_copied AFTER INSERT OR UPDATE OF plan_id ON billing_account
FOR EACH ROW EXECUTE FUNCTION billing_copy_plan();

CREATE FUNCTION billing_keep_plan() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  own billing_account;
BEGIN
  SELECT * INTO own FROM billing_account WHERE user_id = NEW.id;
  IF FOUND THEN
    NEW.plan_id := own.plan_id;
  END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER accounts_user_plan_kept BEFORE UPDATE OF plan_id ON accounts_user
FOR EACH ROW EXECUTE FUNCTION billing_keep_plan();
"""

NO_TRIGGERS = """
DROP TRIGGER accounts_user_plan_kept ON accounts_user;
DROP FUNCTION billing_keep_plan;
DROP TRIGGER billing_account_plan_copied ON billing_account;
DROP FUNCTION billing_copy_plan;
"""

ROWS = """
INSERT INTO billing_membership (account_id, plan_id, since, source, reason)
SELECT id, plan_id, now(), 'earlier', '' FROM billing_account WHERE plan_id IS NOT NULL;
UPDATE accounts_user SET plan_id = account.plan_id FROM billing_account AS account
WHERE account.user_id = accounts_user.id AND account.plan_id IS NOT NULL;
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0011_plans")]

    operations = [
        migrations.RunSQL(TRIGGERS, NO_TRIGGERS),
        migrations.RunSQL(ROWS, migrations.RunSQL.noop),
    ]
