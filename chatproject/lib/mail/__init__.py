"""Mail through an outbox: each message is a row, sent by a job and emptied afterwards.

The sender of a mail uses Django's functions. `backend.OutboxBackend` stores the message within the
sender's transaction; `outbox` sends it, with retries; the clock calls `outbox.enqueue_due`.
"""
