"""The session store (SESSION_ENGINE): Django's in the database, which also announces ended sessions."""

from __future__ import annotations

from typing import Any

from allauth.usersessions.models import UserSession
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends import db as django_store
from django.contrib.sessions.models import Session
from django.utils import timezone

from accounts.signals import access_changed, session_renewed
from chatproject.lib.db import after_commit, prepared

LOAD = f"""
SELECT {prepared.columns(Session, "session")} FROM django_session session
WHERE session_key = %(key)s AND expire_date > %(now)s
"""  # noqa: S608 # of names alone


class SessionStore(django_store.SessionStore):
    """Sends `access_changed` when the session of a signed-in user is deleted or gets another key.

    Django's key salt contains the class's name, so this one reads the sessions that Django's wrote.
    """

    def _get_session_from_db(self) -> Session | None:
        # As Django's. In plain SQL, as each request needs it: see lib.db.prepared.
        values = {"key": self.session_key, "now": timezone.now()}
        row = prepared.first(LOAD, values, Session)
        if row is None:
            self._session_key = None
            return None
        found: Session = row[0]
        return found

    def flush(self) -> None:
        """Delete the session: the user signs out, or the session is no longer valid."""
        user_id, key = self.get(SESSION_KEY), self.session_key
        super().flush()
        if user_id is not None and key is not None:
            UserSession.objects.filter(session_key=key).delete()
        announce(user_id)

    def cycle_key(self) -> None:
        """Give the session another key: its user has signed in, or has changed the password. Sends `session_renewed`."""
        old = self.session_key
        super().cycle_key()
        if old is not None:
            session_renewed.send(sender=SessionStore, old=old, new=self.session_key)
        announce(self.get(SESSION_KEY))


def announce(user_id: Any) -> None:
    """Send `access_changed` after the commit, for the user of a session that has ended; None sends nothing."""
    if user_id is not None:
        after_commit(access_changed.send, sender=SessionStore, user_id=int(user_id))
