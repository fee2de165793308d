"""Makes users for a bench, and signs them in.

    python -m bench.users 200

Runs in the environment of the measured processes; prints the users' session keys, one a line.
"""

from __future__ import annotations

import os
import sys

import django


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")
    django.setup()
    from django.test import Client

    from accounts.models import User

    for number in range(int(sys.argv[1])):
        client = Client()
        client.force_login(User.objects.create_user(f"user{number}@example.org"))
        print(client.cookies["sessionid"].value)


if __name__ == "__main__":
    main()
