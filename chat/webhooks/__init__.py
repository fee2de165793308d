"""Outgoing webhooks: signed messages to addresses of users, as Standard Webhooks describes them.

`chat.runs.webhook_events` writes a row with each event. The clock hands out the rows that are due (`dispatch.py`),
a job of a worker makes one attempt (`attempts.py`, `client.py`, `signing.py`), and `ending.py` switches off webhooks.
`editing.py` has the actions of their users, `addresses.py` the addresses that are accepted. docs/webhooks.md.
"""
