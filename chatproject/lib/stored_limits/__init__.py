"""Limits that Postgres counts while Redis is unreachable: they guard a secret or a stranger's mailbox."""
