"""Makes users for a bench, and signs them in.

    python -m bench.users 200
    python -m bench.users --keys 200

Runs in the environment of the measured processes; prints the users' session keys, one a line, or with `--keys`
an API key of each user that was made before.
"""

from __future__ import annotations

import os
import sys

import django


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")
    django.setup()
    from django.test import Client

    from accounts import api_keys
    from accounts.models import User

    if sys.argv[1] == "--keys":
        for user in User.objects.order_by("pk"):
            print(api_keys.create(user, api_keys.Terms("bench"))[1])
        return
    for number in range(int(sys.argv[1])):
        client = Client()
        client.force_login(User.objects.create_user(f"user{number}@example.org"))
        print(client.cookies["sessionid"].value)


if __name__ == "__main__":
    main()
