from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.urls import reverse

from accounts.models import User
from accounts.sso import recovery


class Command(BaseCommand):
    help = "Prints a link that signs a superuser in once, within an hour; a second factor is still asked for."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email", help="the superuser's e-mail address")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(email__iexact=options["email"]).first()
        if user is None or not (user.is_superuser and user.is_active):
            raise CommandError(f"There is no active superuser {options['email']}.")
        path = reverse("account_sign_in_link", args=[recovery.new_token(user)])
        self.stdout.write(f"{settings.SITE_URL}{path}")
