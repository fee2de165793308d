"""Web push: notifications of finished replies, by the push services of browsers.

`notifications.py` is the job, `devices.py` the list in the settings. `encryption.py` is RFC 8291, `vapid.py` is
RFC 8292, `endpoints.py` and `chat.guarded` decide which addresses may be contacted, and `client.py` sends (RFC 8030).
"""
