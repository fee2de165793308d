"""What the database itself refuses, whatever the code above it does.

Only row triggers: Django's test runner empties tables with TRUNCATE, which they leave alone. In
production take UPDATE, DELETE and TRUNCATE on the append-only tables from the application's role
as well (docs/operations.md).
"""

from __future__ import annotations

from django.db import migrations

APPEND_ONLY = [
    "billing_ledgerentry",
    "billing_lotmove",
    "billing_debtentry",
    "billing_usagerecord",
    "billing_modelprice",
    "billing_auditrecord",
]

FUNCTIONS = """
CREATE FUNCTION billing_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'rows of % are never changed or deleted', TG_TABLE_NAME
    USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE FUNCTION billing_check_account() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  a billing_account;
  lots bigint;
  holds bigint;
  last_balance bigint;
  last_seq bigint;
BEGIN
  SELECT * INTO a FROM billing_account WHERE id = NEW.id;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  SELECT coalesce(sum(remaining), 0) INTO lots
    FROM billing_creditlot WHERE account_id = NEW.id AND remaining > 0;
  SELECT coalesce(sum(amount), 0) INTO holds
    FROM billing_hold WHERE account_id = NEW.id AND status = 'active';
  SELECT balance_after, seq INTO last_balance, last_seq
    FROM billing_ledgerentry WHERE account_id = NEW.id ORDER BY seq DESC LIMIT 1;
  IF a.balance <> lots OR a.held <> holds
     OR a.balance <> coalesce(last_balance, 0) OR a.seq <> coalesce(last_seq, 0) THEN
    RAISE EXCEPTION 'account % is out of balance: balance %, lots %, entries %, held %, holds %',
      a.id, a.balance, lots, coalesce(last_balance, 0), a.held, holds
      USING ERRCODE = 'check_violation';
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION billing_guard_hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    RAISE EXCEPTION 'holds are never deleted' USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  IF OLD.status <> 'active' THEN
    RAISE EXCEPTION 'hold % was resolved already', OLD.id
      USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  IF (NEW.id, NEW.account_id, NEW.key, NEW.amount, NEW.price_id, NEW.created_at)
     IS DISTINCT FROM (OLD.id, OLD.account_id, OLD.key, OLD.amount, OLD.price_id, OLD.created_at) THEN
    RAISE EXCEPTION 'what hold % is for is never changed', OLD.id
      USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  RETURN NEW;
END $$;

CREATE FUNCTION billing_guard_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    RAISE EXCEPTION 'orders are never deleted' USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  IF (NEW.id, NEW.user_id, NEW.account_id, NEW.amount_minor, NEW.currency, NEW.credits, NEW.bonus,
      NEW.provider, NEW.client_key)
     IS DISTINCT FROM
     (OLD.id, OLD.user_id, OLD.account_id, OLD.amount_minor, OLD.currency, OLD.credits, OLD.bonus,
      OLD.provider, OLD.client_key) THEN
    RAISE EXCEPTION 'what order % is for is never changed', OLD.id
      USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  IF OLD.status IN ('paid', 'partially_refunded', 'refunded')
     AND NEW.status NOT IN ('paid', 'partially_refunded', 'refunded') THEN
    RAISE EXCEPTION 'order % was paid and stays so', OLD.id
      USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  RETURN NEW;
END $$;
"""

TRIGGERS = """
CREATE CONSTRAINT TRIGGER billing_account_in_balance
  AFTER INSERT OR UPDATE OF balance, held, seq ON billing_account
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION billing_check_account();
CREATE TRIGGER billing_hold_guarded BEFORE UPDATE OR DELETE ON billing_hold
  FOR EACH ROW EXECUTE FUNCTION billing_guard_hold();
CREATE TRIGGER billing_order_guarded BEFORE UPDATE OR DELETE ON billing_order
  FOR EACH ROW EXECUTE FUNCTION billing_guard_order();
""" + "".join(
    f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table}\n"
    "  FOR EACH ROW EXECUTE FUNCTION billing_refuse_change();\n"
    for table in APPEND_ONLY
)

UNDO = (
    """
DROP TRIGGER billing_account_in_balance ON billing_account;
DROP TRIGGER billing_hold_guarded ON billing_hold;
DROP TRIGGER billing_order_guarded ON billing_order;
"""
    + "".join(f"DROP TRIGGER {table}_append_only ON {table};\n" for table in APPEND_ONLY)
    + """
DROP FUNCTION billing_refuse_change();
DROP FUNCTION billing_check_account();
DROP FUNCTION billing_guard_hold();
DROP FUNCTION billing_guard_order();
"""
)


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]

    operations = [migrations.RunSQL(FUNCTIONS + TRIGGERS, UNDO)]
